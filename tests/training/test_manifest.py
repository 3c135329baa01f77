"""The manifest of what ships."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from limner.engine.store import digest
from training.manifest import WEIGHTS, write_manifest


def test_it_has_every_file_of_every_model_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "model" / "part").mkdir(parents=True)
    (tmp_path / "__init__.py").write_text('"""Data."""\n')
    (tmp_path / "manifest.json").write_text('{"gone/file": {}}')
    (tmp_path / "model" / "network.onnx").write_bytes(b"weights")
    (tmp_path / "model" / "part" / "config.json").write_bytes(b"{}")
    manifest = write_manifest(tmp_path)
    assert json.loads(manifest.read_text()) == {
        "model/network.onnx": {"digest": digest(tmp_path / "model" / "network.onnx"), "size_bytes": 7},
        "model/part/config.json": {"digest": digest(tmp_path / "model" / "part" / "config.json"), "size_bytes": 2},
    }


def test_that_of_the_package_is_up_to_date(tmp_path: Path) -> None:
    shutil.copytree(WEIGHTS, tmp_path / "weights")
    assert write_manifest(tmp_path / "weights").read_text() == (WEIGHTS / "manifest.json").read_text()
