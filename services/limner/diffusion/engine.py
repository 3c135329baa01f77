"""The step loop: calls join and leave it between evaluations, and every evaluation advances pictures of several calls.

A call goes through four stages: `load` (its model is leased, on a loader thread), `prepare` (prompts and pictures are
encoded, on the side thread), `denoise` (its pictures are advanced, on the device's thread, together with those of other
calls as far as they fit), `finish` (its pictures are decoded, on the side thread again). So nobody's loading, encoding
or decoding holds up anybody's steps. A call that is over - cancelled, late, failed - is found before the next
evaluation, and goes without the others noticing.

All of a call's state is in the call, so a model is the same after any call. Knows no torch, no protocol and nothing of
what a model computes.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol, TypeVar

from limner.core.errors import Stopping
from limner.diffusion import fairness
from limner.diffusion.fairness import Account, Candidate, Ledger
from limner.diffusion.model import Model, Pixels, Request, Row
from limner.runtime import telemetry
from limner.runtime.call import Arrivals, Joining, Member
from limner.runtime.device import contained
from limner.runtime.job import Job

T = TypeVar("T")

POLL_S = 0.05  # how often calls are asked whether they are over while no evaluation is there to be done

_log = logging.getLogger("limner.diffusion")


@dataclass(frozen=True)
class Generation:
    """A call, decoded."""

    model: str
    request: Request
    weight: float = 1.0  # its share of the device in proportion to others
    preview_interval: int = 1  # steps between previews
    # Takes the number of a picture of the call, the steps done and what it looks like; on the side thread. None: no
    # previews are wanted.
    show: Callable[[int, int, Pixels], None] | None = None


class Lease(Protocol):
    """A model that stays loaded until this is closed."""

    model: Model

    def close(self) -> None:
        """Let go of the model."""
        ...


class Models(Protocol):
    """Where models come from. Safe to call from several threads, of which each asks for a model of its own."""

    def lease(self, name: str, job: Job) -> Lease:
        """Return a loaded model; loading it may take long, and is then a stage `load` of the job."""
        ...


class Engine:
    """Engine(library, max_active=16): up to 16 pictures are under way at once; calls of more have it to themselves."""

    def __init__(self, models: Models, *, max_active: int) -> None:
        self._models = models
        self._max_active = max_active
        self._side = ThreadPoolExecutor(1, thread_name_prefix="limner-diffusion-side")
        self._loaders: dict[str, Executor] = {}  # by model: one that is being loaded holds up no calls of another
        self._closed = False

    @property
    def joining(self) -> Joining[Generation, list[Pixels]]:
        """What calls do on the device (see `limner.runtime.call`); the result is a picture for each image asked for."""
        return Joining(
            self._run,
            key=lambda given: self,
            size=lambda given: given.request.parameters.image_count,
            most=lambda given: self._max_active,
        )

    def close(self) -> None:
        """Let the threads end once their work does. Waits for nothing; calls that still need them fail."""
        self._closed = True
        self._side.shutdown(wait=False)
        for loader in list(self._loaders.values()):
            loader.shutdown(wait=False)

    def _loader(self, name: str) -> Executor:
        if self._closed:
            raise Stopping("the server is stopping; try another one")
        if name not in self._loaders:
            self._loaders[name] = ThreadPoolExecutor(1, thread_name_prefix=f"limner-diffusion-load-{name}")
        return self._loaders[name]

    def _run(self, arrivals: Arrivals[Generation, list[Pixels]]) -> None:
        """One turn of the device, as long as there are calls."""
        _Loop(self._models, self._side, self._loader, arrivals).run()


class _Latest:
    """A picture's newest preview, on its way to the side thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._preview: tuple[int, Callable[[], Pixels]] | None = None

    def put(self, step: int, make: Callable[[], Pixels]) -> bool:
        """Replace what was not taken yet. Returns whether there was nothing, so that somebody must come for this."""
        with self._lock:
            new = self._preview is None
            self._preview = step, make
            return new

    def take(self) -> tuple[int, Callable[[], Pixels]] | None:
        """Return it, once."""
        with self._lock:
            preview, self._preview = self._preview, None
            return preview


@dataclass(eq=False)
class _Picture:
    """A row under way, and whose it is."""

    call: _Call
    index: int  # among the call's pictures
    row: Row
    latest: _Latest = field(default_factory=_Latest)
    shown: int = 0  # the step of the last preview
    decoding: bool = False  # the side thread has the row, or had it

    @property
    def done(self) -> bool:
        return self.row.step >= self.row.step_count


@dataclass(eq=False)
class _Call:
    """A call under way."""

    member: Member[Generation, list[Pixels]]
    job: Job
    given: Generation
    stages: ExitStack = field(default_factory=ExitStack)  # the stage that the call is in
    report: Callable[[int], None] = lambda done: None  # tells how far the stage is; raises once the call is over
    lease: Lease | None = None
    account: Account | None = None
    pictures: list[_Picture] = field(default_factory=list)
    results: dict[int, Pixels] = field(default_factory=dict)  # by the pictures' indices
    step: int = 0  # of the picture that is least advanced
    worked_s: float = 0.0  # of the evaluations that it had a part in
    last_s: float = 0.0  # of the last of them
    urgent: bool = False  # its deadline is near, and it goes before others
    pending: int = 0  # what other threads still do for it
    over: bool = False

    @property
    def model(self) -> Model:
        """The model, once it is leased."""
        assert self.lease is not None
        return self.lease.model

    @property
    def stepping(self) -> bool:
        """Whether a picture still needs steps."""
        return not all(picture.decoding for picture in self.pictures)

    def enter(self, stage: str, count: int) -> None:
        """End the stage that the call is in, and begin another. Raises once the call is over."""
        self.member.within(self.stages.close)
        self.report = self.member.within(lambda: self.stages.enter_context(self.job.stage(stage, count)))

    def steps_s(self) -> float | None:
        """Return how long its other steps take without interruption, as those so far tell; None before the first."""
        if not self.step:
            return None
        count = max(picture.row.step_count for picture in self.pictures)
        return self.worked_s / self.step * (count - self.step)


class _Loop:
    """One turn of the device. All of it happens on the device's thread, but for what `_aside` is given."""

    def __init__(
        self,
        models: Models,
        side: Executor,
        loader: Callable[[str], Executor],
        arrivals: Arrivals[Generation, list[Pixels]],
    ) -> None:
        self._models = models
        self._side = side
        self._loader = loader
        self._arrivals = arrivals
        self._calls: list[_Call] = []  # in the order in which they came
        self._pending = 0  # what other threads still do, also for calls that are over
        self._back: SimpleQueue[Callable[[], None]] = SimpleQueue()  # what to do once they have
        self._ledger = Ledger()
        self._decode_s: dict[str, float] = {}  # by model: how long the last picture took

    def run(self) -> None:
        """Carry out the calls that come until there are none. Raises nothing."""
        while self._calls or self._pending or not self._arrivals.close():
            try:
                self._once()
            except Exception as error:  # a fault of this module's own: nobody waits for ever
                for call in list(self._calls):
                    self._fail(call, error)

    def _once(self) -> None:
        for member in self._arrivals.take():
            self._join(member)
        self._collect()
        self._check()
        if self._advance():
            return
        if self._calls or self._pending:
            self._arrivals.wait(POLL_S if self._calls else None)

    def _join(self, member: Member[Generation, list[Pixels]]) -> None:
        call = _Call(member, member.job, member.given)
        self._calls.append(call)
        name, job = call.given.model, call.job
        try:
            loader = self._loader(name)
        except Stopping as error:
            self._fail(call, error)
        else:
            self._aside(call, loader, lambda: self._models.lease(name, job), self._leased)

    def _leased(self, call: _Call, lease: Lease) -> None:
        call.lease = lease
        if not call.over:
            job, request, model = call.job, call.given.request, lease.model

            def prepare() -> Sequence[Row]:
                with job.stage("prepare"):
                    return model.prepare(request, job.check)

            self._aside(call, self._side, prepare, self._prepared)

    def _prepared(self, call: _Call, rows: Sequence[Row]) -> None:
        call.pictures = [_Picture(call, index, row) for index, row in enumerate(rows)]
        if call.over:
            return
        call.account = self._ledger.open(call.given.weight)
        telemetry.pictures_active.add(len(rows), {"model": call.given.model})
        call.enter("denoise", max(1, *(row.step_count for row in rows)))
        self._finish(call)

    def _advance(self) -> bool:
        """Do one evaluation for those whose turn it is; False if there is nobody."""
        candidates = self._candidates()
        if not candidates:
            return False
        ordered = fairness.in_order(candidates)
        chosen = ordered[:1]
        model, name = ordered[0].item.call.model, ordered[0].item.call.given.model
        began = time.perf_counter()
        try:
            chosen = fairness.fill(ordered, model.most_at_once(ordered[0].item.row.bucket))
            rows = [candidate.item.row for candidate in chosen]
            errors = contained(lambda: model.advance(rows))
        except Exception as error:
            for call in _calls_of(chosen):
                self._fail(call, error)
            return True
        seconds = time.perf_counter() - began
        telemetry.step_duration.record(seconds, {"model": name})
        telemetry.pictures_at_once.record(len(chosen), {"model": name})
        self._charge(chosen)
        for candidate, failed in zip(chosen, errors, strict=True):
            if failed is not None:
                self._fail(candidate.item.call, failed)
        for call in _calls_of(chosen):
            if not call.over:
                self._guard(call, partial(self._stepped, call, seconds))
        for candidate in chosen:
            self._preview(candidate.item)
        return True

    def _candidates(self) -> list[Candidate[_Picture]]:
        blocked_s = max((call.last_s for call in self._calls), default=0.0)
        candidates = []
        for call in self._calls:
            slack = self._slack(call, blocked_s)
            for picture in call.pictures:
                if call.account is not None and not picture.decoding:
                    bucket = (id(call.model), picture.row.bucket)
                    step = picture.row.step
                    candidates.append(Candidate(picture, bucket, picture.row.size, call.account, step, slack))
        return candidates

    def _slack(self, call: _Call, blocked_s: float) -> float | None:
        steps_s = call.steps_s()
        if steps_s is None:
            return None
        decode_s = self._decode_s.get(call.given.model, 0.0) * len(call.pictures)
        slack = fairness.urgent_slack(call.job.remaining, steps_s + decode_s, blocked_s, urgent=call.urgent)
        call.urgent = slack is not None
        return slack

    def _charge(self, chosen: Sequence[Candidate[_Picture]]) -> None:
        costs: dict[Account, float] = {}
        for candidate in chosen:
            costs[candidate.account] = costs.get(candidate.account, 0.0) + candidate.item.row.cost
        self._ledger.charge(costs)

    def _stepped(self, call: _Call, seconds: float) -> None:
        """Tell a call's progress after an evaluation, and send the pictures that are done on."""
        call.last_s = seconds
        call.worked_s += seconds
        step = min(picture.row.step for picture in call.pictures)
        if step != call.step:
            call.step = step
            call.report(step)
        self._finish(call)

    def _finish(self, call: _Call) -> None:
        """Have those of a call's pictures decoded whose steps are done."""
        for picture in call.pictures:
            if picture.done and not picture.decoding:
                picture.decoding = True
                decode = partial(_timed, partial(call.model.decode, picture.row))
                self._aside(call, self._side, decode, partial(self._decoded, picture))
        if not call.stepping and not call.over:
            call.enter("finish", len(call.pictures))

    def _decoded(self, picture: _Picture, call: _Call, timed: tuple[Pixels, float]) -> None:
        pixels, seconds = timed
        picture.row.close()
        if call.over:
            return
        self._decode_s[call.given.model] = seconds
        call.results[picture.index] = pixels
        if call.stepping:
            return
        call.report(len(call.results))
        if len(call.results) == len(call.pictures):
            self._leave(call)
            call.member.succeed([call.results[index] for index in sorted(call.results)])

    def _preview(self, picture: _Picture) -> None:
        """Have a preview of a picture made, if it is time for one. What goes wrong with it harms nobody."""
        call, step = picture.call, picture.row.step
        if call.over or call.given.show is None or picture.done:
            return
        if step == picture.shown or step % call.given.preview_interval:
            return
        picture.shown = step
        try:
            make = call.model.preview(picture.row)
        except Exception:
            _log.exception("no preview could be made")
            return
        if make is not None and picture.latest.put(step, make):
            self._aside(call, self._side, partial(_show, call.given.show, picture), lambda call, nothing: None)

    def _aside(self, call: _Call, executor: Executor, work: Callable[[], T], then: Callable[[_Call, T], None]) -> None:
        """Do `work` for a call on another thread, in a copy of the call's context, and then `then` on this one: also if
        the call is over meanwhile, so that what was made can be let go of."""
        context = call.member.within(contextvars.copy_context)

        def task() -> None:
            try:
                if call.over:
                    self._back.put(partial(self._came_back, call, lambda: None))
                else:
                    outcome = context.run(contained, work)
                    self._back.put(partial(self._came_back, call, partial(then, call, outcome)))
            except Exception as error:
                self._back.put(partial(self._came_back, call, partial(self._fail, call, error)))
            self._arrivals.wake()

        try:
            executor.submit(_apart, task)
        except RuntimeError:  # it is shut down
            self._fail(call, Stopping("the server is stopping; try another one"))
        else:
            call.pending += 1
            self._pending += 1

    def _collect(self) -> None:
        """Go on with what other threads have done."""
        while True:
            try:
                come_back = self._back.get_nowait()
            except Empty:
                return
            come_back()

    def _came_back(self, call: _Call, then: Callable[[], None]) -> None:
        call.pending -= 1
        self._pending -= 1
        self._guard(call, then)
        self._let_go(call)

    def _check(self) -> None:
        """End the calls that are over."""
        for call in list(self._calls):
            self._guard(call, call.job.check)

    def _guard(self, call: _Call, function: Callable[[], None]) -> None:
        """Do something for a call, and end the call if that fails."""
        try:
            function()
        except Exception as error:
            self._fail(call, error)

    def _fail(self, call: _Call, error: Exception) -> None:
        """End a call with an error, unless it is over."""
        if not call.over:
            self._leave(call)
            call.member.fail(error)

    def _leave(self, call: _Call) -> None:
        """Take a call out of the loop."""
        call.over = True
        self._calls.remove(call)
        call.member.within(call.stages.close)
        if call.account is not None:
            self._ledger.close(call.account)
            telemetry.pictures_active.add(-len(call.pictures), {"model": call.given.model})
        for picture in call.pictures:
            if not picture.decoding:
                picture.row.close()
        self._let_go(call)

    def _let_go(self, call: _Call) -> None:
        """Close the rows and the lease of a call that is over, once no other thread needs them."""
        if not call.over or call.pending:
            return
        for picture in call.pictures:
            picture.row.close()
        call.pictures.clear()  # which lead back here: nothing is to wait for Python's collector
        lease, call.lease = call.lease, None
        if lease is not None:
            try:
                lease.close()
            except Exception:
                _log.exception("the model %s could not be let go of", call.given.model)


def _calls_of(chosen: Sequence[Candidate[_Picture]]) -> list[_Call]:
    return list(dict.fromkeys(candidate.item.call for candidate in chosen))


def _apart(task: Callable[[], None]) -> None:
    """Do a task in a thread that ends with it. OpenMP gives each thread that computes helpers of its own, which live as
    long as it does; while there are more of them than CPUs, they wait for each other by the system instead of by
    spinning, and short steps take up to twice as long."""
    thread = threading.Thread(target=task, name=threading.current_thread().name)
    try:
        thread.start()
    except RuntimeError:  # the system gives no more threads
        task()
    else:
        thread.join()


def _timed(function: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    return function(), time.perf_counter() - began


def _show(show: Callable[[int, int, Pixels], None], picture: _Picture) -> None:
    """On the side thread: make a picture's latest preview and hand it over."""
    preview = picture.latest.take()
    if preview is None:
        return
    step, make = preview
    try:
        show(picture.index, step, make())
    except Exception:
        _log.exception("no preview could be made")
