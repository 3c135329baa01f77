"""Enlarging in tiles: any size, depth and channels, by small honest networks whose whole result is known."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from limner.core.errors import Cancelled
from limner.core.geometry import Size
from limner.core.picture import Picture
from limner.core.placement import Placement
from limner.core.resample import resize
from limner.postprocess.models import MODELS
from limner.postprocess.models.lanczos import Lanczos
from limner.postprocess.models.realesrgan import ANIMEVIDEO, X4PLUS, RealEsrganModel, largest_tile
from limner.postprocess.upscaling import SIDE_MULTIPLE, Network, enlarge
from limner.runtime.job import Job

FACTOR = 4


def nearest(tile: np.ndarray) -> np.ndarray:
    return tile.repeat(FACTOR, axis=2).repeat(FACTOR, axis=3)


def smooth(tile: np.ndarray) -> np.ndarray:
    """Look at 3 pixels to every side, as a network with a small receptive field does; zeros lie outside."""
    mean = cv2.blur(tile[0].transpose(1, 2, 0), (7, 7), borderType=cv2.BORDER_CONSTANT)
    return nearest(mean.transpose(2, 0, 1)[None])


def brighter(tile: np.ndarray) -> np.ndarray:
    return nearest(np.minimum(tile + np.float32(0.04), 1))


def network(run: Callable[[np.ndarray], np.ndarray] = nearest, *, overlap: int = 32, largest_tile: int = 96) -> Network:
    return Network(run, FACTOR, overlap, largest_tile)


def picture(size: Size, channels: int = 3, dtype: type = np.uint8, seed: int = 0) -> Picture:
    generator = np.random.default_rng(seed)
    return Picture(generator.integers(0, np.iinfo(dtype).max, (size.height, size.width, channels), dtype, True))


sizes = st.builds(Size, st.integers(1, 250), st.integers(1, 250))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(size=Size(1, 1), channels=4, dtype=np.uint16, scale=16.0)
@example(size=Size(97, 1), channels=1, dtype=np.uint8, scale=4.0)
@example(size=Size(96, 97), channels=3, dtype=np.uint16, scale=4.0)
@given(
    size=sizes,
    channels=st.integers(1, 4),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    scale=st.sampled_from([0.1, 0.37, 1.0, 1.5, 2.0, 3.0, 4.0]),
)
def test_every_picture_gets_the_size_asked_for_with_its_channels_and_depth(
    job: Job, size: Size, channels: int, dtype: type, scale: float
) -> None:
    given = picture(size, channels, dtype)
    target = size.scaled(scale)
    enlarged = enlarge(given, target, network(), job)
    assert (enlarged.size, enlarged.channels, enlarged.bit_depth) == (target, channels, given.bit_depth)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=sizes, dtype=st.sampled_from([np.uint8, np.uint16]), seed=st.integers(0, 100))
def test_tiles_of_a_network_that_repeats_pixels_are_the_whole_to_the_last_bit(
    job: Job, size: Size, dtype: type, seed: int
) -> None:
    given = picture(size, 3, dtype, seed)
    enlarged = enlarge(given, size.scaled(FACTOR), network(), job)
    expected = given.pixels.repeat(FACTOR, axis=0).repeat(FACTOR, axis=1)
    assert np.abs(enlarged.pixels.astype(int) - expected).max() <= (0 if dtype == np.uint8 else 1)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.builds(lambda width, height: Size(16 * width, 16 * height), st.integers(7, 16), st.integers(7, 16)))
def test_tiles_are_the_whole_where_a_network_sees_less_than_the_overlap(job: Job, size: Size) -> None:
    given = picture(size)
    target = size.scaled(FACTOR)
    tiled = enlarge(given, target, network(smooth), job)
    whole = enlarge(given, target, network(smooth, largest_tile=256), job)
    assert np.abs(tiled.pixels.astype(int) - whole.pixels).max() <= 1


def test_a_real_network_in_tiles_is_the_whole_within_a_level(animevideo: RealEsrganModel, job: Job) -> None:
    """The smallest overlap there is: 2 × 112 - 200 = 24 pixels, between tiles that would not see each other else."""
    from skimage import data

    given = Picture(np.ascontiguousarray(data.coffee()[100:300, 200:312]))
    target = given.size.scaled(FACTOR)
    run = animevideo.runner(given.bit_depth)
    tiled = enlarge(given, target, Network(run, FACTOR, ANIMEVIDEO.overlap, 112), job)
    whole = enlarge(given, target, Network(run, FACTOR, ANIMEVIDEO.overlap, 200), job)
    difference = np.abs(tiled.pixels.astype(int) - whole.pixels)
    assert difference.max() <= 2  # a level, and rounding
    assert difference.mean() < 0.02


def test_a_real_network_keeps_the_colours(animevideo: RealEsrganModel, job: Job, photograph: np.ndarray) -> None:
    given = Picture(photograph)
    enlarged = animevideo.upscale(given, given.size.scaled(4), job, memory_bytes=1 << 29)
    mean = enlarged.pixels.astype(float).mean((0, 1)) - photograph.astype(float).mean((0, 1))
    assert np.abs(mean).max() < 0.5
    # The same for parts of the picture, not only on the whole.
    parts = enlarged.pixels.reshape(3, 64, 4, 64, 3).mean((1, 3)) - photograph.reshape(3, 16, 4, 16, 3).mean((1, 3))
    assert np.abs(parts).max() < 2.5
    # And it is another picture than plain resampling makes: edges are sharper.
    plain = resize(photograph, given.size.scaled(4), method="lanczos")
    steepness = [np.abs(np.diff(each.astype(float), axis=1)).max() for each in (enlarged.pixels, plain)]
    assert steepness[0] > 1.2 * steepness[1]


def test_a_networks_drift_of_colour_is_given_back(job: Job) -> None:
    flat = Picture(np.full((50, 70, 3), 100, np.uint8))
    assert np.all(enlarge(flat, Size(280, 200), network(brighter), job).pixels == 100)


def test_sixteen_bits_stay_sixteen_bits(job: Job) -> None:
    ramp = np.repeat(np.linspace(20_000, 21_000, 120).astype(np.uint16)[None, :, None], 100, axis=0).repeat(3, axis=2)
    enlarged = enlarge(Picture(ramp), Size(240, 200), network(), job)
    assert enlarged.pixels.dtype == np.uint16
    assert len(np.unique(enlarged.pixels)) > 100
    assert np.abs(enlarged.pixels[::2, ::2].astype(int) - ramp).max() <= 1


def test_grey_pictures_stay_grey(job: Job) -> None:
    given = picture(Size(40, 30), channels=1)
    enlarged = enlarge(given, Size(160, 120), network(), job)
    assert np.array_equal(enlarged.pixels, given.pixels.repeat(4, axis=0).repeat(4, axis=1))


def test_alpha_is_what_lanczos_makes_of_it(job: Job) -> None:
    given = picture(Size(30, 20), channels=4)
    enlarged = enlarge(given, Size(60, 40), network(), job)
    alpha = resize(given.pixels[:, :, 3:], Size(60, 40), method="lanczos")
    assert np.array_equal(enlarged.pixels[:, :, 3:], alpha)


def test_hidden_colours_do_not_shine_through_the_edge(job: Job) -> None:
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[:, :, 1] = 255  # what nobody sees is green
    pixels[10:30, 10:30] = (200, 40, 40, 255)
    enlarged = enlarge(Picture(pixels), Size(160, 160), network(smooth), job).pixels
    visible = enlarged[enlarged[:, :, 3] > 0]
    assert visible[:, 1].max() <= 45


def test_metadata_stays(job: Job) -> None:
    given = Picture(np.zeros((8, 8, 3), np.uint8), icc_profile=b"profile", exif=b"exif", source_format="tiff")
    enlarged = enlarge(given, Size(16, 16), network(), job)
    assert (enlarged.icc_profile, enlarged.exif, enlarged.source_format) == (b"profile", b"exif", "tiff")


def test_tiles_of_one_picture_have_one_shape_and_few_pictures_new_ones(job: Job) -> None:
    shapes: set[tuple[int, ...]] = set()

    def watched(tile: np.ndarray) -> np.ndarray:
        shapes.add(tile.shape)
        return nearest(tile)

    for width, height in ((300, 200), (301, 207), (50, 60), (17, 200)):
        before = len(shapes)
        enlarge(picture(Size(width, height)), Size(width, height), network(watched), job)
        assert len(shapes) <= before + 1
    assert all(side % SIDE_MULTIPLE == 0 and side <= 96 for shape in shapes for side in shape[2:])


def test_a_cancelled_call_ends_within_one_tile() -> None:
    tiles: list[int] = []
    job = Job(seed=0, previews=False, deadline=None, publish=lambda *_: None)

    def run(tile: np.ndarray) -> np.ndarray:
        tiles.append(1)
        if len(tiles) == 2:
            job.cancel()
        return nearest(tile)

    with pytest.raises(Cancelled):
        enlarge(picture(Size(400, 300)), Size(800, 600), network(run), job)
    assert len(tiles) == 2


def test_progress_is_told_in_tiles() -> None:
    told: list[tuple[int, int]] = []
    job = Job(
        seed=0,
        previews=False,
        deadline=None,
        publish=lambda field, message: told.append((message.step, message.step_count)),
    )
    enlarge(picture(Size(200, 100)), Size(400, 200), network(), job)
    count = told[0][1]
    assert count > 2
    assert told == [(done, count) for done in range(count + 1)]


def test_less_memory_means_smaller_tiles() -> None:
    assert largest_tile(X4PLUS, 512 << 20, on_cpu=True) == 128
    assert largest_tile(X4PLUS, 128 << 20, on_cpu=True) == 80
    assert largest_tile(X4PLUS, 1, on_cpu=True) == 2 * X4PLUS.overlap + 16
    assert largest_tile(X4PLUS, 4 << 30, on_cpu=False) == 512


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lanczos_at_scale_1_changes_nothing(job: Job, channels: int, dtype: type) -> None:
    given = picture(Size(33, 21), channels, dtype)
    assert np.array_equal(Lanczos().upscale(given, given.size, job, memory_bytes=1).pixels, given.pixels)


def test_sixteen_bit_pictures_run_in_fp32_where_the_model_runs_in_bf16() -> None:
    bf16 = Placement("cpu", "bf16", "openvino", "auto", 2)
    assert ANIMEVIDEO.placement_for(bf16, 8) is bf16
    assert ANIMEVIDEO.placement_for(bf16, 16).precision == "fp32"
    assert "16 bits" in ANIMEVIDEO.placement_for(bf16, 16).reason


def test_models_are_named_as_their_cards_say() -> None:
    assert {name: source.CARD.name for name, source in MODELS.items()} == {name: name for name in MODELS}
    assert {source.CARD.task for source in MODELS.values()} == {"upscale"}
