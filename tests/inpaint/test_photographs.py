"""The photographs that come with the repository, and that the fill is fit to be shown on them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from limner.core.mask import grow
from limner.core.picture import Picture
from limner.inpaint.filler import Filler, Options
from limner.inpaint.models import MODELS
from limner.inpaint.strategy import Strategy, inpaint, plan
from limner.runtime.job import Job

ASSETS = Path(__file__).parents[2] / "assets"
PHOTOGRAPHS = sorted(ASSETS.glob("*.jpg"))


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.name)
def test_every_photograph_is_small_and_has_author_and_licence(path: Path) -> None:
    assert path.stat().st_size <= 400_000
    (row,) = [line for line in (ASSETS / "README.md").read_text().splitlines() if line.startswith(f"| `{path.name}` (")]
    _, _, title, author, licence, source, _ = (cell.strip() for cell in row.split("|"))
    assert all((title, author, licence, source))


def test_nothing_orange_is_left_of_the_erased_rosette(fillers: dict[str, Filler], job: Job) -> None:
    picture = Picture(cv2.imread(str(ASSETS / "demo.jpg"), cv2.IMREAD_COLOR_RGB))
    hole = np.zeros(picture.pixels.shape[:2], np.uint8)
    hole[258:347, 578:673] = 255  # where assets/README.md says it is
    mask = grow(hole, 4)
    assert (orange(picture.pixels)[mask > 0] > 0).sum() > 500
    window = MODELS["patchmatch"].window(Options())
    how = plan(mask, Strategy.AUTO, window)
    erased = inpaint(picture, mask, how, fillers["patchmatch"], window, Options(), job).pixels
    assert (orange(erased)[mask > 0] > 0).sum() < 25
    texture = [cv2.Laplacian(cv2.cvtColor(each, cv2.COLOR_RGB2GRAY), cv2.CV_64F)[mask > 0].std() for each in
               (erased, picture.pixels)]  # fmt: skip
    assert texture[0] > 0.4 * texture[1], "the fill is blurred"


def orange(rgb: np.ndarray) -> np.ndarray:
    """Return 255 where a pixel is saturated orange, (height, width) uint8."""
    hue, saturation, value = cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV))
    return np.where((hue > 4) & (hue < 17) & (saturation > 150) & (value > 120), 255, 0).astype(np.uint8)
