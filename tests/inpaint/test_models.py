"""Every model without weights by itself, on pictures whose continuation is known."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from limner.core.errors import Cancelled
from limner.inpaint.filler import Filler, Options, Part
from limner.inpaint.models import MODELS
from limner.inpaint.worker import share_done

NAMES = [name for name, source in MODELS.items() if not source.CARD.files]  # networks have tests of their own
DEFAULTS = Options()


def never(share: float) -> None:
    """The check of a call that is never over."""


def fill(
    filler: Filler,
    pixels: NDArray[Any],
    hole: NDArray[np.bool_],
    options: Options = DEFAULTS,
    progress: Callable[[float], None] = never,
) -> NDArray[Any]:
    """Return what a model makes of one part."""
    (filled,) = filler.fill([Part(pixels, hole, options)], progress)
    return filled


def hole_in(height: int, width: int, margin: int) -> NDArray[np.bool_]:
    hole = np.zeros((height, width), np.bool_)
    hole[margin : height - margin, margin : width - margin] = True
    return hole


def error(filled: NDArray[Any], truth: NDArray[Any], hole: NDArray[np.bool_]) -> float:
    return float(np.abs(filled[hole].astype(float) - truth[hole]).mean())


def mean_fill_error(truth: NDArray[Any], hole: NDArray[np.bool_]) -> float:
    return error(np.broadcast_to(truth[~hole].mean(axis=0), truth.shape), truth, hole)


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_goes_on_better_than_a_mean(name: str, fillers: dict[str, Filler]) -> None:
    ramp = np.linspace(20, 230, 80)[None, :, None] * np.array([1.0, 0.8, 0.5])
    truth = np.repeat(ramp, 60, axis=0).astype(np.uint8)
    hole = hole_in(60, 80, 24)
    assert error(fill(fillers[name], truth, hole), truth, hole) < mean_fill_error(truth, hole) / 3


@pytest.mark.parametrize("channels", [1, 3])
def test_patchmatch_continues_a_texture_that_the_classic_fills_blur(channels: int, fillers: dict[str, Filler]) -> None:
    y, x = np.mgrid[:96, :96]
    weave = np.where((x // 6 + y // 6) % 2, 200, 60)[:, :, None] + np.arange(channels) * 10
    truth = weave.astype(np.uint8)
    hole = hole_in(96, 96, 36)
    compared = ("patchmatch", "telea", "navier-stokes")
    of = {name: error(fill(fillers[name], truth, hole), truth, hole) for name in compared}
    assert 2 * of["patchmatch"] < min(of["telea"], of["navier-stokes"], mean_fill_error(truth, hole))


@pytest.mark.parametrize("name", NAMES)
def test_sixteen_bits_are_filled_with_sixteen(name: str, fillers: dict[str, Filler]) -> None:
    ramp = np.linspace(20_000, 24_000, 100)  # 16 steps of 8 bits, each over six pixels wide
    truth = np.repeat(np.repeat(ramp[None, :, None], 70, axis=0), 3, axis=2).astype(np.uint16)
    hole = hole_in(70, 100, 28)
    filled = fill(fillers[name], truth, hole)
    assert filled.dtype == np.uint16
    assert len(np.unique(filled[hole][:, 0])) > 2 * 16
    assert error(filled, truth, hole) < 400  # 1.5 steps of 8 bits


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_size_depth_and_hole_is_filled(name: str, fillers: dict[str, Filler], data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 20)), data.draw(st.integers(2, 20))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16]))
    shape = (height, width, data.draw(st.sampled_from([1, 3])))
    pixels = random.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    hole = random.random((height, width)) < data.draw(st.floats(0.05, 0.99))
    hole.flat[0], hole.flat[-1] = True, False
    pixels.flags.writeable = hole.flags.writeable = False
    options = Options(radius=data.draw(st.floats(1, 100)), seed=data.draw(st.integers(0, 2**64 - 1)))
    filled = fill(fillers[name], pixels, hole, options)
    assert filled.shape == pixels.shape
    assert filled.dtype == pixels.dtype


def test_patchmatch_gives_the_same_for_the_same_seed_and_another_for_another(fillers: dict[str, Filler]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    hole = hole_in(48, 48, 16)
    first, again, other = (fill(fillers["patchmatch"], noise, hole, Options(seed=s)) for s in (5, 5, 6))
    assert (first == again).all()
    assert (first != other).any()


def test_patchmatch_ends_in_the_middle_of_a_call(fillers: dict[str, Filler]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    hole = hole_in(700, 700, 150)  # many seconds of work
    raised = []

    def over(share: float) -> None:
        raised.append(time.monotonic())
        raise Cancelled("gone")

    with pytest.raises(Cancelled):
        fill(fillers["patchmatch"], noise, hole, Options(), over)
    assert time.monotonic() - raised[0] < 1
    small = noise[:30, :30]
    assert fill(fillers["patchmatch"], small, hole_in(30, 30, 10)).shape == small.shape


def test_patchmatch_survives_the_death_of_its_process(fillers: dict[str, Filler]) -> None:
    process = fillers["patchmatch"]._process  # type: ignore[attr-defined]
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)

    def crash(share: float) -> None:
        process._process.terminate()
        process._process.send_signal(11)

    with pytest.raises(RuntimeError, match="ended by itself"):
        fill(fillers["patchmatch"], noise, hole_in(400, 400, 100), Options(), crash)
    assert fill(fillers["patchmatch"], noise[:9, :9], hole_in(9, 9, 4)).shape == (9, 9, 3)


def test_patchmatch_tells_how_far_it_is_and_never_goes_back(fillers: dict[str, Filler]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    for _ in range(2):  # nothing of the first call is told in the second
        told: list[float] = []
        fill(fillers["patchmatch"], noise, hole_in(400, 400, 130), Options(), told.append)
        assert told == sorted(told)
        assert told[0] < 0.5
        assert 0.7 <= told[-1] <= 1
        assert len(set(told)) > 5


def test_the_share_done_rises_from_level_to_level_and_iteration_to_iteration() -> None:
    shares = [share_done(level, iteration) for level in range(8, -1, -1) for iteration in range(2 * level + 1)]
    assert shares == sorted(set(shares))
    assert 0 < shares[0] < 0.1
    assert 0.6 < shares[-1] < 1
