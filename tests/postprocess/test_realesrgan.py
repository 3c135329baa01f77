"""The networks in the store: made once, whole, of the right weights; and what happens without them."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from limner.core.card import WeightFile
from limner.core.errors import ModelNotInstalled
from limner.engine.catalog import Catalog
from limner.engine.store import Store, digest
from limner.postprocess.config import PostprocessConfig
from limner.postprocess.models import MODELS
from limner.postprocess.models.realesrgan import ANIMEVIDEO, NETWORK_FILE, network_file

CARD = ANIMEVIDEO.CARD
pytestmark = pytest.mark.usefixtures("weights")


def test_the_network_is_made_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = network_file(CARD, store)
    assert path == tmp_path / CARD.name / NETWORK_FILE
    written = path.stat().st_mtime_ns
    assert network_file(CARD, Store(tmp_path)) == path
    assert path.stat().st_mtime_ns == written


def test_a_damaged_network_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = network_file(CARD, store)
    assert isinstance(path, Path)
    good = digest(path)
    path.write_bytes(path.read_bytes()[:-1000])
    network_file(CARD, store)
    assert digest(path) == good


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"converter": 0}'])
def test_a_network_without_a_record_of_its_own_is_made_again(tmp_path: Path, record: str) -> None:
    store = Store(tmp_path)
    path = network_file(CARD, store)
    assert isinstance(path, Path)
    path.write_bytes(b"old")
    path.with_name("network.json").write_text(record)
    network_file(CARD, store)
    assert path.stat().st_size > 1_000_000


def test_several_that_make_it_at_once_all_find_it_whole(tmp_path: Path) -> None:
    digests: list[str] = []

    def make() -> None:
        path = network_file(CARD, Store(tmp_path))
        assert isinstance(path, Path)
        digests.append(digest(path))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 4
    assert len(set(digests)) == 1


def test_without_a_store_to_write_to_the_network_stays_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    network = network_file(CARD, Store(tmp_path / "file"))
    assert isinstance(network, bytes)


def test_other_weights_than_the_cards_are_refused_with_the_mend(tmp_path: Path) -> None:
    param, weights = CARD.files
    foreign = replace(CARD, files=(param, replace(weights, digest="sha256:" + "0" * 64)))
    with pytest.raises(ModelNotInstalled, match=r"limner\[realesrgan\]"):
        network_file(foreign, Store(tmp_path))


def test_a_damaged_file_of_the_package_is_told_with_layer_and_mend(tmp_path: Path, weights: Path) -> None:
    """The digest catches it first; this is what remains if the card knew it."""
    param = weights / CARD.files[0].name
    cut = tmp_path / "cut.bin"
    cut.write_bytes((weights / CARD.files[1].name).read_bytes()[:1000])
    card = replace(CARD, name="cut", files=(CARD.files[0], WeightFile("cut.bin", f"file:{cut}", digest(cut))))
    store = Store(tmp_path / "store")
    store.pull(card)
    assert param.is_file()
    with pytest.raises(ModelNotInstalled, match=r"line 5, Convolution 'Conv_0'.*cut off.*--force-reinstall"):
        network_file(card, store)


def test_without_the_package_the_default_is_lanczos_and_asking_for_a_network_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "missing", lambda store, card: [file.name for file in card.files])
    catalog = Catalog(
        MODELS,
        defaults={"upscale": PostprocessConfig().default_model},
        server="postprocess",
        config=PostprocessConfig(),
        store=Store(tmp_path),
    )
    assert catalog.card(None, "upscale").name == "lanczos"
    with pytest.raises(ModelNotInstalled, match=r"pip install 'limner\[realesrgan\]'"):
        catalog.get("realesrgan-x4plus")
