"""Foreground masks and cutouts."""

from __future__ import annotations

import numpy as np
import pytest

from limner.core.picture import Picture
from limner.runtime.job import Job
from limner.segment.matting import cutout, soften
from limner.segment.remover import SaliencyGrabCut
from tests.segment.known import make_scene, overlap


@pytest.mark.parametrize("kind", ["disc", "striped"])
def test_what_stands_out_is_foreground(kind: str, job: Job) -> None:
    scene = make_scene(kind)
    foreground = SaliencyGrabCut().foreground(scene.picture, job)
    assert overlap(foreground, scene.mask) > 0.93


def test_edges_are_soft_and_the_rest_is_not(job: Job) -> None:
    scene = make_scene("disc")
    foreground = SaliencyGrabCut().foreground(scene.picture, job)
    soft = (foreground > 0) & (foreground < 255)
    assert 0 < soft.mean() < 0.08
    assert foreground[0, 0] == 0
    assert foreground[120, 176] == 255


def test_softening_follows_the_pictures_edge() -> None:
    """A hard mask that is two pixels off."""
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[:, 32:] = 200
    hard = np.zeros((64, 64), bool)
    hard[:, 34:] = True
    soft = soften(hard, rgb)
    assert soft[32, 33] > 127
    assert soft[32, 31] < 100
    assert soft[32, 50] == 255


@pytest.mark.parametrize("full", [True, False])
def test_masks_without_a_border_stay(full: bool) -> None:
    soft = soften(np.full((8, 8), full), np.zeros((8, 8, 3), np.uint8))
    assert (soft == (255 if full else 0)).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_cutout_changes_no_colour(dtype: type, channels: int) -> None:
    generator = np.random.Generator(np.random.PCG64(2))
    pixels = generator.integers(0, int(np.iinfo(dtype).max) + 1, (9, 7, channels)).astype(dtype)
    picture = Picture(pixels, source_format="tiff")
    foreground = generator.integers(0, 256, (9, 7)).astype(np.uint8)
    result = cutout(picture, foreground)
    assert result.has_alpha
    assert np.array_equal(result.colour(), picture.colour())
    assert result.bit_depth == picture.bit_depth
    assert result.source_format == "tiff"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_cutout_multiplies_the_alpha_there_was(dtype: type) -> None:
    maximum = int(np.iinfo(dtype).max)
    pixels = np.zeros((1, 4, 4), dtype)
    pixels[0, :, 3] = [0, maximum // 2, maximum, maximum]
    foreground = np.array([[255, 255, 0, 255]], np.uint8)
    alpha = cutout(Picture(pixels), foreground).alpha()
    assert alpha is not None
    assert alpha.tolist() == [[0, maximum // 2, 0, maximum]]


def test_opaque_pictures_get_the_mask_as_alpha() -> None:
    foreground = np.array([[0, 128, 255]], np.uint8)
    alpha = cutout(Picture(np.zeros((1, 3, 3), np.uint16)), foreground).alpha()
    assert alpha is not None
    assert alpha.tolist() == [[0, 128 * 257, 65535]]


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 4)])
def test_tiny_pictures_are_taken(size: tuple[int, int], job: Job) -> None:
    width, height = size
    pixels = np.random.Generator(np.random.PCG64(4)).integers(0, 256, (height, width, 3), np.uint8)
    assert SaliencyGrabCut().foreground(Picture(pixels), job).shape == (height, width)
