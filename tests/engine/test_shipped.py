"""What ships with Limner: every file is in the manifest and is the one that it says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from limner.core.card import ModelCard, WeightFile
from limner.core.errors import ModelNotInstalled
from limner.engine import shipped as module
from limner.engine.fetch import StoreError
from limner.engine.shipped import PACKAGE, folder_of, shipped, ships
from limner.engine.store import Store, digest, mend

MODELS = {"limner-erase": 12_000_000, "limner-sketch": 40_000_000}
"""Bytes that each may take."""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of weights of the tests' own, with the model `small`: two files, one of them in a folder."""
    (tmp_path / "small" / "part").mkdir(parents=True)
    (tmp_path / "small" / "network.onnx").write_bytes(b"weights")
    (tmp_path / "small" / "part" / "config.json").write_bytes(b"{}")
    entries = (
        f'"small/{path}": {{"digest": "{digest(tmp_path / "small" / path)}", "size_bytes": {size}}}'
        for path, size in (("part/config.json", 2), ("network.onnx", 7))
    )
    (tmp_path / "manifest.json").write_text("{" + ", ".join(entries) + "}")
    monkeypatch.setattr(module, "_root", lambda: tmp_path)
    module._manifest.cache_clear()
    yield tmp_path
    module._manifest.cache_clear()


def card_of(files):
    return ModelCard("small", "inpaint", "Fills holes.", "Apache-2.0", "", files, precisions=("fp32",))


def test_files_are_known_by_the_manifest_without_reading_them(package):
    (package / "small" / "network.onnx").unlink()
    assert shipped("small") == (
        WeightFile("network.onnx", f"package:{PACKAGE}/small/network.onnx", shipped("small")[0].digest, 7),
        WeightFile("part/config.json", f"package:{PACKAGE}/small/part/config.json", shipped("small")[1].digest, 2),
    )
    assert folder_of("small") == package / "small"


def test_a_model_that_the_manifest_lacks_is_a_fault(package):
    with pytest.raises(LookupError, match=r"no file of smal: python -m training\.manifest"):
        shipped("smal")


def test_only_cards_with_files_of_limners_own_ship(package):
    assert ships(card_of(shipped("small")))
    assert not ships(card_of((WeightFile("a", "package:carried_weights/a", ""), WeightFile("b", "https://a.b/c", ""))))
    assert not ships(card_of(()))


@pytest.mark.parametrize("name", MODELS)
def test_what_ships_is_whole_and_small_enough(name, tmp_path):
    files, store = shipped(name), Store(tmp_path / "models")
    there = {str(path.relative_to(folder_of(name))) for path in folder_of(name).rglob("*") if path.is_file()}
    assert {file.name for file in files} == there
    assert store.verify(card_of(files)) == []
    assert store.missing(card_of(files)) == store.pull(card_of(files)) == []
    assert sum(file.size_bytes for file in files) == sum((folder_of(name) / path).stat().st_size for path in there)
    assert sum(file.size_bytes for file in files) <= MODELS[name]
    assert not store.root.exists()


@pytest.mark.parametrize("name", MODELS)
def test_what_ships_names_no_place_of_the_machine_that_it_was_made_on(name):
    for path in folder_of(name).rglob("*config.json"):
        assert not json.loads(path.read_text()).get("_name_or_path"), path


@pytest.mark.parametrize("name", MODELS)
def test_what_ships_cannot_be_removed(name, tmp_path):
    with pytest.raises(StoreError, match="a part of Limner"):
        Store(tmp_path).rm(card_of(shipped(name)))
    assert Store(tmp_path).verify(card_of(shipped(name))) == []


def test_a_file_that_is_not_the_manifests_is_refused_with_the_mend(tmp_path, monkeypatch):
    wrong = [WeightFile(file.name, file.url, f"sha256:{'0' * 64}", 1) for file in shipped("limner-erase")]
    card = card_of(tuple(wrong))
    with pytest.raises(
        ModelNotInstalled,
        match=r"network\.onnx in limner\.weights is not the file .*--force-reinstall --no-deps limner",
    ):
        Store(tmp_path).path(card, "network.onnx")
    assert mend(card) == "pip install --force-reinstall --no-deps limner"
    assert "damaged or of another version" in Store(tmp_path).verify(card)[0]


def test_a_file_that_is_missing_is_told_with_the_mend(tmp_path):
    card = card_of((WeightFile("gone.onnx", f"package:{PACKAGE}/limner-erase/gone.onnx", "sha256:0"),))
    assert Store(tmp_path).missing(card) == ["gone.onnx"]
    with pytest.raises(StoreError, match="pip install --force-reinstall --no-deps limner"):
        Store(tmp_path).pull(card)


def test_to_know_what_ships_imports_neither_the_package_nor_an_engine():
    script = (
        "import sys; from limner.engine.shipped import shipped; shipped('limner-erase'); "
        f"assert not {{'{PACKAGE}', 'torch', 'onnx'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
