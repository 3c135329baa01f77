"""What the models see, and that nothing else of a picture changes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from limner.core.errors import BadMask, Cancelled
from limner.core.geometry import Box, Size
from limner.core.mask import holes
from limner.core.picture import Picture, Pixels
from limner.inpaint.filler import Filler, Options, Part, Window
from limner.inpaint.models import MODELS
from limner.inpaint.strategy import Plan, Region, Strategy, _blend, inpaint, plan
from limner.inpaint.windows import blocks
from limner.runtime.job import Job

Array = NDArray[Any]
NAMES = [name for name, source in MODELS.items() if not source.CARD.files]
WINDOW = Window(64, 32)


@dataclass
class Grey:
    """A model that fills with a mean, and remembers the shapes and holes it saw."""

    holes: list[NDArray[np.bool_]] = field(default_factory=list)

    def fill(self, parts: Sequence[Part], progress: Callable[[float], None]) -> list[Array]:
        for part in parts:
            assert part.hole.any()
            assert not part.hole.all(), "nothing to fill from"
            self.holes.append(part.hole)
        return [np.full_like(part.pixels, part.pixels[~part.hole].mean()) for part in parts]


def mask_of(size: tuple[int, int], *boxes: Box, value: int = 255) -> NDArray[np.uint8]:
    mask = np.zeros(size, np.uint8)
    for box in boxes:
        mask[box.slices()] = value
    return mask


def picture_of(height: int, width: int, channels: int = 3, dtype: type = np.uint8, seed: int = 0) -> Picture:
    random = np.random.default_rng(seed)
    return Picture(random.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype=dtype, endpoint=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strategy", list(Strategy))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_unmasked_pixels_are_bit_identical(
    name: str, strategy: Strategy, fillers: dict[str, Filler], job: Job, data: st.DataObject
) -> None:
    height, width = data.draw(st.integers(1, 60)), data.draw(st.integers(2, 80))
    channels, dtype = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([np.uint8, np.uint16]))
    picture = picture_of(height, width, channels, dtype, data.draw(st.integers(0, 99)))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    mask = np.where(random.random((height, width)) < data.draw(st.floats(0, 0.98)), 255, 0).astype(np.uint8)
    if data.draw(st.booleans()):
        mask = np.minimum(mask, random.integers(0, 256, mask.shape)).astype(np.uint8)  # soft
    mask.flat[0], mask.flat[-1] = 0, 255
    margin, limit = data.draw(st.none() | st.integers(0, 20)), data.draw(st.integers(8, 64))
    how = plan(mask, strategy, WINDOW, margin=margin, resize_limit=limit)
    filled = inpaint(picture, mask, how, fillers[name], WINDOW, Options(), job)
    assert filled.pixels.dtype == picture.pixels.dtype
    assert (filled.pixels[mask == 0] == picture.pixels[mask == 0]).all()
    if picture.has_alpha:
        assert (filled.pixels[:, :, -1] == picture.pixels[:, :, -1]).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_hidden_does_not_matter(
    name: str, strategy: Strategy, dtype: type, fillers: dict[str, Filler], job: Job
) -> None:
    mask = mask_of((70, 80), Box(30, 20, 19, 23))
    picture = picture_of(70, 80, 3, dtype)
    other = picture.pixels.copy()
    other[mask > 0] = np.iinfo(dtype).max
    how = plan(mask, strategy, WINDOW, margin=8, resize_limit=33)
    results = [inpaint(each, mask, how, fillers[name], WINDOW, Options(), job) for each in (picture, Picture(other))]
    assert (results[0].pixels == results[1].pixels).all()


def test_soft_masks_blend() -> None:
    picture = Picture(np.full((20, 20, 1), 100, np.uint8))
    job = Job(seed=0, previews=False, deadline=None, publish=lambda field, message: None)

    class White:
        def fill(self, parts: Sequence[Part], progress: Callable[[float], None]) -> list[Array]:
            return [np.full_like(part.pixels, 200) for part in parts]

    mask = mask_of((20, 20), Box(5, 5, 4, 4), value=51)
    result = inpaint(picture, mask, plan(mask, Strategy.CROP, WINDOW), White(), WINDOW, Options(), job)
    assert (result.pixels[5:9, 5:9] == 120).all()


def test_crop_merges_overlapping_neighbourhoods() -> None:
    mask = mask_of((500, 900), Box(100, 100, 10, 10), Box(150, 120, 10, 10), Box(700, 300, 10, 10))
    how = plan(mask, Strategy.CROP, WINDOW, margin=30)
    assert [region.box for region in how.regions] == [Box(70, 70, 120, 90), Box(670, 270, 70, 70)]
    assert "2 neighbourhoods" in how.reason


def test_crop_shows_128_pixels_around_and_more_around_large_holes() -> None:
    small, large = Box(1000, 1000, 40, 40), Box(600, 600, 1000, 700)
    for hole, margin in ((small, 128), (large, 250)):
        (region,) = plan(mask_of((2000, 2500), hole), Strategy.CROP, WINDOW).regions
        assert region.box == hole.grown(margin, Size(2500, 2000))


def test_a_margin_of_0_still_shows_a_known_pixel(job: Job) -> None:
    mask = mask_of((60, 60), Box(10, 10, 20, 20))
    grey = Grey()
    inpaint(picture_of(60, 60), mask, plan(mask, Strategy.CROP, WINDOW, margin=0), grey, WINDOW, Options(), job)
    assert len(grey.holes) == 1


def test_resize_reduces_the_longer_side_to_the_limit() -> None:
    mask = mask_of((300, 900), Box(10, 10, 20, 20))
    assert plan(mask, Strategy.RESIZE, WINDOW, resize_limit=300).regions == (
        Region(Box(0, 0, 900, 300), Size(300, 100)),
    )
    assert not plan(mask, Strategy.RESIZE, WINDOW).regions[0].reduced


@pytest.mark.parametrize("strategy", list(Strategy))
def test_a_mask_over_everything_is_refused(strategy: Strategy) -> None:
    with pytest.raises(BadMask, match="leave a part"):
        plan(np.full((9, 9), 3, np.uint8), strategy, WINDOW)


def test_auto_shows_the_whole_of_a_small_picture_and_the_neighbourhood_in_a_large_one() -> None:
    hole = Box(40, 40, 30, 30)
    small = plan(mask_of((110, 120), hole), Strategy.AUTO, WINDOW)
    assert small.regions == (Region(Box(0, 0, 120, 110), Size(120, 110)),)
    assert small.reason.startswith("auto: original")
    large = plan(mask_of((3000, 4000), hole), Strategy.AUTO, Window(512, 256))
    assert large.regions[0].box == hole.grown(128, Size(4000, 3000))
    assert large.reason.startswith("auto: crop")


def test_auto_reduces_bulky_holes_and_leaves_scratches_at_full_size() -> None:
    bulky = plan(mask_of((600, 600), Box(100, 100, 400, 300)), Strategy.AUTO, WINDOW, margin=20)
    assert bulky.regions[0].reduced
    assert max(bulky.regions[0].size.width, bulky.regions[0].size.height) == WINDOW.side
    assert "reduced to 128" in bulky.reason
    scratch = plan(mask_of((600, 600), Box(50, 300, 500, 4)), Strategy.AUTO, WINDOW, margin=20)
    assert not scratch.regions[0].reduced


@pytest.mark.parametrize("strategy", [Strategy.AUTO, Strategy.CROP])
def test_the_model_sees_no_more_of_a_large_picture_than_of_a_small_one(strategy: Strategy, job: Job) -> None:
    seen = []
    for height, width in ((1000, 1000), (3000, 4000)):
        grey, mask = Grey(), mask_of((height, width), Box(300, 300, 200, 200))
        picture = Picture(np.zeros((height, width, 3), np.uint8))
        window = Window(512, 256)
        inpaint(picture, mask, plan(mask, strategy, window), grey, window, Options(), job)
        seen.append(sum(hole.size for hole in grey.holes))
    assert seen[0] == seen[1] == 456 * 456


FREE = Window(64, 32, context=3.0, least=32, step=8)  # as LaMa's, which takes any size, but an eighth of it
FIXED = Window(32, 16, context=3.0, least=64, step=64)  # as those that take one size alone


def side_fits(side: int, picture: int, window: Window) -> bool:
    """Say whether a neighbourhood's side is one that the model's parts have, or all there is."""
    return side == picture or (side >= window.least and side % window.step == 0)


@pytest.mark.parametrize("window", [FREE, FIXED], ids=["free", "fixed"])
@pytest.mark.parametrize("strategy", [Strategy.AUTO, Strategy.CROP])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_networks_see_three_times_the_holes_side_in_parts_of_few_shapes(
    window: Window, strategy: Strategy, data: st.DataObject
) -> None:
    size = data.draw(st.tuples(st.integers(8, 700), st.integers(8, 700)))
    boxes = [
        Box(data.draw(st.integers(0, size[1] - 1)), data.draw(st.integers(0, size[0] - 1)), width, height)
        for width, height in data.draw(
            st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=4)
        )
    ]
    mask = mask_of(size, *boxes)
    mask[0, 0], mask[-1, -1] = 0, 255
    covered = np.zeros(size, int)
    how = plan(mask, strategy, window)
    for region in how.regions:
        box, seen = region.box, region.size
        assert min(box.x, box.y) >= 0
        assert box.right <= size[1]
        assert box.bottom <= size[0]
        covered[box.slices()] += 1
        if region.reduced:
            assert strategy is Strategy.AUTO
            assert max(seen.width, seen.height) == window.side
            assert box.width == size[1] or seen.width % window.step == 0
            assert box.height == size[0] or seen.height % window.step == 0
            factor = window.side / max(box.width, box.height)
            assert abs(seen.width - factor * box.width) < 1
            assert abs(seen.height - factor * box.height) < 1
        elif not how.reason.startswith("auto: original"):
            assert side_fits(box.width, size[1], window)
            assert side_fits(box.height, size[0], window)
    assert covered.max() == 1
    assert covered[mask > 0].all()
    for hole in holes(mask):
        (region,) = [region for region in how.regions if region.box.overlaps(hole)]
        assert region.box.width >= min(3 * hole.width, size[1])
        assert region.box.height >= min(3 * hole.height, size[0])


def test_a_reduced_neighbourhood_keeps_its_holes_proportions() -> None:
    hole = Box(300, 300, 50, 38)  # 150 × 114 are wanted, 152 × 120 in steps, which the model sees at 0.84
    (region,) = plan(mask_of((700, 700), hole), Strategy.AUTO, FREE).regions
    assert (region.size, region.box.size) == (Size(128, 104), Size(152, 123))


def test_a_neighbourhood_at_the_edge_is_moved_inwards_and_keeps_its_size() -> None:
    for hole in (Box(0, 0, 20, 20), Box(380, 280, 20, 20), Box(0, 280, 20, 20)):
        (region,) = plan(mask_of((300, 400), hole), Strategy.AUTO, FIXED).regions
        assert region == Region(Box(min(hole.x, 400 - 64), min(hole.y, 300 - 64), 64, 64), Size(64, 64))


def test_networks_see_a_picture_that_is_smaller_than_their_least_as_it_is() -> None:
    how = plan(mask_of((40, 50), Box(5, 5, 4, 4)), Strategy.AUTO, FIXED)
    assert how.regions == (Region(Box(0, 0, 50, 40), Size(50, 40)),)


def test_networks_are_shown_each_direction_of_a_scratch_by_its_own_side() -> None:
    (region,) = plan(mask_of((600, 900), Box(300, 300, 40, 4)), Strategy.AUTO, FREE).regions
    assert region.box.size == Size(120, 32)


def test_the_reason_says_what_a_network_sees() -> None:
    holes = [Box(100, 100, 20, 20), Box(300, 300, 40, 20)]
    assert "the model sees 64 × 64 to 120 × 64, 3 times its hole or more" in (
        plan(mask_of((600, 900), *holes), Strategy.AUTO, FREE).reason
    )


def test_a_margin_for_crop_is_obeyed_to_the_pixel_and_widens_what_auto_shows() -> None:
    mask = mask_of((600, 900), Box(300, 300, 20, 20))
    for window in (FREE, FIXED):
        assert plan(mask, Strategy.CROP, window, margin=5).regions[0].box == Box(295, 295, 30, 30)
    assert plan(mask, Strategy.AUTO, FREE, margin=50).regions[0].box == Box(250, 250, 120, 120)
    assert plan(mask, Strategy.AUTO, FREE, margin=5).regions[0].box.size == Size(64, 64)


def test_a_network_of_one_size_is_given_nothing_else(job: Job) -> None:
    mask = mask_of((1300, 1500), Box(30, 30, 20, 20), Box(300, 1100, 300, 9), Box(900, 300, 100, 150))
    grey = Grey()
    how = plan(mask, Strategy.AUTO, FIXED)
    assert [region.reduced for region in how.regions].count(True) == 1
    inpaint(picture_of(1300, 1500), mask, how, grey, FIXED, Options(), job)
    assert {hole.shape for hole in grey.holes} == {(64, 64)}


def test_every_step_of_a_network_shows_three_times_what_it_fills(job: Job) -> None:
    mask = mask_of((200, 1500), Box(100, 90, 1300, 9))
    for window in (FREE, FIXED):
        (region,) = plan(mask, Strategy.AUTO, window).regions
        steps = blocks(mask[region.box.slices()] > 0, window)
        assert len(steps) > 1
        assert all(3 * max(step.width, step.height) <= window.side for step in steps)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    x=st.integers(0, 200),
    y=st.integers(0, 200),
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    noise=st.booleans(),
)
@example(x=0, y=0, width=299, height=400, noise=False)
def test_large_holes_are_filled_in_bounded_steps_that_each_see_something_known(
    x: int, y: int, width: int, height: int, noise: bool, job: Job
) -> None:
    mask = mask_of((300, 301), Box(x, y, width, height))
    if noise:
        mask |= np.where(np.random.default_rng(x).random(mask.shape) < 0.5, 255, 0).astype(np.uint8)
    mask[-1, -1] = 0
    grey = Grey()
    picture = picture_of(300, 301)
    result = inpaint(picture, mask, plan(mask, Strategy.ORIGINAL, WINDOW), grey, WINDOW, Options(), job)
    assert all(max(hole.shape) <= WINDOW.side for hole in grey.holes)
    assert (result.pixels[mask == 0] == picture.pixels[mask == 0]).all()


def test_progress_counts_steps_and_a_cancelled_job_ends_after_one() -> None:
    mask = mask_of((400, 400), Box(20, 20, 360, 360))
    how = plan(mask, Strategy.ORIGINAL, WINDOW)
    told = []
    job = Job(seed=0, previews=False, deadline=None, publish=lambda field, message: told.append(message))
    inpaint(picture_of(400, 400), mask, how, Grey(), WINDOW, Options(), job)
    told = [message for message in told if message.stage == "inpaint"]
    assert [message.step for message in told] == list(range(37))
    assert {message.step_count for message in told} == {36}

    @dataclass
    class Cancelling(Grey):
        def fill(self, parts: Sequence[Part], progress: Callable[[float], None]) -> list[Array]:
            job.cancel()
            return super().fill(parts, progress)

    model = Cancelling()
    with pytest.raises(Cancelled):
        inpaint(picture_of(400, 400), mask, how, model, WINDOW, Options(), job)
    assert len(model.holes) == 1


def test_reduced_fills_are_clipped_not_wrapped(job: Job) -> None:
    """Enlarging by cubics overshoots at edges; the peer's fills wrapped around there."""
    stripes = np.where(np.arange(400)[None, :, None] // 20 % 2, 255, 0).astype(np.uint8)
    picture = Picture(np.repeat(np.repeat(stripes, 300, axis=0), 3, axis=2))

    class Truth:
        def fill(self, parts: Sequence[Part], progress: Callable[[float], None]) -> list[Array]:
            ((height, width, _),) = (part.pixels.shape for part in parts)
            columns = np.arange(width) * 400 / width
            return [
                np.broadcast_to(np.where(columns[None, :, None] // 20 % 2, 255, 0), (height, width, 3)).astype(np.uint8)
            ]

    mask = mask_of((300, 400), Box(100, 100, 200, 100))
    how = Plan((Region(Box(0, 0, 400, 300), Size(200, 150)),), "")
    result = inpaint(picture, mask, how, Truth(), Window(512, 256), Options(), job)
    middle = np.arange(400) % 20 == 10  # far from edges
    assert np.abs(result.pixels[:, middle].astype(int) - picture.pixels[:, middle]).max() < 10


def test_progress_within_a_step_is_told_in_parts_and_never_goes_back() -> None:
    told = []
    job = Job(seed=0, previews=False, deadline=None, publish=lambda field, message: told.append(message))

    class Telling(Grey):
        def fill(self, parts: Sequence[Part], progress: Callable[[float], None]) -> list[Array]:
            for share in (0.0, 0.1, 0.3, 0.3, 0.2, 1.0):
                progress(share)
            return super().fill(parts, progress)

    mask = mask_of((60, 60), Box(5, 5, 9, 9), Box(40, 40, 9, 9))
    window = Window(64, 32, parts=4)
    inpaint(picture_of(60, 60), mask, plan(mask, Strategy.CROP, window, margin=4), Telling(), window, Options(), job)
    told = [message for message in told if message.stage == "inpaint"]
    assert [message.step for message in told] == [0, 1, 3, 4, 5, 7, 8]
    assert {message.step_count for message in told} == {8}


def test_original_says_how_much_the_model_sees_at_a_time() -> None:
    hole = Box(40, 40, 30, 30)
    assert plan(mask_of((100, 120), hole), Strategy.ORIGINAL, WINDOW).reason.endswith("sees the whole picture")
    assert "sees 128 × 100 of 300 × 100 at a time" in plan(mask_of((100, 300), hole), Strategy.ORIGINAL, WINDOW).reason


def test_of_a_reduced_fill_only_what_the_mask_covers_is_enlarged() -> None:
    """A small hole in a large picture needs no second picture's memory."""
    pixels, mask = np.zeros((4000, 6000, 3), np.uint8), mask_of((4000, 6000), Box(1000, 1000, 50, 50))
    small = np.full((400, 600, 3), 7, np.uint8)
    _blend(pixels, small, mask, Window(64, 32), lambda: None)  # what is imported once
    tracemalloc.start()
    try:
        _blend(pixels, small, mask, Window(64, 32), lambda: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 0.8 * pixels.nbytes


def test_a_window_may_go_without_detail_from_elsewhere() -> None:
    random = np.random.default_rng(0)
    picture = Picture(random.integers(0, 256, (300, 300, 3)).astype(np.uint8))
    mask = np.zeros((300, 300), np.uint8)
    mask[100:200, 100:200] = 255

    class Grey:
        def fill(self, parts: Sequence[Part], progress: Callable[[float], None]) -> list[Pixels]:
            return [np.full_like(part.pixels, 128) for part in parts]

    spread = {}
    for detail in (True, False):
        window = Window(32, 32, context=3.0, least=96, step=32, detail=detail)
        job = Job(seed=0, previews=False, deadline=None, publish=lambda field, message: None)
        filled = inpaint(picture, mask, plan(mask, Strategy.AUTO, window), Grey(), window, Options(), job)
        spread[detail] = float(filled.pixels[120:180, 120:180].std())
    assert spread[True] > 10
    assert spread[False] == 0
