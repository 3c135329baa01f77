"""A device: one thread that works on one call at a time, and the bounded line of calls in front of it.

Everything but the work itself happens on the event loop, so nothing here needs a lock. First come, first served: the
call at the head of the line holds the device's next turn even while it is still being decoded. The first calls of the
line may be decoded ahead, no more, so that a long line holds requests and not pictures.

Calls whose work says that it may be done together (`Shared`) share a turn: those of the head's key that are decoded
join it, as many as fit. They overtake what stands between, but nobody's turn is put off by it: a call waits for as many
turns as there were calls in front of it, at most, and each of them does no more at once than a full one. A call that is
alone starts at once; one that others stand behind, which are still being decoded, waits a few milliseconds for them.

A turn may also stay open (`Open`): calls of its key that come to the head of the line join it while it goes on, as far
as they fit, and leave it as they end. None of them overtakes anybody: a head of another key closes the door by standing
in it, so that the turn runs out and the head gets its own.
Knows no gRPC and nothing of what the work is.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import random
import threading
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


class Intake(Generic[G]):
    """Where calls come into an open turn: filled by the event loop, emptied by the work at its own pace."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._come: list[Seat[G]] = []
        self._here: set[Seat[G]] = set()  # all that have not ended
        self._awake = False
        self._closed = False

    def take(self) -> list[Seat[G]]:
        """Return who has come since, in order, and take back what `wake` said."""
        with self._changed:
            come, self._come = self._come, []
            self._awake = False
            return come

    def wait(self, timeout: float | None = None) -> None:
        """Sleep until somebody has come, `wake` was called since the last `take`, or so many seconds are over."""
        with self._changed:
            self._changed.wait_for(lambda: self._come or self._awake, timeout)

    def wake(self) -> None:
        """Let `wait` return, from any thread."""
        with self._changed:
            self._awake = True
            self._changed.notify_all()

    def close(self) -> bool:
        """Let nobody in any more, unless somebody stands there already: then return False, and stay open."""
        with self._changed:
            self._closed = self._closed or not self._come
            return self._closed

    def _offer(self, seat: Seat[G]) -> bool:
        """On the event loop: let a call in, or return False if nobody may come in any more."""
        with self._changed:
            if self._closed:
                return False
            self._come.append(seat)
            self._here.add(seat)
            self._changed.notify_all()
            return True

    def _left(self, seat: Seat[G]) -> None:
        with self._changed:
            self._here.discard(seat)

    def _end(self, error: Exception) -> None:
        """On the device's thread, when the work has returned: close, and end those that it left."""
        with self._changed:
            self._closed = True
            self._come.clear()
            left = list(self._here)
        for seat in left:
            seat.fail(error)


@dataclass(frozen=True)
class Open(Generic[G]):
    """Work in a turn that calls join while it goes on.

    Open(given, work, key="steps", size=2, most=16)    # joins the turn of this key, or begins it
    """

    given: G
    work: Callable[[Intake[G]], None]  # of the call that begins the turn; returns once `Intake.close` has said True
    key: Hashable
    size: int = 1  # how much of `most` this call takes until it has ended
    most: int = 1


class Ticket:
    """A call's place in the line. `changed(position, eta)` is called whenever either is other than before."""

    def __init__(self, device: Device, changed: Callable[[int, float | None], None]) -> None:
        self.near = asyncio.Event()  # set once the call may be decoded
        self._device = device
        self._changed = changed
        self._position: int | None = None
        self._open = True
        self._turn: tuple[Shared[Any] | Open[Any], contextvars.Context] | None = None  # once it is ready for it
        self._done: asyncio.Future[Any] | None = None  # while `run` waits

    async def run(self, function: Callable[[], T]) -> T:
        """Wait for the turn, run `function` on the device's thread, and return what it returns or raise as it does.

        A cancelled wait gives the turn up. What runs already runs on until it returns; only then comes the next."""
        result: T = await self.share(Shared(function, _alone))
        return result

    async def share(self, work: Shared[Any] | Open[Any]) -> Any:
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
        self._going: _Going | None = None  # the turn that is being done, if it is open
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
        return self._running > 0 or self._going is not None

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
        return await asyncio.get_running_loop().run_in_executor(self._helpers, context.run, contained, function)

    def close(self) -> None:
        """Take no new calls and let the threads end once their work does. Waits for nothing."""
        self._closed = True
        telemetry.forget_device(self)
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._helpers.shutdown(wait=False, cancel_futures=True)

    def _dispatch(self, *, patient: bool = True) -> None:
        """Give the device to the head of the line and its company, if it is free and the head is ready."""
        if self._going is not None:
            self._let_in(self._going)
            self._line_changed()  # a head of another key, known only now, waits for all that are in the turn
        if self.busy or not self._line or self._closed or self._line[0]._turn is None:
            return
        work, _ = self._line[0]._turn
        loop = asyncio.get_running_loop()
        if isinstance(work, Open):
            self._begin(work, loop)
            return
        tickets, others_come = self._company(work)
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
                continue
            other, _ = ticket._turn
            if isinstance(other, Shared) and work.has_room(taken, other):
                tickets.append(ticket)
                taken += other.size
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
            contained(lambda: work(seats))
        except Exception as error:
            for seat in seats:
                seat.fail(error)
        seats.clear()
        with contextlib.suppress(RuntimeError):  # as above
            loop.call_soon_threadsafe(self._finished)

    def _begin(self, work: Open[Any], loop: asyncio.AbstractEventLoop) -> None:
        """Give the device to an open turn, and let the head of the line in, and whoever fits behind it."""
        going = _Going(work.key, Intake(), loop, work.most)
        self._going = going
        self._running_since = time.monotonic()
        self._let_in(going)
        self._thread.submit(self._work_openly, work.work, going.intake, loop)

    def _let_in(self, going: _Going) -> None:
        """Let the head of the line join the open turn, and the next, as long as they may."""
        before = len(self._line)
        while self._line and not self._closed:
            ticket = self._line[0]
            if ticket._turn is None:
                break
            work, context = ticket._turn
            if not going.suits(work) or not going.has_room(work.size):
                break
            if not going.intake._offer(self._open_seat(ticket, work.given, work.size, context, going)):
                break  # the turn is over, as its end will tell
            self._line.popleft()
            ticket._turn = None
            going.taken += work.size
            self._running += 1
            telemetry.calls_at_once.record(self._running, {"device": self.name})
        if len(self._line) < before:
            self._line_changed()

    def _open_seat(
        self, ticket: Ticket, given: Any, size: int, context: contextvars.Context, going: _Going
    ) -> Seat[Any]:
        """Return a seat that gives its room back when it ends."""

        def hand_over(result: Any, error: Exception | None) -> None:
            with contextlib.suppress(RuntimeError):  # as above
                going.loop.call_soon_threadsafe(leave, result, error)
            going.intake._left(seat)

        def leave(result: Any, error: Exception | None) -> None:
            _hand_over(ticket, result, error)
            self._one_left(going, size)

        seat: Seat[Any] = Seat(given, context, hand_over)
        return seat

    def _one_left(self, going: _Going, size: int) -> None:
        """A call of an open turn has ended: its room is free. What a call takes is the time between two that end."""
        if going is not self._going:  # its work returned before it had ended all its calls
            return
        now = time.monotonic()
        self._seen(now - self._running_since)
        self._running_since = now
        self._running -= 1
        going.taken -= size
        self._let_in(going)
        self._line_changed()

    def _work_openly(
        self, work: Callable[[Intake[Any]], None], intake: Intake[Any], loop: asyncio.AbstractEventLoop
    ) -> None:
        """On the device's thread: do an open turn's work."""
        try:
            contained(lambda: work(intake))
        except Exception as error:
            intake._end(error)
        else:
            intake._end(RuntimeError("the work returned without an answer"))
        with contextlib.suppress(RuntimeError):  # as above
            loop.call_soon_threadsafe(self._closed_up)

    def _closed_up(self) -> None:
        """The open turn is over."""
        self._going = None
        self._running = 0
        self._line_changed()
        self._dispatch()

    def _finished(self) -> None:
        self._seen((time.monotonic() - self._running_since) / self._running)
        self._running = 0
        self._line_changed()
        self._dispatch()

    def _seen(self, seconds: float) -> None:
        """Remember how long a call took."""
        self._mean_run_s = seconds if self._mean_run_s is None else 0.7 * self._mean_run_s + 0.3 * seconds

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
            ticket._tell(index + (self._to_end() > 0), self._eta(index))

    def _to_end(self) -> int:
        """Return how many of the running calls must end before the head of the line can go."""
        if self._going is None:
            return self._running
        head = self._line[0]._turn if self._line else None
        if head is not None and not self._going.suits(head[0]):
            return max(self._running, 1)
        return 0 if self._going.has_room(1 if head is None else head[0].size) else 1

    def _eta(self, ahead: int) -> float | None:
        """Return the estimated wait in seconds behind `ahead` waiting calls, or None with nothing to go by."""
        if self._mean_run_s is None:
            return None
        to_end = self._to_end()
        running = self._mean_run_s * to_end - (time.monotonic() - self._running_since) if to_end else 0.0
        return max(running, 0.0) + ahead * self._mean_run_s

    def _retry_after(self) -> float:
        """Return when a refused caller should come again, in seconds.

        One place becomes free after one run, but all who are refused now would come for it. So they are spread over
        the time in which the line empties by half.
        """
        wait = self._eta(len(self._line)) or FIRST_GUESS_S
        low, high = RETRY_AFTER_S
        return min(max(random.uniform(0.25, 0.5) * wait, low), high)


@dataclass
class _Going:
    """An open turn, as the event loop knows it."""

    key: Hashable
    intake: Intake[Any]
    loop: asyncio.AbstractEventLoop
    most: int
    taken: int = 0  # sizes of the calls in it

    def suits(self, work: Shared[Any] | Open[Any]) -> bool:
        """Say whether a call may be in this turn at all."""
        return isinstance(work, Open) and work.key == self.key

    def has_room(self, size: int) -> bool:
        """Say whether a call of that size can join now. One that is larger than the turn can have it alone."""
        return self.taken == 0 or self.taken + size <= self.most


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


def contained(function: Callable[[], T]) -> T:
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
