"""What a network is given of parts, and what of its answer comes back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from limner.core.errors import Cancelled
from limner.engine.session import Check, Session
from limner.inpaint.filler import Options, Part
from limner.inpaint.network import ImageMaskFiller


class Recorder(Session):
    """Answers with `answer(image, mask)`, and remembers what it was given."""

    def __init__(self, answer: Any = lambda image, mask: image) -> None:
        self.input_names, self.output_names = ["image", "mask"], ["filled"]
        self._answer = answer
        self.given: list[dict[str, NDArray[Any]]] = []

    def _run(self, inputs: dict[str, NDArray[Any]], check: Check | None) -> list[NDArray[Any]]:
        assert check is not None
        check()
        self.given.append(inputs)
        return [self._answer(inputs["image"], inputs["mask"]).astype(np.float32)]


def never(share: float) -> None:
    """The check of calls that are never over."""


def part_of(height: int, width: int, channels: int = 3, dtype: type = np.uint8, seed: int = 0) -> Part:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype=dtype, endpoint=True)
    hole = np.zeros((height, width), np.bool_)
    hole[height // 3 : height // 2 + 1, width // 3 : width // 2 + 1] = True
    return Part(pixels, hole, Options())


@pytest.mark.parametrize(
    ("settings", "size", "seen"),
    [
        ({"multiple": 8}, (37, 50), (40, 56)),
        ({"multiple": 8, "least": 16}, (3, 40), (16, 40)),
        ({"multiple": 8, "least": 16}, (1, 2), (16, 16)),
        ({"square": 64}, (64, 20), (64, 64)),
        ({}, (7, 9), (7, 9)),
    ],
)
def test_sides_are_filled_up_by_reflection(
    settings: dict[str, int], size: tuple[int, int], seen: tuple[int, int]
) -> None:
    session, part = Recorder(), part_of(*size)
    (filled,) = ImageMaskFiller(session, **settings).fill([part], never)
    (given,) = session.given
    assert given["image"].shape == (1, 3, *seen)
    assert given["mask"].shape == (1, 1, *seen)
    beyond = [(0, seen[0] - size[0]), (0, seen[1] - size[1])]
    assert (np.rint(given["image"][0, 1] * 255) == np.pad(part.pixels[:, :, 1], beyond, mode="symmetric")).all()
    assert (given["mask"][0, 0] == np.pad(part.hole, beyond, mode="symmetric")).all()
    assert (filled == part.pixels).all()  # an answer that is what was given comes back to the bit, and cropped


def test_the_network_gets_rgb_in_zero_to_one_and_holes_as_one() -> None:
    session = Recorder()
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = 255, 51
    hole = np.zeros((8, 8), np.bool_)
    hole[2, 3] = True
    ImageMaskFiller(session).fill([Part(pixels, hole, Options())], never)
    given = session.given[0]
    assert given["image"].dtype == given["mask"].dtype == np.float32
    assert [channel.item() for channel in given["image"][0, :, 0, 0]] == pytest.approx([1.0, 0.0, 0.2])
    assert given["mask"].sum() == given["mask"][0, 0, 2, 3] == 1


def test_answers_are_clipped_and_rounded() -> None:
    levels = np.array([-0.2, 0.0, 100.4 / 255, 100.6 / 255, 1.3])
    session = Recorder(lambda image, mask: np.broadcast_to(levels, image.shape))
    (filled,) = ImageMaskFiller(session).fill([part_of(4, 5)], never)
    assert filled.dtype == np.uint8
    assert (filled == np.array([0, 0, 100, 101, 255])[None, :, None]).all()


def test_grey_is_seen_in_three_channels_and_comes_back_as_their_mean() -> None:
    offsets = np.array([-0.1, 0.0, 0.4])[:, None, None]
    session = Recorder(lambda image, mask: np.full_like(image, 0.5) + offsets)
    part = part_of(9, 11, channels=1)
    (filled,) = ImageMaskFiller(session, multiple=8).fill([part], never)
    given = session.given[0]["image"][0]
    assert (given[0] == given[1]).all()
    assert (given[0] == given[2]).all()
    assert filled.shape == (9, 11, 1)
    assert (filled == 153).all()  # 0.6


def test_sixteen_bits_come_back_within_the_step_that_eight_bits_say() -> None:
    part = part_of(20, 30, dtype=np.uint16)
    ramp = np.linspace(0.2, 0.3, 30)
    session = Recorder(lambda image, mask: np.broadcast_to(ramp, image.shape))
    (filled,) = ImageMaskFiller(session).fill([part], never)
    assert filled.dtype == np.uint16
    steps = np.rint(ramp * 255) * 257
    inside = filled[part.hole].astype(float) - np.broadcast_to(steps[None, :, None], filled.shape)[part.hole]
    assert np.abs(inside).max() <= 257 / 2 + 1
    assert np.abs(inside).max() > 0  # smoother than eight bits


def test_parts_go_in_one_run_and_come_back_in_order() -> None:
    session = Recorder()
    parts = [part_of(10, 12, seed=seed) for seed in range(3)]
    filled = ImageMaskFiller(session, multiple=8).fill(parts, never)
    assert len(session.given) == 1
    assert session.given[0]["image"].shape == (3, 3, 16, 16)
    assert all((fill == part.pixels).all() for fill, part in zip(filled, parts, strict=True))


def test_a_call_that_is_over_stops_the_run() -> None:
    def over(share: float) -> None:
        raise Cancelled("the caller has gone")

    session = Recorder()
    with pytest.raises(Cancelled):
        ImageMaskFiller(session).fill([part_of(8, 8)], over)
    assert not session.given


@pytest.mark.parametrize(("settings", "side"), [({"multiple": 8, "least": 16}, 256), ({"square": 512}, 512)])
def test_warming_up_runs_at_the_smallest_usual_size(settings: dict[str, int], side: int) -> None:
    session = Recorder()
    assert ImageMaskFiller(session, **settings).warm_up() == side * side
    (given,) = session.given
    assert given["image"].shape == (1, 3, side, side)
    assert 0 < given["mask"].mean() < 1
