"""A device: one thread that works on one call at a time, and the bounded line of calls in front of it.

Everything but the work itself happens on the event loop, so nothing here needs a lock. First come, first served: the
call at the head of the line holds the device's next turn even while it is still being decoded. The first calls of the
line may be decoded ahead, no more, so that a long line holds requests and not pictures.

Calls whose work says that it may be done together (`Shared`) share a turn: those of the head's key that are decoded
join it, as many as fit. They overtake what stands between, but nobody's turn is put off by it: a call waits for as many
turns as there were calls in front of it, at most, and each of them does no more at once than a full one. A call that is
alone starts at once; one that others stand behind, which are still being decoded, waits a few milliseconds for them.
Knows no gRPC and nothing of what the work is.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from limner.core.errors import Overloaded, Stopping
from limner.runtime import telemetry
from limner.runtime.cpus import cpu_count

T = TypeVar("T")
G = TypeVar("G")

DECODED_AHEAD = 2  # calls at the head of the line that may be decoded before their turn, where none are done together
COMPANY_WAIT_S = 0.003  # how long a call waits for those behind it to be decoded, to be done together
OPEN_CALLS_PER_PLACE = 4  # calls that may be open for each place in the line: stalled readers hold results in memory
FIRST_GUESS_S = 1.0  # how long a call takes, as long as none has been seen
RETRY_AFTER_S = (0.1, 30.0)  # the least and the most that a refused caller is told to wait


class Seat(Generic[G]):
    """A call's part in a turn, on the device's thread: what is given, and where its result or error goes.

    The first outcome counts, and is handed over at once, also while the turn goes on for others.
    """

    def __init__(
        self, given: G, context: contextvars.Context, hand_over: Callable[[Any, Exception | None], None]
    ) -> None:
        self.given = given
        self._context = context
        self._hand_over: Callable[[Any, Exception | None], None] | None = hand_over

    def within(self, function: Callable[[], T]) -> T:
        """Call `function` with the context variables of the call's task."""
        return self._context.run(function)

    def succeed(self, result: Any) -> None:
        """End the call's part with a result."""
        self._end(result, None)

    def fail(self, error: Exception) -> None:
        """End the call's part with an error."""
        if isinstance(error, StopIteration):  # no future takes it, and the call would wait for ever
            error = RuntimeError("the work raised StopIteration")
        self._end(None, error)

    def _end(self, result: Any, error: Exception | None) -> None:
        hand_over, self._hand_over = self._hand_over, None  # an error's traceback may lead here
        if hand_over is not None:
            del self.given
            hand_over(result, error)


@dataclass(frozen=True)
class Shared(Generic[G]):
    """Work that several calls may do in one turn.

    Shared(given, work, key=("lama", 256, 256, 3), size=1, most=4)    # up to four such calls at once
    """

    given: G  # this call's part of it
    work: Callable[[Sequence[Seat[G]]], None]  # ends each seat as soon as it can; an error ends those left
    key: Hashable = None  # calls of one key can be done together; None: alone
    size: int = 1  # how much of `most` this call takes
    most: int = 1

    def has_room(self, taken: int, other: Shared[Any]) -> bool:
        """Say whether another call fits beside so much."""
        return self.key is not None and self.key == other.key and taken + other.size <= self.most


class Ticket:
    """A call's place in the line. `changed(position, eta)` is called whenever either is other than before."""

    def __init__(self, device: Device, changed: Callable[[int, float | None], None]) -> None:
        self.near = asyncio.Event()  # set once the call may be decoded
        self._device = device
        self._changed = changed
        self._position: int | None = None
        self._open = True
        self._turn: tuple[Shared[Any], contextvars.Context] | None = None  # once it is ready for it
        self._done: asyncio.Future[Any] | None = None  # while `run` waits

    async def run(self, function: Callable[[], T]) -> T:
        """Wait for the turn, run `function` on the device's thread, and return what it returns or raise as it does.

        A cancelled wait gives the turn up. What runs already runs on until it returns; only then comes the next."""
        result: T = await self.share(Shared(function, _alone))
        return result

    async def share(self, work: Shared[Any]) -> Any:
        """As `run`, but in a turn with others; returns this call's result as soon as the work tells it."""
        self._turn = work, contextvars.copy_context()  # of this task, whichever one gives it its turn
        self._done = asyncio.get_running_loop().create_future()
        self._device._dispatch()
        try:
            return await self._done
        finally:
            self._done = None  # whoever keeps the ticket keeps no picture

    def end(self) -> None:
        """Tell that the call is over, whatever became of it, as often as one likes. If it still waits, its place is
        given up and others move up; if it runs, it runs on."""
        if self._open:
            self._open = False
            self._device._end(self)

    def _tell(self, position: int, eta: float | None) -> None:
        if position != self._position:
            self._position = position
            self._changed(position, eta)


class Device:
    """Device("cpu", queue_limit=32): at most 32 calls wait, one runs; helpers decode and encode beside it.

    Where up to `most_at_once` calls share a turn, as many more are decoded ahead."""

    def __init__(
        self, name: str = "cpu", queue_limit: int = 32, helper_count: int | None = None, most_at_once: int = 1
    ) -> None:
        self.name = name
        self.queue_limit = queue_limit
        self._decoded_ahead = DECODED_AHEAD - 1 + most_at_once
        self._line: deque[Ticket] = deque()
        self._running = 0  # calls in the turn that is being done
        self._patience: asyncio.TimerHandle | None = None  # while the head waits for company
        self._running_since = 0.0
        self._mean_run_s: float | None = None
        self._open_calls = 0
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"limner-{name}")
        self._helpers = ThreadPoolExecutor(helper_count or cpu_count(), thread_name_prefix=f"limner-{name}-helper")
        telemetry.watch_device(self)

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        return len(self._line)

    @property
    def busy(self) -> bool:
        """Whether a call's work is on the device's thread."""
        return self._running > 0

    def admit(self, changed: Callable[[int, float | None], None]) -> Ticket:
        """Return a place at the end of the line. Raises Overloaded if the line is full, Stopping once closed."""
        if self._closed:
            raise Stopping("the server is stopping; try another one")
        # One more than may wait: the one that runs, or the head of the line that is being decoded for a free device.
        if (
            len(self._line) + self.busy > self.queue_limit
            or self._open_calls >= OPEN_CALLS_PER_PLACE * self.queue_limit
        ):
            raise Overloaded(
                f"{len(self._line)} calls wait for {self.name} already; try again later",
                retry_after=self._retry_after(),
            )
        self._open_calls += 1
        ticket = Ticket(self, changed)
        self._line.append(ticket)
        self._line_changed()
        return ticket

    async def help(self, function: Callable[[], T]) -> T:
        """Run `function` on one of the helper threads, with this task's context variables."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._helpers, context.run, _contained, function)

    def close(self) -> None:
        """Take no new calls and let the threads end once their work does. Waits for nothing."""
        self._closed = True
        telemetry.forget_device(self)
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._helpers.shutdown(wait=False, cancel_futures=True)

    def _dispatch(self, *, patient: bool = True) -> None:
        """Give the device to the head of the line and its company, if it is free and the head is ready."""
        if self.busy or not self._line or self._closed or self._line[0]._turn is None:
            return
        work, _ = self._line[0]._turn
        tickets, others_come = self._company(work)
        loop = asyncio.get_running_loop()
        if others_come and patient:
            self._patience = self._patience or loop.call_later(COMPANY_WAIT_S, self._out_of_patience)
            return
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self._running = len(tickets)
        self._running_since = time.monotonic()
        seats = [self._seated(ticket, loop) for ticket in tickets]
        telemetry.calls_at_once.record(len(seats), {"device": self.name})
        self._thread.submit(self._work, work.work, seats, loop)
        self._line_changed()

    def _out_of_patience(self) -> None:
        self._patience = None
        self._dispatch(patient=False)

    def _company(self, work: Shared[Any]) -> tuple[list[Ticket], bool]:
        """Return who is done together with the head, itself first, and whether somebody may yet become ready to."""
        tickets, taken, others_come = [self._line[0]], work.size, False
        if work.key is None or taken >= work.most:
            return tickets, False
        for ticket in itertools.islice(self._line, 1, self._decoded_ahead):
            if ticket._turn is None:
                others_come = True
            elif work.has_room(taken, ticket._turn[0]):
                tickets.append(ticket)
                taken += ticket._turn[0].size
        return tickets, others_come and taken < work.most

    def _seated(self, ticket: Ticket, loop: asyncio.AbstractEventLoop) -> Seat[Any]:
        """Take a call out of the line and give it a seat."""
        assert ticket._turn is not None
        (work, context), ticket._turn = ticket._turn, None
        self._line.remove(ticket)

        def hand_over(result: Any, error: Exception | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends and nobody waits
                loop.call_soon_threadsafe(_hand_over, ticket, result, error)

        return Seat(work.given, context, hand_over)

    def _work(
        self, work: Callable[[Sequence[Seat[Any]]], None], seats: list[Seat[Any]], loop: asyncio.AbstractEventLoop
    ) -> None:
        """On the device's thread: do a turn's work."""
        try:
            _contained(lambda: work(seats))
        except Exception as error:
            for seat in seats:
                seat.fail(error)
        seats.clear()
        with contextlib.suppress(RuntimeError):  # as above
            loop.call_soon_threadsafe(self._finished)

    def _finished(self) -> None:
        seconds = (time.monotonic() - self._running_since) / self._running
        self._mean_run_s = seconds if self._mean_run_s is None else 0.7 * self._mean_run_s + 0.3 * seconds
        self._running = 0
        self._line_changed()
        self._dispatch()

    def _end(self, ticket: Ticket) -> None:
        self._open_calls -= 1
        if ticket in self._line:
            self._line.remove(ticket)
            self._line_changed()
            self._dispatch()

    def _line_changed(self) -> None:
        """Tell every waiting call where it stands, and let the first ones be decoded."""
        for index, ticket in enumerate(self._line):
            if index < self._decoded_ahead:
                ticket.near.set()
            ticket._tell(index + self.busy, self._eta(index))

    def _eta(self, ahead: int) -> float | None:
        """Return the estimated wait in seconds behind `ahead` waiting calls, or None with nothing to go by."""
        if self._mean_run_s is None:
            return None
        running = self._mean_run_s * self._running - (time.monotonic() - self._running_since) if self.busy else 0.0
        return max(running, 0.0) + ahead * self._mean_run_s

    def _retry_after(self) -> float:
        """Return when a refused caller should come again, in seconds.

        One place becomes free after one run, but all who are refused now would come for it. So they are spread over
        the time in which the line empties by half.
        """
        wait = self._eta(len(self._line)) or FIRST_GUESS_S
        low, high = RETRY_AFTER_S
        return min(max(random.uniform(0.25, 0.5) * wait, low), high)


def _alone(seats: Sequence[Seat[Callable[[], Any]]]) -> None:
    """Work of one call: its function."""
    for seat in seats:
        seat.succeed(seat.within(seat.given))


def _hand_over(ticket: Ticket, result: Any, error: Exception | None) -> None:
    """On the event loop: let the call go on."""
    if ticket._done is not None and not ticket._done.done():
        if error is None:
            ticket._done.set_result(result)
        else:
            ticket._done.set_exception(error)


def _contained(function: Callable[[], T]) -> T:
    """Call `function` and let nothing out but ordinary exceptions: a library's SystemExit would end the server, and a
    StopIteration or CancelledError would leave the call waiting for ever."""
    try:
        return function()
    except StopIteration as error:
        raise RuntimeError("the work raised StopIteration") from error
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"the work raised {error!r}") from error
