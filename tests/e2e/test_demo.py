"""What `make demo` does, with the models that ship, and the sheet that it draws."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from examples import demo
from examples.demo import GAP, MARGIN, PAPER, WIDTH, Done, Panel
from limner.client import LocalServers


@pytest.fixture(scope="module")
def done(servers: LocalServers) -> Done:
    return demo.run(servers.address("router"), Console(quiet=True))


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"))


def models(done: Done) -> dict[str, str]:
    return {step: result.finished.model for step, result in done.results.items() if result.finished is not None}


def test_the_models_that_ship_do_it(done: Done) -> None:
    assert {step: model for step, model in models(done).items() if model.startswith("limner-")} == {
        "erased": "limner-erase",
        "butterfly": "limner-sketch",
        "replaced": "limner-sketch",
        "extended": "limner-sketch",
    }


def test_the_ladybird_is_gone_and_nothing_else(done: Done) -> None:
    source, erased = pixels(done.picture("photo")), pixels(done.picture("erased"))
    hole = pixels(done.picture("hole"))[..., 0]
    assert (erased[hole == 0] == source[hole == 0]).all()
    assert red(source[174:247, 414:482]) > 150
    assert red(erased[174:247, 414:482]) < 10


def red(part: np.ndarray) -> int:
    """How many pixels are as red as the ladybird."""
    values = part.astype(int)
    return int(((values[..., 0] > 150) & (values[..., 1] < 90) & (values[..., 2] < 80)).sum())


def test_the_photograph_is_changed_where_the_ladybird_was_and_then_extended(done: Done) -> None:
    erased, replaced, extended = (pixels(done.picture(step)) for step in ("erased", "replaced", "extended"))
    changed = (replaced != erased).any(axis=2)
    assert changed[190:230, 425:470].mean() > 0.9
    assert not changed[:125].any()
    height, width = replaced.shape[:2]
    added = extended.shape[1] - width
    assert added > 0
    assert extended.shape[0] == height
    kept = 64  # wider than the seam
    assert (extended[:, added + kept :] == replaced[:, kept:]).all()
    assert extended[:, :added].std() > 5, "something was painted there"


def test_previews_of_everything_that_is_painted_come(done: Done) -> None:
    for step in ("butterfly", "replaced", "extended"):
        assert len(done.previews_of(step)) >= 2


def test_the_sheet_shows_all_of_it(done: Done) -> None:
    page = demo.contact_sheet(done)
    assert page.width == WIDTH
    drawn = (pixels(page) != PAPER).any(axis=2)
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    assert rows[0] == columns[0] == MARGIN
    assert 0 <= page.width - MARGIN - (columns[-1] + 1) <= 4, "pictures fill the width"
    assert page.height - MARGIN - (rows[-1] + 1) >= 0


def test_panels_of_a_row_are_equally_high_and_evenly_apart() -> None:
    wide, high = Image.new("RGB", (300, 100), "red"), Image.new("RGB", (50, 100), "blue")
    names = {PAPER: "paper", (255, 0, 0): "wide", (0, 0, 255): "high"}
    page = pixels(demo.sheet([[Panel([wide], "a"), Panel([high, high], "b")]]))
    runs = [
        (names[colour], len(list(run))) for colour, run in groupby(tuple(value) for value in page[MARGIN + 10].tolist())
    ]
    assert [name for name, _ in runs] == ["paper", "wide", "paper", "high", "paper", "high", "paper"]
    assert [length for _, length in runs][2:5:2] == [GAP, GAP]
    bottoms = {
        colour: int(np.flatnonzero((page == colour).all(axis=2).any(axis=1))[-1]) for colour in names if colour != PAPER
    }
    assert len(set(bottoms.values())) == 1


def test_what_is_drawn_on_the_photograph_leaves_the_photograph() -> None:
    source = Image.new("RGB", (640, 400), "green")
    boxed = demo.with_boxes(source, [(100, 100, 50, 60)])
    assert np.array_equal(pixels(source), pixels(Image.new("RGB", (640, 400), "green")))
    assert tuple(pixels(boxed)[100, 125]) in {(255, 255, 255), (0, 0, 0)}
    mask = Image.new("L", (640, 400), 0)
    mask.paste(255, (0, 0, 10, 10))
    shown = pixels(demo.dimmed(source, mask))
    assert tuple(shown[5, 5]) == tuple(pixels(source)[5, 5])
    assert shown[50, 50].sum() > pixels(source)[50, 50].sum()
