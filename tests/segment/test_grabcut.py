"""The `grabcut` model on scenes whose masks are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from limner.core.errors import Cancelled
from limner.core.geometry import Box, Size
from limner.core.mask import bounds
from limner.core.picture import Picture
from limner.runtime.job import Job
from limner.segment.adapter import Prompt
from limner.segment.scene import DETAIL_SIDE, look
from limner.segment.segmenter import GrabCut
from tests.segment.known import KnownScene, make_scene, overlap


def points(*xy: tuple[float, float]) -> NDArray[np.float64]:
    return np.array(xy, np.float64).reshape(-1, 2)


def segment(picture: Picture, prompt: Prompt, job: Job) -> NDArray:
    model = GrabCut()
    return model.decode(model.encode(picture, job), picture.size, prompt, job).mask


def two_discs() -> tuple[Picture, NDArray, NDArray]:
    """Two like discs on grey, and the mask of each."""
    yy, xx = np.mgrid[0:240, 0:360]
    left, right = np.hypot(xx - 100, yy - 120) < 50, np.hypot(xx - 250, yy - 110) < 45
    pixels = np.where((left | right)[..., None], (40, 90, 200), (200, 195, 180))
    noise = np.random.Generator(np.random.PCG64(1)).normal(0, 4, pixels.shape)
    return Picture(np.clip(pixels + noise, 0, 255).astype(np.uint8)), left, right


@pytest.mark.parametrize(("kind", "at_least"), [("disc", 0.97), ("striped", 0.9), ("dull", 0.95), ("framed", 0.95)])
def test_one_click_finds_the_object(kind: str, at_least: float, job: Job) -> None:
    scene = make_scene(kind)
    assert overlap(segment(scene.picture, Prompt(points(scene.click)), job), scene.mask) >= at_least


@pytest.mark.parametrize("kind", ["disc", "striped", "dull", "framed"])
def test_a_box_finds_the_object(kind: str, job: Job) -> None:
    scene = make_scene(kind)
    box = bounds(scene.mask.astype(np.uint8))
    assert box is not None
    around = box.grown(6, scene.picture.size)
    assert overlap(segment(scene.picture, Prompt(boxes=(around,)), job), scene.mask) >= 0.93


def test_a_mask_is_black_and_white_and_of_the_pictures_size(job: Job) -> None:
    scene = make_scene("disc", 301, 199)
    mask = segment(scene.picture, Prompt(points(scene.click)), job)
    assert mask.shape == (199, 301)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 255}


def test_the_same_prompt_gives_the_same_mask(job: Job) -> None:
    scene = make_scene("striped")
    prompt = Prompt(points(scene.click), points((5, 5)))
    first = segment(scene.picture, prompt, job)
    segment(make_scene("dull").picture, Prompt(points((160, 120))), job)  # other work in between leaves no trace
    assert np.array_equal(first, segment(scene.picture, prompt, job))


def test_a_click_means_one_of_two_like_things(job: Job) -> None:
    picture, left, right = two_discs()
    assert overlap(segment(picture, Prompt(points((100, 120))), job), left) > 0.97
    assert overlap(segment(picture, Prompt(points((250, 110))), job), right) > 0.97


def test_two_clicks_mean_both_things(job: Job) -> None:
    picture, left, right = two_discs()
    assert overlap(segment(picture, Prompt(points((100, 120), (250, 110))), job), left | right) > 0.97


def test_two_boxes_give_the_union(job: Job) -> None:
    picture, left, right = two_discs()
    prompt = Prompt(boxes=(Box(44, 64, 112, 112), Box(199, 59, 102, 102)))
    assert overlap(segment(picture, prompt, job), left | right) > 0.97


def test_a_negative_click_removes_what_it_is_on(job: Job) -> None:
    """A disc whose right half is another colour: a click on the left, then one that excludes the right."""
    yy, xx = np.mgrid[0:240, 0:320]
    disc = np.hypot(xx - 160, yy - 120) < 70
    pixels = np.where(disc[..., None], np.where((xx < 160)[..., None], (200, 60, 50), (210, 110, 40)), (60, 70, 90))
    picture = Picture(pixels.astype(np.uint8))
    mask = segment(picture, Prompt(points((125, 120)), points((195, 120))), job)
    assert overlap(mask, disc & (xx < 160)) > 0.93
    assert mask[120, 195] == 0


def test_clicked_pixels_obey(job: Job) -> None:
    scene = make_scene("striped")
    x, y = scene.click
    prompt = Prompt(points(scene.click), points((x + 15, y)))
    mask = segment(scene.picture, prompt, job)
    assert mask[int(y), int(x)] == 255
    assert mask[int(y), int(x) + 15] == 0


def test_a_large_picture_is_cut_at_its_own_edges(job: Job) -> None:
    """Larger than the detail copy, so that every scale is passed."""
    scene = make_scene("disc", DETAIL_SIDE + 402, 1650)
    mask = segment(scene.picture, Prompt(points(scene.click)), job)
    assert mask.shape == scene.mask.shape
    assert overlap(mask, scene.mask) > 0.985


def test_the_embedding_tells_its_size(job: Job) -> None:
    scene = look(make_scene("disc").picture.rgb8(), job.check)
    assert scene.size_bytes > scene.detail.nbytes
    assert scene.size_bytes < 12 << 20


def test_the_embedding_does_not_hold_the_requests_pixels(job: Job) -> None:
    picture = make_scene("disc").picture
    assert not np.shares_memory(GrabCut().encode(picture, job).detail, picture.pixels)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 9), (3, 3), (17, 5), (40, 40)])
def test_tiny_pictures_are_taken(size: tuple[int, int], job: Job) -> None:
    width, height = size
    pixels = np.random.Generator(np.random.PCG64(3)).integers(0, 256, (height, width, 3), np.uint8)
    for prompt in (Prompt(points((0, 0))), Prompt(boxes=(Box(0, 0, width, height),))):
        assert segment(Picture(pixels), prompt, job).shape == (height, width)


def test_a_flat_picture_is_taken(job: Job) -> None:
    assert segment(Picture(np.full((60, 80, 3), 90, np.uint8)), Prompt(points((40, 30))), job).any()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_any_channels_and_depth(channels: int, dtype: type, job: Job) -> None:
    scene: KnownScene = make_scene("disc")
    maximum = int(np.iinfo(dtype).max)
    rgb = scene.picture.pixels.astype(np.uint32) * (maximum // 255)
    colour = rgb if channels > 2 else np.where(scene.mask, maximum * 7 // 8, maximum // 3)[..., None]
    alpha = np.full((*scene.mask.shape, 1), maximum // 2)
    pixels = np.concatenate([colour, alpha], axis=2) if channels in (2, 4) else colour
    mask = segment(Picture(np.ascontiguousarray(pixels.astype(dtype))), Prompt(points(scene.click)), job)
    assert overlap(mask, scene.mask) > 0.95


def test_a_cancelled_call_ends_between_steps() -> None:
    calls = 0

    def publish(field: str, message: object) -> None:
        pass

    job = Job(seed=0, previews=False, deadline=None, publish=publish)
    checks: list[int] = []

    def check() -> None:
        nonlocal calls
        calls += 1
        checks.append(calls)
        if calls == 2:
            job.cancel()
        job.check()

    with pytest.raises(Cancelled):
        look(make_scene("disc").picture.rgb8(), check)
    assert checks == [1, 2]


def test_decode_refuses_another_models_embedding(job: Job) -> None:
    class Other:
        size_bytes = 1

    with pytest.raises(TypeError, match="Other"):
        GrabCut().decode(Other(), Size(4, 4), Prompt(points((1, 1))), job)
