"""What `pip install limner` brings: the weights that ship, whole, and found from where they were installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_BYTES = 60_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of Limner, built without fetching anything."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_carries_every_file_of_the_manifest_and_is_small(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        manifest = json.loads(archive.read("limner/weights/manifest.json"))
    assert {f"limner/weights/{path}" for path in manifest} <= names
    assert {path.partition("/")[0] for path in manifest} == {"limner-erase", "limner-sketch"}
    assert "limner/weights/__init__.py" in names
    assert wheel.stat().st_size < MOST_BYTES


def test_from_the_wheel_both_models_are_installed_right_and_are_its_own(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")  # what pip does with a wheel of one folder
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LIMNER_")}
    environment |= {
        "PYTHONPATH": str(tmp_path / "site"),
        "HOME": str(tmp_path / "home"),
        "LIMNER_MODEL_DIR": str(tmp_path / "models"),
        "HF_HUB_OFFLINE": "1",
    }
    script = (
        "from limner.engine.shipped import folder_of; print(folder_of('limner-sketch')); "
        "from limner.models.__main__ import main; "
        "main(['list', 'limner-erase', 'limner-sketch', '--json']); "
        "main(['verify', 'limner-erase', 'limner-sketch', '--json'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    place, _, rest = ended.stdout.partition("\n")
    assert Path(place) == tmp_path / "site" / "limner" / "weights" / "limner-sketch"
    listed, end = json.JSONDecoder().raw_decode(rest)
    assert [(row["name"], row["installed"]) for row in listed] == [("limner-erase", True), ("limner-sketch", True)]
    assert {row["outcome"] for row in json.loads(rest[end:])} == {"right"}
    assert not (tmp_path / "models").exists()
