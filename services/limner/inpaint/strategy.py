"""How much of a picture a model sees, and at what size: the whole, the whole reduced, or the neighbourhoods of holes.

`plan` decides and says why, from the mask alone; `inpaint` carries it out. A model's cost is that of what it sees, and
all other work here follows the holes, so that a small hole in a large picture costs what it costs in a small one.
Knows no particular model.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum
from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray

from limner.core.blend import blend
from limner.core.errors import BadMask
from limner.core.geometry import Box, Size, padding_to_multiple
from limner.core.mask import Mask, bounds, holes, merged, neighbourhoods
from limner.core.picture import Picture, Pixels
from limner.core.resample import resize
from limner.inpaint.detail import enlarged_with_detail
from limner.inpaint.filler import Filler, Options, Part, Window
from limner.inpaint.together import Steps, Wanted, fill_together
from limner.inpaint.windows import around, blocks, fill
from limner.runtime.job import Job

DEFAULT_MARGIN = 128
DEFAULT_RESIZE_LIMIT = 1280
_MOST = 0.5  # neighbourhoods of more than this part of a picture are not worth cutting out
_MOST_IN_CONTEXT = 0.75  # of networks, whose time goes with what they see and which have all the context they need


class Strategy(Enum):
    """What a request asks for."""

    AUTO = "auto"
    ORIGINAL = "original"
    RESIZE = "resize"
    CROP = "crop"


@dataclass(frozen=True)
class Region:
    """A part of the picture for the model, which sees it at `size`, or at its own where that is the same.

    Region(Box(100, 50, 400, 300), Size(400, 300))
    Region(Box(0, 0, 4000, 3000), Size(1280, 960))
    """

    box: Box
    size: Size

    @property
    def reduced(self) -> bool:
        """Whether the model sees it smaller than it is."""
        return self.size != self.box.size

    def part(self, window: Window) -> Size:
        """Return the size of the parts that it is filled in, of which there may be one."""
        return Size(min(self.size.width, window.side), min(self.size.height, window.side))


@dataclass(frozen=True)
class Plan:
    """The regions, which don't overlap and hold every hole, and why they are as they are."""

    regions: tuple[Region, ...]
    reason: str


def plan(
    mask: Mask, strategy: Strategy, window: Window, *, margin: int | None = None, resize_limit: int | None = None
) -> Plan:
    """Return what the model is to see.

    `mask` is (height, width) uint8. `window` is what the model works on in one step: `AUTO` cuts out neighbourhoods and
    reduces those that are larger. Their sides are `window.context` times the hole's, or more; without a context, and
    for `CROP` with a `margin`, it is the margin that counts, by default 128 pixels, and a quarter of the hole's longer
    side where that is more. `resize_limit` is the longer side for `RESIZE`, by default 1280.
    Raises BadMask for a mask that covers everything: there is nothing to fill from.
    """
    if mask.all():
        raise BadMask("the mask covers the whole picture; leave a part of it black to fill from", field="mask")
    size = Size(mask.shape[1], mask.shape[0])
    whole = Box(0, 0, size.width, size.height)
    if strategy is Strategy.ORIGINAL:
        return Plan((Region(whole, size),), f"original, as asked: the model sees {_sight(size, window)}")
    if strategy is Strategy.RESIZE:
        region = Region(whole, _reduced(size, resize_limit or DEFAULT_RESIZE_LIMIT))
        return Plan((region,), f"resize, as asked: the model sees {_words(region.size)} of {_words(size)}")
    reduces = strategy is Strategy.AUTO
    follows_context = window.context > 0 and (reduces or margin is None)
    if follows_context:
        regions = _in_context(mask, window, margin or 0, reduces=reduces)
    else:
        boxes = neighbourhoods(mask, lambda hole: _margin(hole, margin))
        sizes = [
            _reduced(box.size, window.side) if reduces and _is_bulky(mask, box, window) else box.size for box in boxes
        ]
        regions = [Region(box, seen) for box, seen in zip(boxes, sizes, strict=True)]
    sight = f"; the model sees {_sights(regions)}, {window.context:g} times its hole or more" if follows_context else ""
    if strategy is Strategy.CROP:
        return Plan(tuple(regions), f"crop, as asked: {_count(regions)} at full size{sight}")
    part = sum(region.box.area for region in regions) / size.pixels
    if part > (_MOST_IN_CONTEXT if follows_context else _MOST) and max(size.width, size.height) <= window.side:
        why = f"auto: original, since the holes' neighbourhoods are {part:.0%} of {_words(size)}"
        return Plan((Region(whole, size),), why)
    why = f"auto: crop, {_count(regions)}, {max(part, 0.001):.1%} of {_words(size)}{sight}"
    if bulky := sum(region.reduced for region in regions):
        why += f"; reduced to {window.side} for the model: {bulky}, whose holes are large"
    return Plan(tuple(regions), why)


def _in_context(mask: Mask, window: Window, margin: int, *, reduces: bool) -> list[Region]:
    """Return neighbourhoods whose sides are `window.context` times their hole's, and `margin` around it, or more.

    Merged ones grow to the next step again, and may touch others by that, so it goes on until they lie apart.
    """
    size = Size(mask.shape[1], mask.shape[0])
    boxes = [around(hole, _wanted(hole, window, margin), size) for hole in holes(mask)]
    grown: dict[Box, Region] = {}  # what did not merge stays as it is
    while True:
        regions = [grown.get(box) or _grown(mask, box, window, reduces=reduces) for box in merged(boxes)]
        if [region.box for region in regions] == boxes:
            return regions
        grown = {region.box: region for region in regions}
        boxes = list(grown)


def _grown(mask: Mask, box: Box, window: Window, *, reduces: bool) -> Region:
    """Return a neighbourhood grown to the next step, and reduced where its hole is too large for the window."""
    size = Size(mask.shape[1], mask.shape[0])
    box = around(box, padding_to_multiple(box.size, window.step, window.least), size)
    bulky = reduces and _is_bulky(mask, box, window)
    return _reduced_region(box, window, size) if bulky else Region(box, box.size)


def _wanted(hole: Box, window: Window, margin: int) -> Size:
    width, height = (max(ceil(window.context * side), side + 2 * margin) for side in (hole.width, hole.height))
    return Size(width, height)


def _reduced_region(box: Box, window: Window, size: Size) -> Region:
    """Return a neighbourhood that is reduced to the window, and grown before so that its shorter side, reduced, is a
    multiple of the step too, as far as the picture goes."""
    factor = window.side / max(box.width, box.height)

    def side(now: int, most: int) -> tuple[int, int]:
        """Return a side's length in the picture, and that which the model sees."""
        seen = ceil(now * factor / window.step - 1e-6) * window.step
        length = max(now, int(seen / factor + 1e-6))
        return (length, seen) if length <= most else (most, max(1, round(most * factor)))

    (width, seen_width), (height, seen_height) = side(box.width, size.width), side(box.height, size.height)
    return Region(around(box, Size(width, height), size), Size(seen_width, seen_height))


def _is_bulky(mask: Mask, box: Box, window: Window) -> bool:
    """Say whether a hole is too large to be filled at full size: block by block it would lose its structure.

    Long thin ones, such as scratches, are not: every block has known pixels on both sides.
    """
    if max(box.width, box.height) <= window.side:
        return False
    hole = (mask[box.slices()] > 0).astype(np.uint8)
    thickness = 2 * float(cv2.distanceTransform(hole, cv2.DIST_L2, cv2.DIST_MASK_3).max())
    return thickness > window.block / 2


def _margin(hole: Box, asked: int | None) -> int:
    """Return how far around a hole the model sees. At least a pixel: one must be known."""
    return max(DEFAULT_MARGIN, max(hole.width, hole.height) // 4) if asked is None else max(asked, 1)


def _reduced(size: Size, limit: int) -> Size:
    return size.scaled(min(1.0, limit / max(size.width, size.height)))


def _sights(regions: list[Region]) -> str:
    """Return the least and the most that the model sees in words."""
    sizes = sorted({region.size for region in regions}, key=lambda size: size.pixels)
    return " to ".join(_words(size) for size in (sizes if len(sizes) < 3 else (sizes[0], sizes[-1])))


def _words(size: Size) -> str:
    return f"{size.width} × {size.height}"


def _sight(size: Size, window: Window) -> str:
    if max(size.width, size.height) <= window.side:
        return "the whole picture"
    seen = Size(min(size.width, window.side), min(size.height, window.side))
    return f"{_words(seen)} of {_words(size)} at a time, as that is the most it takes"


def _count(regions: list[Region]) -> str:
    return "1 neighbourhood" if len(regions) == 1 else f"{len(regions)} neighbourhoods"


def inpaint(
    picture: Picture, mask: Mask, plan: Plan, model: Filler, window: Window, options: Options, job: Job
) -> Picture:
    """Return the picture with what the mask covers filled; where the mask is 0 it is the same, alpha included.

    The model's hole is wherever the mask isn't 0. Where it is between 0 and 255, the fill is blended in.
    """
    alone = _Alone()
    fill_together(model, window.most_at_once, [(alone, steps(picture, mask, plan, window, options, job))])
    return alone.result()


class _Alone(Future[Picture]):
    """A call that is run where it is called."""

    within = staticmethod(lambda function: function())
    succeed = Future.set_result
    fail = Future.set_exception


def steps(picture: Picture, mask: Mask, plan: Plan, window: Window, options: Options, job: Job) -> Steps:
    """Return what `inpaint` does, for `fill_together`: the plan's regions want a part each, until they are filled."""
    pixels = picture.pixels.copy()
    seen = [_seen(picture, mask, region) for region in plan.regions]
    blocks_of = [blocks(hole, window) for _, hole in seen]
    regions = [
        fill(part, hole, its_blocks, window.side, options)
        for (part, hole), its_blocks in zip(seen, blocks_of, strict=True)
    ]
    fills: dict[int, Pixels] = {}
    wanted: dict[int, Part] = {}
    told = done = 0

    def go_on(index: int, filled: Pixels | None = None) -> None:
        wanted.pop(index, None)
        try:
            wanted[index] = next(regions[index]) if filled is None else regions[index].send(filled)
        except StopIteration as end:
            fills[index] = end.value

    with job.stage("inpaint", window.parts * sum(map(len, blocks_of))) as report:

        def progress(share: float) -> None:
            nonlocal told
            now = window.parts * done + min(int(window.parts * share), window.parts - 1)
            if now > told:
                told = now
                report(told)
            job.check()

        for index in range(len(regions)):
            go_on(index)
        while wanted:
            got = yield Wanted(dict(wanted), progress)
            for index, filled in got.items():
                go_on(index, filled)
            done += len(got)
            told = window.parts * done
            report(told)
    with job.stage("blend", len(fills)) as report:
        for done, (index, region) in enumerate(enumerate(plan.regions), start=1):
            _blend(pixels[region.box.slices()], fills[index], mask[region.box.slices()], window, job.check)
            report(done)
    return picture.with_pixels(pixels)


def _seen(picture: Picture, mask: Mask, region: Region) -> tuple[Pixels, NDArray[np.bool_]]:
    """Return what the model sees of a region: colours (height, width, 1 or 3), and where the hole is (height, width).

    Reducing weighs known pixels only, so that nothing of what is to go shines into what stays; a pixel is known if at
    least half of it was.
    """
    colours = picture.channels - picture.has_alpha
    part = picture.pixels[region.box.slices()][:, :, :colours]
    hole = mask[region.box.slices()] > 0
    if not region.reduced:
        return np.ascontiguousarray(part), hole
    known = np.where(hole, part.dtype.type(0), part.dtype.type(picture.maximum))[:, :, None]
    small = resize(np.concatenate([part, known], axis=2), region.size, method="area")
    weight = small[:, :, -1]
    return np.ascontiguousarray(small[:, :, :-1]), weight < min(picture.maximum // 2, int(weight.max()))


def _blend(pixels: Pixels, filled: Pixels, mask: Mask, window: Window, check: Callable[[], None]) -> None:
    """Blend a region's fill, which may be smaller, into its pixels, (height, width, channels), a view of the result."""
    covered = bounds(mask)
    if covered is not None:
        inside = covered.slices()
        if window.detail:
            shown = enlarged_with_detail(filled, pixels[:, :, : filled.shape[2]], mask > 0, covered, check)
        else:
            shown = resize(filled, Size(mask.shape[1], mask.shape[0]), method="cubic", part=covered)
        pixels[inside] = blend(Picture(pixels[inside]), shown, mask[inside]).pixels
