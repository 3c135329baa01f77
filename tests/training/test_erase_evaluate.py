"""The comparison of limner-erase with other fills, with fills and scores made here."""

from __future__ import annotations

import numpy as np
import pytest

from bench.quality import Case, Hole, Pixels, Score
from training.erase.evaluate import NAME, TILE, compare, lead, tile, together, wallpapers


def grey(picture: Pixels, hole: Hole) -> Pixels:
    return np.full_like(picture, 128)


@pytest.fixture
def case() -> Case:
    random = np.random.default_rng(0)
    picture = random.integers(0, 255, (200, 300, 3)).astype(np.uint8)
    hole = np.zeros((200, 300), np.bool_)
    hole[80:120, 240:290] = True
    return Case("noise", "object", picture, hole)


def test_every_fill_is_scored_in_the_hole_alone(case: Case) -> None:
    def perfect_in_the_hole(picture: Pixels, hole: Hole) -> Pixels:
        return np.where(hole[:, :, None], case.picture, np.uint8(0))

    scores, rows = compare([case], {NAME: perfect_in_the_hole, "grey": grey})
    assert scores[NAME, "object"][0].psnr > 100
    assert scores["grey", "object"][0].psnr < 15
    assert [row.shape for row in rows] == [(TILE, 4 * TILE, 3)]


def test_the_fill_is_shown_nothing_of_another_size(case: Case) -> None:
    assert tile(case.picture, case, "noise").shape == (TILE, TILE, 3)


def test_the_lead_is_over_the_best_in_each_figure() -> None:
    scores = {
        (NAME, "box"): [Score(27.0, 0.8, 0, 0), Score(29.0, 0.8, 0, 0)],
        ("sharp", "box"): [Score(27.0, 0.5, 0, 0), Score(27.0, 0.5, 0, 0)],
        ("soft", "box"): [Score(25.0, 0.7, 0, 0), Score(25.0, 0.7, 0, 0)],
    }
    psnr, ssim = lead(scores)
    assert psnr == pytest.approx(1.0)
    assert ssim == pytest.approx(0.1)


def test_scores_of_all_kinds_of_holes_come_together() -> None:
    one, other = Score(20, 0.5, 0, 0), Score(30, 0.5, 0, 0)
    assert together({("a", "box"): [one], ("a", "object"): [other], ("b", "box"): [one]}) == {
        "a": [one, other],
        "b": [one],
    }


def test_wallpapers_get_the_same_holes_each_time_with_known_pixels_around() -> None:
    photograph = np.zeros((1200, 1920, 3), np.uint8)
    first, second = list(wallpapers([photograph])), list(wallpapers([photograph]))
    assert [case.kind for case in first] == ["stroke", "box", "object"]
    for case, again in zip(first, second, strict=True):
        assert case.picture.shape == (600, 960, 3)
        assert case.hole.any()
        assert np.array_equal(case.hole, again.hole)
