"""One model call from admission to its last event.

    async def Inpaint(self, request, context):
        async for response in stream(context, self._device, InpaintResponse, self._work(request)):
            yield response

Decoding and encoding happen on helper threads, the work itself on the device's thread, and what is to be told goes
through a mailbox of one slot an event: a reader that is slow misses progress and never holds up the device. Knows
nothing of pictures.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import grpc
from google.protobuf.message import Message

from limner.core.errors import DeadlineExceeded
from limner.core.placement import Placement
from limner.core.seed import draw_seed
from limner.runtime.device import Device, Intake, Open, Seat, Shared, Ticket
from limner.runtime.job import Job, Timing
from limner.runtime.messages import duration, placement_to_proto
from limner.runtime.telemetry import current_span, tracer
from limner.v1 import progress_pb2

Input = TypeVar("Input")  # what decode makes of the request
Output = TypeVar("Output")  # what the device makes of that
T = TypeVar("T")
R = TypeVar("R", bound=Message)  # the typed result message
M = TypeVar("M", bound=Message)  # the stream's response message


@dataclass(frozen=True)
class _Ready(Generic[Input]):
    """A decoded call, and how it is told that its turn has come."""

    job: Job
    given: Input
    begin: Callable[[], None]


class Member(Generic[Input, Output]):
    """A call in a turn that it shares with others. It ends with the first `succeed` or `fail`, and holds nothing after,
    as an error's traceback may lead here."""

    def __init__(self, seat: Seat[_Ready[Input]], device: str) -> None:
        self._seat = seat
        self._span = seat.within(lambda: current_span("device", {"limner.device": device}))
        self.job, self.given = seat.given.job, seat.given.given

    def within(self, function: Callable[[], T]) -> T:
        """Return `function()`, called in the call's own context: its trace, and what its logs are marked with."""
        return self._seat.within(function)

    def succeed(self, result: Output) -> None:
        """End the call's turn with what it made."""
        if self._end():
            self._seat.succeed(result)

    def fail(self, error: Exception) -> None:
        """End the call's turn with an error."""
        if self._end():
            self._seat.fail(error)

    def _end(self) -> bool:
        if not hasattr(self, "given"):
            return False
        self._span.end()
        del self.job, self.given
        return True


@dataclass(frozen=True)
class Together(Generic[Input, Output]):
    """Work that calls of one key do in one turn of the device, if several are ready (see `limner.runtime.device`)."""

    run: Callable[[Sequence[Member[Input, Output]]], None]  # ends each as soon as it can; an error ends those left
    key: Callable[[Input], Hashable]  # what the calls must have in common
    size: Callable[[Input], int]  # how much of `most` a call takes
    most: Callable[[Input], int]  # the same for calls of one key

    def shared(self, ready: _Ready[Input], device: str) -> Shared[_Ready[Input]]:
        """Return this as the device wants it, for one call."""
        work = functools.partial(self._turn, device=device)
        given = ready.given
        return Shared(ready, work, key=self.key(given), size=self.size(given), most=self.most(given))

    def _turn(self, seats: Sequence[Seat[_Ready[Input]]], device: str) -> None:
        members: list[Member[Input, Output]] = _members(seats, device)
        if members:
            try:
                self.run(members)
            except Exception as error:
                for member in members:
                    member.fail(error)


class Arrivals(Generic[Input, Output]):
    """Calls that join a turn while it goes on, on the device's thread."""

    def __init__(self, intake: Intake[_Ready[Input]], device: str) -> None:
        self._intake = intake
        self._device = device

    def take(self) -> list[Member[Input, Output]]:
        """Return who has joined since, in order; their calls are told that they have begun."""
        return _members(self._intake.take(), self._device)

    def wait(self, timeout: float | None = None) -> None:
        """Sleep until a call has joined, `wake` was called since the last `take`, or so many seconds are over."""
        self._intake.wait(timeout)

    def wake(self) -> None:
        """Let `wait` return, from any thread."""
        self._intake.wake()

    def close(self) -> bool:
        """Let nobody join any more; False if somebody has meanwhile, and the turn must go on."""
        return self._intake.close()


@dataclass(frozen=True)
class Joining(Generic[Input, Output]):
    """Work in one turn of the device that calls of one key join and leave (see `limner.runtime.device`)."""

    run: Callable[[Arrivals[Input, Output]], None]  # ends each call, and returns once `Arrivals.close` has said True
    key: Callable[[Input], Hashable]  # what the calls must have in common
    size: Callable[[Input], int]  # how much of `most` a call takes
    most: Callable[[Input], int]  # the same for calls of one key

    def shared(self, ready: _Ready[Input], device: str) -> Open[_Ready[Input]]:
        """Return this as the device wants it, for one call."""
        given = ready.given

        def work(intake: Intake[_Ready[Input]]) -> None:
            self.run(Arrivals(intake, device))

        return Open(ready, work, key=self.key(given), size=self.size(given), most=self.most(given))


def _members(seats: Sequence[Seat[_Ready[Input]]], device: str) -> list[Member[Input, Output]]:
    """Begin the calls of these seats, and return those that are not over already."""
    members = []
    for seat in seats:
        try:
            seat.within(seat.given.begin)
        except Exception as error:
            seat.fail(error)
        else:
            members.append(Member[Input, Output](seat, device))
    return members


@dataclass(frozen=True)
class Work(Generic[Input, Output, R]):
    """What a call does, in three parts on three kinds of threads."""

    decode: Callable[[Job], Input]  # on a helper thread
    # On the device's thread: alone, with other calls, or in a turn that others join and leave.
    run: Callable[[Job, Input], Output] | Together[Input, Output] | Joining[Input, Output]
    encode: Callable[[Job, Output], R]  # on a helper thread; returns the `result` of the response
    placement: Callable[[Input], Placement]  # for Started; called right after decode, on the same thread
    model: str = ""
    digest: str = ""


async def stream(
    context: grpc.aio.ServicerContext[Any, Any],
    device: Device,
    response_type: type[M],
    work: Work[Input, Output, R],
    *,
    seed: int | None = None,
    previews: bool = False,
) -> AsyncIterator[M]:
    """Yield the call's events as `response_type`: Queued, Started, Progress and Preview, the result, Finished.

    Raises Overloaded, Stopping or DeadlineExceeded before the first event if the call cannot be taken, and later
    whatever the work raises. If the generator is closed, the call is over: the place in the line is given up, and work
    that runs ends at its next check. A `seed` of None draws one; without `previews`, the work's previews are dropped.
    """
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        raise DeadlineExceeded("the deadline had passed when the call arrived; allow more time")
    mailbox = Mailbox()
    job = Job(
        seed=draw_seed() if seed is None else seed,
        previews=previews,
        deadline=None if remaining is None else time.monotonic() + remaining,
        publish=mailbox.put,
    )
    ticket = device.admit(lambda position, eta: mailbox.put("queued", _queued(position, eta)))
    task = asyncio.create_task(_carry_out(device, ticket, job, work, response_type, mailbox, remaining))
    task.add_done_callback(_let_go)

    to_end: list[Callable[[], object]] = [job.cancel, ticket.end, task.cancel]

    def end(*_: object) -> None:
        # gRPC and this function hold each other until Python's collector comes, so the function lets go of the rest.
        while to_end:
            to_end.pop(0)()

    # A generator whose reader went away is not closed by gRPC, and by Python only when it is collected.
    context.add_done_callback(end)  # type: ignore[arg-type]  # the stubs want a protocol
    try:
        while (event := await mailbox.take()) is not None:
            field, message = event
            yield message if field == "result" else response_type(**{field: message})
    finally:
        end()


def _let_go(task: asyncio.Task[None]) -> None:
    """Take a cancelled task's error out of it. They hold each other until Python's collector comes, and with them the
    frames that the error went through and their pictures, whose memory the collector doesn't see."""
    with contextlib.suppress(asyncio.CancelledError):
        task.result()


async def _carry_out(
    device: Device,
    ticket: Ticket,
    job: Job,
    work: Work[Input, Output, R],
    response_type: type[M],
    mailbox: Mailbox,
    remaining: float | None,
) -> None:
    """Take a call through decoding, the device and encoding, and leave result or error in the mailbox."""
    phase = "waiting for the device"
    queue = Timing("queue")
    job.timings.append(queue)
    began = time.perf_counter()

    def decode() -> tuple[Input, Placement]:
        with job.stage("decode"):
            decoded = work.decode(job)
            return decoded, work.placement(decoded)

    def begin() -> None:
        nonlocal phase
        phase = "being worked on"
        queue.seconds = time.perf_counter() - began - job.timings[1].seconds
        queue_span.end()
        job.check()
        mailbox.put("started", progress_pb2.Started(placement=placement_to_proto(placement)))

    def run(alone: Callable[[Job, Input], Output]) -> Output:
        begin()
        before, started = len(job.timings), time.perf_counter()
        with tracer.start_as_current_span("device", attributes={"limner.device": device.name}):
            output = alone(job, decoded)
        if len(job.timings) == before:  # work that has no stages of its own
            job.timings.append(Timing("run", time.perf_counter() - started))
        return output

    def encode() -> M:
        with job.stage("encode"):
            # CopyFrom copies; a constructor serialises and parses, which takes ten times as long for megabytes.
            response: Any = response_type()
            response.result.CopyFrom(work.encode(job, output))
            return cast(M, response)

    queue_span = tracer.start_span("queue", attributes={"limner.device": device.name})
    try:
        async with asyncio.timeout(remaining) as limit:
            await ticket.near.wait()
            decoded, placement = await device.help(decode)
            output: Output
            if isinstance(work.run, Together | Joining):
                output = await ticket.share(work.run.shared(_Ready(job, decoded, begin), device.name))
            else:
                output = await ticket.run(functools.partial(run, work.run))
            result = await device.help(encode)
    except Exception as error:
        late = isinstance(error, TimeoutError) and limit.expired()
        mailbox.fail(
            DeadlineExceeded(f"the deadline passed while the call was {phase}; allow more time") if late else error
        )
    else:
        mailbox.put("result", result)
        mailbox.put("finished", _finished(job, work))
        mailbox.close()
    finally:
        if queue_span.is_recording():
            queue_span.end()


class Mailbox:
    """One slot for each kind of event, and for previews of each picture; filled from any thread, emptied by one task on
    the event loop.

    A slot that is filled again before it was emptied keeps its turn and changes its content. So memory is bounded,
    and results, which are put once, are never lost.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._slots: dict[tuple[str, int], Any] = {}
        self._taken: set[str] = set()
        self._closed = False
        self._error: BaseException | None = None
        self._filled = asyncio.Event()
        self._waking = False  # one wake-up on its way is enough

    def put(self, field: str, message: Any) -> None:
        """Fill a slot."""
        with self._lock:
            self._slots[field, getattr(message, "image_index", 0)] = message
        self._wake()

    def close(self) -> None:
        """Nothing comes after what is in the slots."""
        with self._lock:
            self._closed = True
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Raise `error` in the reader; what it did not take yet is dropped."""
        with self._lock:
            self._slots.clear()
            self._error = error
        self._wake()

    async def take(self) -> tuple[str, Any] | None:
        """Return the next event, or None after the last one. Raises the error that ended the call."""
        while True:
            with self._lock:
                self._waking = False
                self._filled.clear()
                if self._error is not None:
                    error, self._error = self._error, None  # its traceback leads back here, and holds pictures
                    try:
                        raise error
                    finally:
                        del error
                for slot in self._slots:
                    if self._is_due(field := slot[0]):
                        self._taken.add(field)
                        return field, self._slots.pop(slot)
                if self._closed:
                    return None
            await self._filled.wait()

    def _is_due(self, field: str) -> bool:
        """Progress waits for Started, also that of decoding, which is done before the device takes the call; and no
        position is told once the device has it."""
        if field == "queued":
            return field not in self._taken or not (("started", 0) in self._slots or "started" in self._taken)
        return field not in ("progress", "preview") or "started" in self._taken

    def _wake(self) -> None:
        with self._lock:
            if self._waking:
                return
            self._waking = True
        try:
            self._loop.call_soon_threadsafe(self._filled.set)
        except RuntimeError:  # the loop is closed: the process ends and nobody reads
            return


def _queued(position: int, eta: float | None) -> progress_pb2.Queued:
    return progress_pb2.Queued(position=position, eta=None if eta is None else duration(eta))


def _finished(job: Job, work: Work[Any, Any, Any]) -> progress_pb2.Finished:
    return progress_pb2.Finished(
        timings=[progress_pb2.Timing(stage=each.stage, duration=duration(each.seconds)) for each in job.timings],
        seed=job.seed,
        model=work.model,
        model_digest=work.digest,
        parameters=job.parameters,
    )
