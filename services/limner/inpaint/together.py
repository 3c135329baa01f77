"""Several calls' parts through one model, as many of one shape at once as it takes.

A call is a set of steps that say which parts they want filled now and go on with what they get. Parts of all calls wait
in one place, and every run takes those of one shape: calls lead in turn, and the others' parts fill up the run, so that
none waits for another's end. A call that is over drops out; an error of the model ends the calls of that run alone.
Knows no masks, no strategy and nothing of what calls do with their fills.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

from limner.core.errors import OutOfMemory
from limner.core.picture import Picture, Pixels
from limner.inpaint.filler import Filler, Part

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """What a call needs before it can go on."""

    parts: Mapping[int, Part]  # by any key; they don't depend on each other
    progress: Callable[[float], None]  # takes a run's share done, in [0, 1]; raises once the call is over


_NOTHING = Wanted({}, lambda share: None)

Steps: TypeAlias = Generator[Wanted, Mapping[int, Pixels], Picture]  # is sent some of the fills wanted, by their keys


class Call(Protocol):
    """Who the steps belong to."""

    def within(self, function: Callable[[], T]) -> T:
        """Return `function()`, called in what surrounds the call, such as its trace."""
        ...

    def succeed(self, result: Picture) -> None:
        """Take the call's result."""
        ...

    def fail(self, error: Exception) -> None:
        """Take the error that the call ended with."""
        ...


def fill_together(model: Filler, most_at_once: int, calls: Sequence[tuple[Call, Steps]]) -> None:
    """Carry out the calls' steps to their ends, and tell each call as soon as its own is reached. Raises nothing."""
    line = deque(_Going(call, steps) for call, steps in calls)
    for each in line:
        each.advance(None)
    while going := [each for each in line if not each.over]:
        line = deque(going)
        _run(model, most_at_once, going)
        line.rotate(-1)


class _Going:
    """A call on its way. One that is over holds nothing: its error's traceback leads here, and would hold pictures."""

    def __init__(self, call: Call, steps: Steps) -> None:
        self._call: Call | None = call
        self._steps = steps
        self.wanted = _NOTHING

    @property
    def over(self) -> bool:
        """Whether the call has its result, or its error."""
        return self._call is None

    def advance(self, fills: Mapping[int, Pixels] | None) -> None:
        """Give the steps what they wanted; None to begin."""
        if self._call is None:
            return
        try:
            self.wanted = self._call.within(lambda: next(self._steps) if fills is None else self._steps.send(fills))
        except StopIteration as end:
            self._ended().succeed(end.value)
        except Exception as error:
            self._ended().fail(error)

    def tell(self, share: float) -> None:
        """Tell how far the run is, which is when a call that is over is found out."""
        try:
            self.wanted.progress(share)
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """End the call with an error, unless it is over."""
        if self._call is not None:
            self._call.within(self._steps.close)
            self._ended().fail(error)

    def _ended(self) -> Call:
        call, self._call, self.wanted = self._call, None, _NOTHING
        assert call is not None
        return call


def _run(model: Filler, most_at_once: int, going: Sequence[_Going]) -> None:
    """Fill the parts of one shape, those of the first call, and hand them out."""
    chosen = _chosen(going, most_at_once)
    theirs = {id(each): each for each, _, _ in chosen}.values()

    def progress(share: float) -> None:
        for each in going:
            each.tell(share if each in theirs else 0.0)
        if all(each.over for each in theirs):
            raise _EverybodyLeft

    try:
        fills = _filled(model, [part for _, _, part in chosen], progress)
    except Exception as error:
        for each in theirs:
            each.fail(error)
        return
    for each in theirs:
        its = zip(chosen, fills, strict=True)
        each.advance({key: filled for (owner, key, _), filled in its if owner is each})


def _filled(model: Filler, parts: Sequence[Part], progress: Callable[[float], None]) -> list[Pixels]:
    """Return the parts' fills; one by one where memory does not suffice for all at once."""
    try:
        return model.fill(parts, progress)
    except OutOfMemory:
        if len(parts) == 1:
            raise
        return [filled for part in parts for filled in model.fill([part], progress)]


class _EverybodyLeft(Exception):
    """Ends a run whose calls are all over."""


def _chosen(going: Sequence[_Going], most: int) -> list[tuple[_Going, int, Part]]:
    """Return at most so many parts of one shape, one of each call before a second of any."""
    shape = next(_kind(part) for part in going[0].wanted.parts.values())
    ranked = [
        (rank, each, key, part)
        for each in going
        for rank, (key, part) in enumerate(
            (key, part) for key, part in each.wanted.parts.items() if _kind(part) == shape
        )
    ]
    ranked.sort(key=lambda entry: entry[0])
    return [(each, key, part) for _, each, key, part in ranked[:most]]


def _kind(part: Part) -> tuple[object, ...]:
    return part.pixels.shape, part.pixels.dtype
