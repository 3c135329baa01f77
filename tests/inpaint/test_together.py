"""Several calls' parts through one model at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from limner.core.errors import Cancelled, DeadlineExceeded, OutOfMemory
from limner.core.geometry import Box
from limner.core.picture import Picture, Pixels
from limner.inpaint.filler import Options, Part, Window
from limner.inpaint.strategy import Strategy, inpaint, plan, steps
from limner.inpaint.together import Wanted, fill_together
from limner.runtime.job import Job

T = TypeVar("T")
WINDOW = Window(64, 32, context=3.0, least=32, step=8, most_at_once=4)


@dataclass
class Network:
    """Fills with a mean, and remembers how many parts it was given at once."""

    before: Callable[[Sequence[Part], Callable[[float], None]], None] = lambda parts, progress: None
    runs: list[tuple[int, ...]] = field(default_factory=list)  # the number of parts, and their shape

    def fill(self, parts: Sequence[Part], progress: Callable[[float], None]) -> list[Pixels]:
        assert len({part.pixels.shape for part in parts}) == 1
        self.runs.append((len(parts), *parts[0].pixels.shape))
        self.before(parts, progress)
        progress(1.0)
        return [np.full_like(part.pixels, part.pixels[~part.hole].mean()) for part in parts]


@dataclass
class Caller:
    """Takes what becomes of a call, and when."""

    results: list[Any] = field(default_factory=list)
    at: int = -1  # how many runs there had been
    network: Network = field(default_factory=Network)

    def within(self, function: Callable[[], T]) -> T:
        return function()

    def succeed(self, result: Picture) -> None:
        self.results.append(result)
        self.at = len(self.network.runs)

    def fail(self, error: Exception) -> None:
        self.succeed(error)  # type: ignore[arg-type]


def job() -> Job:
    return Job(seed=0, previews=False, deadline=None, publish=lambda field, message: None)


def mask_of(size: tuple[int, int], *boxes: Box) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    for box in boxes:
        mask[box.slices()] = 255
    return mask


def noise(size: tuple[int, int], seed: int = 0) -> Picture:
    return Picture(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def the_steps(picture: Picture, mask: np.ndarray, its_job: Job) -> Any:
    return steps(picture, mask, plan(mask, Strategy.AUTO, WINDOW), WINDOW, Options(), its_job)


SPOTS = [Box(20 + 100 * number, 20, 8, 8) for number in range(6)]


def test_a_calls_own_regions_are_filled_at_once() -> None:
    network = Network()
    mask = mask_of((80, 700), *SPOTS)
    picture = noise((80, 700))
    result = inpaint(picture, mask, plan(mask, Strategy.AUTO, WINDOW), network, WINDOW, Options(), job())
    assert network.runs == [(4, 32, 32, 3), (2, 32, 32, 3)]
    one_by_one = Window(64, 32, context=3.0, least=32, step=8)
    alone = inpaint(picture, mask, plan(mask, Strategy.AUTO, one_by_one), network, one_by_one, Options(), job())
    assert network.runs[2:] == [(1, 32, 32, 3)] * 6
    assert (result.pixels == alone.pixels).all()


def test_calls_share_runs_and_each_ends_with_its_own() -> None:
    network = Network()
    long, short = (Caller(network=network) for _ in range(2))
    picture = noise((80, 700))
    masks = mask_of((80, 700), *SPOTS), mask_of((80, 700), SPOTS[0])
    calls = [(caller, the_steps(picture, mask, job())) for caller, mask in zip((long, short), masks, strict=True)]
    fill_together(network, 4, calls)
    assert [run[0] for run in network.runs] == [4, 3]
    assert (short.at, long.at) == (1, 2), "the short call waited for the long one"
    for caller, mask in zip((long, short), masks, strict=True):
        alone = inpaint(picture, mask, plan(mask, Strategy.AUTO, WINDOW), network, WINDOW, Options(), job())
        assert (caller.results[0].pixels == alone.pixels).all()


def test_only_parts_of_one_shape_and_depth_share_a_run() -> None:
    network, callers = Network(), [Caller() for _ in range(3)]
    mask = mask_of((200, 200), Box(20, 20, 8, 8))
    deep = Picture(noise((200, 200)).pixels.astype(np.uint16))
    grey = Picture(noise((200, 200)).pixels[:, :, :1].copy())
    pictures = (noise((200, 200)), deep, grey)
    fill_together(
        network, 4, [(caller, the_steps(each, mask, job())) for caller, each in zip(callers, pictures, strict=True)]
    )
    assert sorted(network.runs) == [(1, 32, 32, 1), (1, 32, 32, 3), (1, 32, 32, 3)]
    assert [caller.results[0].pixels.dtype for caller in callers] == [np.uint8, np.uint16, np.uint8]


def test_a_call_that_ends_in_the_middle_drops_out_and_the_others_go_on() -> None:
    gone, stays = job(), job()
    callers = [Caller(), Caller()]

    def leave(parts: Sequence[Part], progress: Callable[[float], None]) -> None:
        if len(network.runs) == 2:
            gone.cancel()
            progress(0.5)  # does not raise: the other call is still there
            assert isinstance(callers[0].results[0], Cancelled), "it was to be told at once"

    network = Network(before=leave)
    scratch = mask_of((100, 400), Box(20, 20, 300, 6))  # many blocks, one after the other
    fill_together(
        network,
        4,
        [
            (caller, the_steps(noise((100, 400)), scratch, each))
            for caller, each in zip(callers, (gone, stays), strict=True)
        ],
    )
    assert [run[0] for run in network.runs][:3] == [2, 2, 1]
    assert isinstance(callers[1].results[0], Picture)


def test_a_run_ends_when_all_its_calls_are_over() -> None:
    jobs, callers, ended = [job(), job()], [Caller(), Caller()], []

    def leave(parts: Sequence[Part], progress: Callable[[float], None]) -> None:
        jobs[0].cancel()
        progress(0.1)
        jobs[1].cancel()
        try:
            progress(0.2)
        except Exception:
            ended.append(True)
            raise

    network = Network(before=leave)
    mask = mask_of((100, 100), Box(20, 20, 8, 8))
    fill_together(
        network,
        4,
        [(caller, the_steps(noise((100, 100)), mask, its)) for caller, its in zip(callers, jobs, strict=True)],
    )
    assert ended == [True]
    assert all(isinstance(caller.results[0], Cancelled) and len(caller.results) == 1 for caller in callers)


def test_a_deadline_is_seen_also_of_a_call_that_waits_for_its_run() -> None:
    late = Job(seed=0, previews=False, deadline=time.monotonic() + 0.02, publish=lambda field, message: None)
    callers = [Caller(), Caller()]

    def slow(parts: Sequence[Part], progress: Callable[[float], None]) -> None:
        time.sleep(0.03)
        progress(0.5)
        assert isinstance(callers[1].results[0], DeadlineExceeded)

    network = Network(before=slow)
    masks = mask_of((200, 200), Box(20, 20, 8, 8)), mask_of((200, 200), Box(20, 20, 20, 20))
    jobs = job(), late
    fill_together(
        network,
        4,
        [
            (caller, the_steps(noise((200, 200)), mask, its))
            for caller, mask, its in zip(callers, masks, jobs, strict=True)
        ],
    )
    assert len(network.runs) == 1
    assert isinstance(callers[0].results[0], Picture)


def test_an_error_of_the_model_ends_the_calls_of_that_run_alone() -> None:
    callers = [Caller() for _ in range(3)]

    def fault(parts: Sequence[Part], progress: Callable[[float], None]) -> None:
        if parts[0].pixels.shape[0] == 32:
            raise ZeroDivisionError

    network = Network(before=fault)
    small, large = mask_of((200, 200), Box(20, 20, 8, 8)), mask_of((200, 200), Box(20, 20, 20, 20))
    fill_together(
        network,
        4,
        [
            (caller, the_steps(noise((200, 200)), mask, job()))
            for caller, mask in zip(callers, (small, large, small), strict=True)
        ],
    )
    assert [type(caller.results[0]) for caller in callers] == [ZeroDivisionError, Picture, ZeroDivisionError]


def test_memory_that_suffices_for_one_part_fills_all_of_them() -> None:
    def scarce(parts: Sequence[Part], progress: Callable[[float], None]) -> None:
        if len(parts) > 1:
            raise OutOfMemory("too many")

    network, callers = Network(before=scarce), [Caller(), Caller()]
    mask = mask_of((100, 100), Box(20, 20, 8, 8))
    fill_together(network, 4, [(caller, the_steps(noise((100, 100)), mask, job())) for caller in callers])
    assert [run[0] for run in network.runs] == [2, 1, 1]
    assert all(isinstance(caller.results[0], Picture) for caller in callers)


def test_calls_lead_in_turn_so_that_none_waits_for_anothers_end() -> None:
    """Three calls whose parts can't be filled together: a run each, again and again."""
    seen: list[int] = []

    def endless(side: int, count: int) -> Generator[Wanted, Mapping[int, Pixels], Picture]:
        part = Part(np.zeros((side, side, 3), np.uint8), np.eye(side, dtype=bool), Options())
        for _ in range(count):
            yield Wanted({0: part}, lambda share: None)
            seen.append(side)
        return noise((1, 1))

    fill_together(Network(), 4, [(Caller(), endless(side, 3)) for side in (4, 5, 6)])
    assert seen == [4, 5, 6] * 3


def test_progress_of_each_call_counts_its_own_parts() -> None:
    told: dict[int, list[tuple[int, int]]] = {0: [], 1: []}

    def teller(number: int) -> Job:
        def publish(field: str, message: Any) -> None:
            if message.stage == "inpaint":
                told[number].append((message.step, message.step_count))

        return Job(seed=0, previews=False, deadline=None, publish=publish)

    masks = mask_of((80, 700), *SPOTS), mask_of((80, 700), SPOTS[0])
    fill_together(
        Network(), 4, [(Caller(), the_steps(noise((80, 700)), masks[number], teller(number))) for number in (0, 1)]
    )
    assert told == {0: [(0, 6), (3, 6), (6, 6)], 1: [(0, 1), (1, 1)]}
