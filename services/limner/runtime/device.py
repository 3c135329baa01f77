"""A device: one thread that works on one call at a time, and the bounded line of calls in front of it.

Everything but the work itself happens on the event loop, so nothing here needs a lock. First come, first served: the
call at the head of the line holds the device's next turn even while it is still being decoded. The first calls of the
line may be decoded ahead, no more, so that a long line holds requests and not pictures.
Knows no gRPC and nothing of what the work is.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from limner.core.errors import Overloaded, Stopping
from limner.runtime import telemetry
from limner.runtime.cpus import cpu_count

T = TypeVar("T")

DECODED_AHEAD = 2  # calls at the head of the line that may be decoded before their turn
OPEN_CALLS_PER_PLACE = 4  # calls that may be open for each place in the line: stalled readers hold results in memory
FIRST_GUESS_S = 1.0  # how long a call takes, as long as none has been seen
RETRY_AFTER_S = (0.1, 30.0)  # the least and the most that a refused caller is told to wait


class Ticket:
    """A call's place in the line. `changed(position, eta)` is called whenever either is other than before."""

    def __init__(self, device: Device, changed: Callable[[int, float | None], None]) -> None:
        self.near = asyncio.Event()  # set once the call may be decoded
        self._device = device
        self._changed = changed
        self._position: int | None = None
        self._open = True
        self._function: Callable[[], Any] | None = None
        self._done: asyncio.Future[Any] | None = None  # while `run` waits

    async def run(self, function: Callable[[], T]) -> T:
        """Wait for the turn, run `function` on the device's thread, and return what it returns or raise as it does.

        A cancelled wait gives the turn up. What runs already runs on until it returns; only then comes the next."""
        context = contextvars.copy_context()  # of this task, whichever one gives it its turn
        self._function = lambda: context.run(function)
        self._done = asyncio.get_running_loop().create_future()
        self._device._dispatch()
        try:
            result: T = await self._done
            return result
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
    """Device("cpu", queue_limit=32): at most 32 calls wait, one runs; helpers decode and encode beside it."""

    def __init__(self, name: str = "cpu", queue_limit: int = 32, helper_count: int | None = None) -> None:
        self.name = name
        self.queue_limit = queue_limit
        self._line: deque[Ticket] = deque()
        self._running: Ticket | None = None
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
        return self._running is not None

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

    def _dispatch(self) -> None:
        """Give the device to the head of the line, if it is free and the head is ready."""
        if self._running is not None or not self._line or self._closed:
            return
        function = self._line[0]._function
        if function is None:  # it is still being decoded
            return
        ticket = self._running = self._line.popleft()
        self._running_since = time.monotonic()
        ticket._function = None
        self._thread.submit(self._work, ticket, [function], asyncio.get_running_loop())
        self._line_changed()

    def _work(self, ticket: Ticket, turn: list[Callable[[], Any]], loop: asyncio.AbstractEventLoop) -> None:
        """On the device's thread: do the work in `turn`, and hand what comes of it to the event loop.

        An error's traceback leads to this frame and to those that called it, so nothing of the work stays in them.
        """
        outcome: tuple[Any, Exception | None]
        try:
            outcome = _contained(turn.pop()), None
        except Exception as raised:
            outcome = None, raised
        try:
            loop.call_soon_threadsafe(self._finished, ticket, *outcome)
        except RuntimeError:  # the loop is closed: the process ends and nobody waits
            return
        finally:
            del outcome

    def _finished(self, ticket: Ticket, result: Any, error: Exception | None) -> None:
        self._running = None
        seconds = time.monotonic() - self._running_since
        self._mean_run_s = seconds if self._mean_run_s is None else 0.7 * self._mean_run_s + 0.3 * seconds
        if ticket._done is not None and not ticket._done.done():
            if error is None:
                ticket._done.set_result(result)
            else:
                ticket._done.set_exception(error)
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
            if index < DECODED_AHEAD:
                ticket.near.set()
            ticket._tell(index + self.busy, self._eta(index))

    def _eta(self, ahead: int) -> float | None:
        """Return the estimated wait in seconds behind `ahead` waiting calls, or None with nothing to go by."""
        if self._mean_run_s is None:
            return None
        running = max(self._mean_run_s - (time.monotonic() - self._running_since), 0.0) if self.busy else 0.0
        return running + ahead * self._mean_run_s

    def _retry_after(self) -> float:
        """Return when a refused caller should come again, in seconds.

        One place becomes free after one run, but all who are refused now would come for it. So they are spread over
        the time in which the line empties by half.
        """
        wait = self._eta(len(self._line)) or FIRST_GUESS_S
        low, high = RETRY_AFTER_S
        return min(max(random.uniform(0.25, 0.5) * wait, low), high)


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
