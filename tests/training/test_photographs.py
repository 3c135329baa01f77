"""Which photographs are learnt from, and how they are prepared, with pictures that are made here."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import photographs
from training.photographs import ATTRIBUTION, LONGER_SIDE, Photograph, attribution, load, pixels
from training.sources import SOURCES

HELD_OUT = ("OneStandsOut", "Kleiber", "LadyBird")  # the originals of assets/


def test_no_picture_by_which_models_are_judged_is_learnt_from() -> None:
    for photograph in photographs.photographs():
        assert not any(name.lower() in photograph.path.lower() for name in HELD_OUT)


def test_every_picture_has_an_author_a_licence_and_a_listed_package() -> None:
    packages = {source.name for source in SOURCES}
    listed = photographs.photographs()
    for one in listed:
        assert one.author
        assert one.licence in {"GPL-2.0-or-later", "LGPL-3.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-4.0", "CC0-1.0"}
        assert one.package in packages
        assert one.kind in ("photograph", "artwork")
    assert len({one.name for one in listed}) == len({one.sha256 for one in listed}) == len(listed)


def test_each_is_either_learnt_from_or_held_out() -> None:
    train, held_out = photographs.photographs("train"), photographs.photographs("heldout")
    assert len(train) + len(held_out) == len(photographs.photographs())
    assert len(held_out) == 10
    assert {one.kind for one in train} == {one.kind for one in held_out} == {"photograph", "artwork"}
    assert all(one.kind == "artwork" for one in photographs.photographs("train", "artwork"))


def test_the_attribution_is_that_of_the_list() -> None:
    assert ATTRIBUTION.read_text(encoding="utf-8") == attribution(), "run python -m training.photographs"


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Photograph:
    """One picture, in a package that is unpacked already."""
    path = tmp_path / "raw" / "walls" / "usr" / "wide.png"
    path.parent.mkdir(parents=True)
    picture = np.zeros((1000, 4000, 3), np.uint8)
    picture[:, ::2, 0] = 200  # stripes, which averaging turns into 100
    Image.fromarray(picture).save(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    photograph = Photograph(
        "wide", "Wide", "A. N.", "CC0", "walls", "usr/wide.png", sha256, "photograph", "train", "stripes"
    )
    monkeypatch.setattr(photographs, "photographs", lambda split=None, kind=None: [photograph])
    unpacked = tmp_path / "raw" / "walls"
    monkeypatch.setattr(photographs, "unpacked", lambda root, name: unpacked)
    return photograph


def test_large_pictures_are_averaged_and_kept_as_arrays(listed: Photograph, tmp_path: Path) -> None:
    (loaded,) = load(tmp_path, "train")
    assert (loaded.shape, loaded.dtype) == ((500, LONGER_SIDE, 3), np.uint8)
    assert (loaded[..., 0] == 100).all()
    (tmp_path / "raw" / "walls" / "usr" / "wide.png").unlink()
    (again,) = load(tmp_path, "train")
    assert isinstance(again, np.memmap), "it is read where it is needed, not into memory"
    assert not again.flags.writeable


def test_another_picture_than_the_listed_one_is_refused(listed: Photograph, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "raw" / "walls" / "usr" / "wide.png")
    with pytest.raises(ValueError, match="another picture"):
        load(tmp_path, "train")


def test_small_pictures_keep_their_size_and_grey_ones_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (30, 20), 77).save(tmp_path / "grey.png")
    assert pixels(tmp_path / "grey.png").tolist() == np.full((20, 30, 3), 77).tolist()
