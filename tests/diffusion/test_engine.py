"""The step loop, with models that count instead of painting."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from limner.core.errors import BadArgument, Cancelled, DeadlineExceeded, ModelNotInstalled, Stopping
from limner.core.placement import Placement
from limner.diffusion import engine
from limner.diffusion.engine import Engine, Generation
from limner.diffusion.model import Pixels, Request
from limner.diffusion.parameters import Parameters
from limner.runtime import telemetry
from limner.runtime.call import Work, stream
from limner.runtime.device import Device
from limner.v1.diffusion_pb2 import GenerateResponse, GenerateResult
from limner.v1.images_pb2 import Image, RawImage

STEP_S = 0.002


def parameters(prompt: str, **changes: Any) -> Parameters:
    usual: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": "",
        "width": 16,
        "height": 16,
        "step_count": 4,
        "guidance_scale": 1.0,
        "strength": 1.0,
        "sampler": "count",
        "shift": None,
        "text_length": 77,
        "truncate_prompt": False,
        "skip_layers": None,
        "step_cache": None,
        "loras": (),
        "seed": 0,
        "image_count": 1,
    }
    return Parameters(**usual | changes)


@dataclass(eq=False)
class Row:
    """Counts its evaluations. Its picture is their number, where the seed is added."""

    model: CountingModel
    prompt: str
    seed: int
    bucket: Hashable
    size: int
    step_count: int
    evaluations: int  # a step
    cost: float = 1.0
    step: int = 0
    value: int = 0
    picture: Any = field(default_factory=lambda: np.zeros(1000))

    def evaluate(self) -> None:
        self.value += 1
        self.step = self.value // self.evaluations

    def close(self) -> None:
        self.model.rows.discard(self)
        self.picture = None


@dataclass(eq=False)
class CountingModel:
    """Rows of one size are of one bucket; `heun` takes two evaluations a step."""

    most: int = 4
    step_s: float = STEP_S
    batches: list[list[str]] = field(default_factory=list)  # who was in which evaluation
    rows: set[Row] = field(default_factory=set)  # that are not closed
    decoded: list[str] = field(default_factory=list)
    closed_early: list[str] = field(default_factory=list)  # whose rows were closed while they were decoded
    before_prepare: Callable[[Request], None] = lambda request: None
    before_advance: Callable[[Sequence[Row]], None] = lambda rows: None
    before_preview: Callable[[Row], None] = lambda row: None
    before_decode: Callable[[Row], None] = lambda row: None
    failed: Callable[[Row], Exception | None] = lambda row: None

    def prepare(self, request: Request, check: Callable[[], None]) -> Sequence[Row]:
        check()
        self.before_prepare(request)
        asked = request.parameters
        rows = [
            Row(
                self,
                asked.prompt,
                asked.seed + index,
                (asked.width, asked.height),
                2 if asked.guided else 1,
                asked.step_count,
                2 if asked.sampler == "heun" else 1,
            )
            for index in range(asked.image_count)
        ]
        self.rows.update(rows)
        return rows

    def most_at_once(self, bucket: Hashable) -> int:
        return self.most

    def advance(self, rows: Sequence[Row]) -> Sequence[Exception | None]:
        assert len({row.bucket for row in rows}) == 1
        assert all(row.picture is not None for row in rows), "a row is advanced that is closed"
        self.batches.append([row.prompt for row in rows])
        self.before_advance(rows)
        time.sleep(self.step_s)
        for row in rows:
            row.evaluate()
        return [self.failed(row) for row in rows]

    def preview(self, row: Row) -> Callable[[], Pixels] | None:
        value = row.value

        def make() -> Pixels:
            self.before_preview(row)
            return np.full((1, 1, 3), value, np.uint8)

        return make

    def decode(self, row: Row) -> Pixels:
        assert row.picture is not None, "a row is decoded that is closed"
        self.before_decode(row)
        self.decoded.append(row.prompt)
        if row.picture is None:
            self.closed_early.append(row.prompt)
        return np.full((1, 1, 3), row.value + row.seed, np.uint8)

    def evaluations(self) -> Counter[str]:
        """How often each call's pictures were advanced."""
        return Counter(name for batch in self.batches for name in batch)


class Shelf:
    """Models by their names, with what was leased and not given back."""

    def __init__(self, **models: CountingModel) -> None:
        self.models = models
        self.leased: Counter[str] = Counter()
        self.before_lease: Callable[[str], None] = lambda name: None

    def lease(self, name: str, job: Any) -> Any:
        self.before_lease(name)
        if name not in self.models:
            raise ModelNotInstalled(f"{name} is not there")
        self.leased[name] += 1
        return SimpleNamespace(model=self.models[name], close=lambda: self.leased.subtract([name]))


class Reader:
    """A caller, as gRPC would show it to the server."""

    def __init__(self, timeout: float | None) -> None:
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._over: list[Callable[[Any], None]] = []

    def time_remaining(self) -> float | None:
        return None if self._deadline is None else self._deadline - time.monotonic()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._over.append(callback)

    def vanish(self) -> None:
        for callback in self._over:
            callback(self)


class Call:
    """A call under way, with what it was told so far."""

    def __init__(self, house: House, prompt: str, options: dict[str, Any]) -> None:
        model = options.pop("model", "a")
        timeout = options.pop("timeout", None)
        self._weight = options.pop("weight", 1.0)
        self._interval = options.pop("preview_interval", 1)
        self._previews = options.pop("previews", False)
        self._request = Request(parameters(prompt, **options))
        self._model = model
        self._reader = Reader(timeout)
        self.events: list[tuple[str, Any]] = []
        self.task = asyncio.create_task(self._read(house))

    async def _read(self, house: House) -> list[int]:
        work = Work[Generation, list[Pixels], GenerateResult](
            decode=self._decode,
            run=house.engine.joining,
            encode=lambda job, pictures: GenerateResult(
                more_images=[Image(raw=RawImage(data=picture.tobytes())) for picture in pictures]
            ),
            placement=lambda given: Placement("cpu", "fp32", "counting", "a test"),
        )
        async for response in stream(self._reader, house.device, GenerateResponse, work, previews=self._previews):
            name = response.WhichOneof("event")
            self.events.append((name, getattr(response, name)))
        (result,) = (message for name, message in self.events if name == "result")
        return [image.raw.data[0] for image in result.more_images]

    def _decode(self, job: Any) -> Generation:
        def show(index: int, step: int, pixels: Pixels) -> None:
            job.preview(Image(raw=RawImage(data=pixels.tobytes())), step, index)

        return Generation(self._model, self._request, self._weight, self._interval, show if self._previews else None)

    def vanish(self) -> None:
        self._reader.vanish()
        self.task.cancel()

    def told(self, kind: str) -> list[Any]:
        return [message for name, message in self.events if name == kind]


class House:
    """A device and an engine with their models."""

    def __init__(self, shelf: Shelf, max_active: int = 16) -> None:
        self.shelf = shelf
        self.device = Device("cpu", 1000, helper_count=2)
        self.engine = Engine(shelf, max_active=max_active)

    def call(self, prompt: str, **options: Any) -> Call:
        return Call(self, prompt, options)

    async def until(self, condition: Callable[[], object], within_s: float = 5.0) -> None:
        """Wait for something to become true."""
        end = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < end, "it never came true"
            await asyncio.sleep(0.001)

    async def is_quiet(self) -> None:
        """Wait until the device is free, and see that nothing was kept."""
        await self.until(lambda: not self.device.busy)
        assert not +self.shelf.leased
        assert not any(model.rows or model.closed_early for model in self.shelf.models.values())
        assert self.device._open_calls == 0

    def close(self) -> None:
        self.device.close()
        self.engine.close()


@pytest.fixture
def model() -> CountingModel:
    return CountingModel()


@pytest.fixture
async def house(model: CountingModel) -> AsyncIterator[House]:
    made = House(Shelf(a=model, b=CountingModel()))
    yield made
    made.close()


class Gate:
    """Holds whoever calls it, until it is opened."""

    def __init__(self, when: Callable[[Any], bool] = lambda given: True) -> None:
        self._when = when
        self._open = threading.Event()
        self.reached = threading.Event()

    def __call__(self, given: Any) -> None:
        if self._when(given):
            self.reached.set()
            assert self._open.wait(10)

    def open(self) -> None:
        self._open.set()


async def test_a_call_gets_a_picture_for_each_image_it_asked_for_in_order(house, model):
    call = house.call("p", step_count=5, image_count=3, seed=10)
    assert await call.task == [15, 16, 17]
    assert model.batches == [["p"] * 3] * 5
    await house.is_quiet()


async def test_calls_join_and_leave_between_evaluations_each_with_its_own_steps(house, model):
    model.before_advance = gate = Gate(lambda rows: rows[0].step == 2 and len(rows) == 1)
    long = house.call("long", step_count=12)
    await house.until(gate.reached.is_set)
    short, heun = house.call("short", step_count=3), house.call("heun", step_count=2, sampler="heun")
    await house.until(lambda: house.device._running == 3)
    gate.open()
    assert await asyncio.gather(long.task, short.task, heun.task) == [[12], [3], [4]]
    assert model.evaluations() == {"long": 12, "short": 3, "heun": 4}
    assert ["long", "short", "heun"] in [sorted(batch, key=["long", "short", "heun"].index) for batch in model.batches]
    assert model.batches[-1] == ["long"]
    await house.is_quiet()


async def test_an_evaluation_takes_no_more_than_the_model_says(house, model):
    calls = [house.call(f"c{number}", guidance_scale=4.0 if number % 2 else 1.0) for number in range(6)]
    await asyncio.gather(*(call.task for call in calls))
    sizes = [sum(2 if int(name[1:]) % 2 else 1 for name in batch) for batch in model.batches]
    assert max(sizes) == model.most
    await house.is_quiet()


async def test_pictures_of_other_sizes_and_other_models_take_turns(house, model):
    model.before_prepare = gate = Gate()
    calls = [house.call("p"), house.call("q"), house.call("wide", width=32)]
    await house.until(lambda: gate.reached.is_set())
    other = house.call("other", model="b")
    await asyncio.sleep(0.05)
    gate.open()
    assert await asyncio.gather(*(call.task for call in [*calls, other])) == [[4]] * 4
    assert {len(set(batch) & {"p", "q"}) and len(set(batch) & {"wide"}) for batch in model.batches} == {0}
    assert house.shelf.models["b"].evaluations() == {"other": 4}
    await house.is_quiet()


async def test_the_device_is_shared_by_weight(house, model):
    """Of two that don't fit into one evaluation, one has had three times as much as the other when it is done."""
    model.before_prepare = gate = Gate()
    heavy = house.call("heavy", step_count=30, width=32, weight=3.0)
    light = house.call("light", step_count=30)
    await house.until(gate.reached.is_set)
    await house.until(lambda: house.device._running == 2)
    gate.open()
    await asyncio.gather(heavy.task, light.task)
    names = [batch[0] for batch in model.batches]
    first = names.index("light")
    before = names[first : len(names) - 1 - names[::-1].index("heavy")]
    assert before.count("heavy") / before.count("light") == pytest.approx(3, rel=0.15)


async def test_a_call_that_can_just_make_its_deadline_goes_first(house, model):
    model.step_s = 0.02
    others = [house.call(f"other{number}", step_count=100, width=32 + number) for number in range(6)]
    await house.until(lambda: len(model.batches) > 8)
    late = house.call("late", step_count=15, timeout=1.0)  # alone 0.3 s, by turns 2.1 s
    assert await late.task == [15]
    for other in others:
        other.vanish()
    await house.until(lambda: not house.device.busy)


async def test_a_call_that_cannot_make_its_deadline_does_not_hold_up_others(house, model):
    model.step_s = 0.01
    other = house.call("other", step_count=20, width=32)
    late = house.call("late", step_count=1000, timeout=0.5)
    assert await other.task == [20]
    assert model.evaluations()["late"] < 30
    with pytest.raises(DeadlineExceeded):
        await late.task
    await house.is_quiet()


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
async def test_a_call_that_is_over_is_gone_by_the_next_evaluation_and_never_decoded(house, model, how):
    gate = Gate(lambda rows: any(row.prompt == "gone" and row.step == 3 for row in rows))
    model.before_advance = gate
    stays = house.call("stays", step_count=20)
    gone = house.call("gone", step_count=10, timeout=0.3 if how == "deadline" else None)
    await house.until(gate.reached.is_set)
    if how == "cancelled":
        gone.vanish()
    await asyncio.sleep(0.4 if how == "deadline" else 0.02)
    gate.open()
    assert await stays.task == [20]
    with pytest.raises((asyncio.CancelledError, DeadlineExceeded)):
        await gone.task
    assert model.evaluations() == {"stays": 20, "gone": 4}
    assert model.decoded == ["stays"]
    await house.is_quiet()


@pytest.mark.parametrize("where", ["lease", "prepare", "decode"])
async def test_a_call_that_is_over_while_others_work_for_it_waits_for_nothing_and_leaves_nothing(house, model, where):
    gate = Gate()
    if where == "lease":
        house.shelf.before_lease = gate
    else:
        setattr(model, f"before_{where}", gate)
    call = house.call("p", timeout=0.2)
    await house.until(gate.reached.is_set)
    with pytest.raises(DeadlineExceeded):
        await call.task
    await asyncio.sleep(0.1)
    assert house.shelf.leased["a"] == (where != "lease"), "the other thread still works with the model"
    gate.open()
    await asyncio.sleep(0.05)
    await house.is_quiet()
    assert model.evaluations().total() == (4 if where == "decode" else 0)


async def test_a_call_that_is_over_when_its_turn_to_be_decoded_comes_is_not(house, model):
    model.before_decode = gate = Gate(lambda row: row.prompt == "slow")
    model.before_prepare = both = Gate()
    slow, gone = house.call("slow"), house.call("gone", step_count=20)
    await house.until(lambda: house.device._running == 2)
    both.open()
    await house.until(gate.reached.is_set)
    await house.until(lambda: gone.told("progress") and gone.told("progress")[-1].stage == "finish")
    gone.vanish()
    await house.until(lambda: house.device._running == 1)
    gate.open()
    assert await slow.task == [4]
    await house.is_quiet()
    assert model.decoded == ["slow"]


async def test_the_loop_wakes_when_other_threads_are_done(house, monkeypatch):
    monkeypatch.setattr(engine, "POLL_S", 60)
    call = house.call("p", previews=True)
    assert await asyncio.wait_for(call.task, 5) == [4]


async def test_calls_that_are_over_leave_nothing_that_others_are_measured_by(house, model):
    """A newcomer starts at the least of those that are there, not at what one had that went long ago."""
    old = house.call("old", step_count=100)
    await house.until(lambda: model.batches)
    await house.call("gone", step_count=1, width=32).task
    await house.until(lambda: len(model.batches) > 40)
    new = house.call("new", step_count=20, width=32)
    assert await new.task == [20]
    names = [name for name, *_ in model.batches]
    during = names[names.index("new") : len(names) - names[::-1].index("new")]
    assert during.count("old") == pytest.approx(20, abs=2)
    old.vanish()
    await house.until(lambda: not house.device.busy)


async def test_a_cancelled_call_is_noticed_soon_while_only_other_threads_work(house, model):
    model.before_prepare = gate = Gate(lambda request: request.parameters.prompt == "slow")
    calls = [house.call("slow"), house.call("cancelled")]
    await house.until(lambda: gate.reached.is_set() and house.device._running == 2)
    calls[1].vanish()
    await house.until(lambda: house.device._running == 1, within_s=0.5)
    gate.open()
    assert await calls[0].task == [4]
    await house.is_quiet()


async def test_a_picture_that_comes_to_nothing_ends_its_call_alone(house, model):
    model.failed = lambda row: BadArgument("no numbers") if row.prompt == "bad" and row.value == 2 else None
    good, bad = house.call("good", step_count=8), house.call("bad", step_count=8, image_count=2)
    assert await good.task == [8]
    with pytest.raises(BadArgument, match="no numbers"):
        await bad.task
    assert model.evaluations()["bad"] <= 4
    assert model.decoded == ["good"]
    await house.is_quiet()


@pytest.mark.parametrize("error", [ZeroDivisionError(), MemoryError(), SystemExit(1), StopIteration()], ids=repr)
async def test_an_error_of_the_model_ends_the_calls_of_that_evaluation_and_no_others(house, model, error):
    def fault(rows: Sequence[Row]) -> None:
        if any(row.prompt == "bad" and row.step == 2 for row in rows):
            raise error

    model.before_advance = fault
    wide = house.call("wide", width=32, step_count=12)
    bad = house.call("bad")
    with pytest.raises(type(error) if isinstance(error, ZeroDivisionError | MemoryError) else RuntimeError):
        await bad.task
    assert await wide.task == [12]
    assert await house.call("next").task == [4]
    await house.is_quiet()


@pytest.mark.parametrize("where", ["prepare", "decode"])
async def test_what_fails_beside_the_steps_ends_its_call_alone(house, model, where):
    def fault(given: Any) -> None:
        if getattr(given, "prompt", None) == "bad" or getattr(given, "parameters", parameters("")).prompt == "bad":
            raise BadArgument("too long", field="prompt")

    setattr(model, f"before_{where}", fault)
    good, bad = house.call("good"), house.call("bad", image_count=3)
    assert await good.task == [4]
    with pytest.raises(BadArgument, match="too long"):
        await bad.task
    await house.is_quiet()


async def test_a_model_that_is_not_there_ends_the_call(house):
    with pytest.raises(ModelNotInstalled):
        await house.call("p", model="c").task
    await house.is_quiet()


async def test_loading_one_model_holds_up_no_calls_of_another(house):
    house.shelf.before_lease = gate = Gate(lambda name: name == "b")
    slow = house.call("slow", model="b")
    await house.until(gate.reached.is_set)
    assert await house.call("quick").task == [4]
    gate.open()
    assert await slow.task == [4]
    await house.is_quiet()


@pytest.mark.parametrize("where", ["prepare", "decode"])
async def test_encoding_and_decoding_stop_nobodys_steps(house, model, where):
    running = house.call("running", step_count=200)
    await house.until(lambda: model.batches)
    gate = Gate(lambda given: "slow" in (getattr(given, "prompt", ""), vars(given).get("parameters", given).prompt))
    setattr(model, f"before_{where}", gate)
    slow = house.call("slow")
    await house.until(gate.reached.is_set)
    before = model.evaluations()["running"]
    await house.until(lambda: model.evaluations()["running"] > before + 10)
    gate.open()
    await asyncio.gather(slow.task, running.task)
    await house.is_quiet()


async def test_progress_tells_every_stage_and_the_picture_that_is_behind(house, model):
    model.most, model.step_s = 2, 0.01
    call = house.call("p", image_count=3, step_count=3)
    await call.task
    progress = call.told("progress")
    stages = list(dict.fromkeys(each.stage for each in progress))
    assert [stage for stage in stages if stage in ("prepare", "denoise", "finish")][-2:] == ["denoise", "finish"]
    steps = [each.step for each in progress if each.stage == "denoise"]
    assert steps == sorted(steps)
    assert max(steps) >= 1, "some are missed, as the latest wins"
    assert any(each.HasField("eta") for each in progress if each.stage == "denoise")
    timings = [timing.stage for timing in call.told("finished")[0].timings]
    assert timings == ["queue", "decode", "prepare", "denoise", "finish", "encode"]
    assert call.told("finished")[0].timings[3].duration.ToSeconds() < 1


async def test_previews_show_every_interval_of_every_picture(house, model):
    model.step_s = 0.02
    call = house.call("p", step_count=7, image_count=2, previews=True, preview_interval=3)
    await call.task
    seen = [(each.image_index, each.step, each.image.raw.data[0]) for each in call.told("preview")]
    assert sorted(seen) == [(0, 3, 3), (0, 6, 6), (1, 3, 3), (1, 6, 6)]


async def test_a_preview_is_shown_once_a_step_whatever_the_sampler_evaluates(house, model):
    model.step_s = 0.02
    call = house.call("p", step_count=3, sampler="heun", previews=True)
    await call.task
    assert [each.step for each in call.told("preview")] == [1, 2]


async def test_slow_previews_are_replaced_by_later_ones(house, model):
    made = []

    def slow(row: Row) -> None:
        made.append(row.step)
        time.sleep(0.05)

    model.before_preview = slow
    call = house.call("p", step_count=60, previews=True)
    assert await call.task == [60]
    steps = [each.step for each in call.told("preview")]
    assert len(made) < 10
    assert steps == sorted(steps)
    assert [name for name, _ in call.events][-2:] == ["result", "finished"]


async def test_a_preview_that_fails_harms_nobody(house, model, caplog):
    def fault(row: Row) -> None:
        raise ZeroDivisionError

    model.before_preview = fault
    call = house.call("p", previews=True)
    with caplog.at_level(logging.ERROR):
        assert await call.task == [4]
    assert "preview" in caplog.text
    await house.is_quiet()


async def test_a_turn_of_another_kind_waits_for_those_who_are_there_and_no_others(house, model):
    """Such as loading a model by hand, which is a call of its own."""
    running = house.call("running", step_count=30)
    await house.until(lambda: model.batches)
    ticket = house.device.admit(lambda position, eta: None)
    other = asyncio.create_task(ticket.run(lambda: model.evaluations().total()))
    later = [house.call(f"later{number}", step_count=30) for number in range(3)]
    assert await other == 30
    ticket.end()
    assert await running.task == [30]
    await asyncio.gather(*(call.task for call in later))
    await house.is_quiet()


async def test_no_more_pictures_are_active_than_may_be(model):
    house = House(Shelf(a=model), max_active=3)
    most = 0

    def count(rows: Sequence[Row]) -> None:
        nonlocal most
        most = max(most, len(model.rows))

    model.before_advance = count
    calls = [house.call(f"c{number}", image_count=1 + number % 3) for number in range(12)]
    calls.append(house.call("many", image_count=3))
    await asyncio.gather(*(call.task for call in calls))
    assert most == 3
    await house.is_quiet()
    house.close()


async def test_calls_of_a_closed_engine_are_told_that_the_server_stops(house, model):
    model.before_prepare = gate = Gate()
    call = house.call("p")
    await house.until(gate.reached.is_set)
    house.engine.close()
    gate.open()
    with pytest.raises(Stopping):
        await call.task
    late = house.call("late", model="b")
    with pytest.raises(Stopping):
        await late.task
    assert not any("load-b" in thread.name for thread in threading.enumerate())
    await house.is_quiet()


async def test_the_engines_threads_end_with_it(model):
    house = House(Shelf(a=model))
    await house.call("p").task
    house.close()
    await house.until(lambda: not any("limner-diffusion" in thread.name for thread in threading.enumerate()))


async def test_what_is_done_beside_the_steps_leaves_no_thread_behind(house, model):
    """Threads that computed keep OpenMP's helpers, which slow the steps."""
    worked: list[threading.Thread] = []
    model.before_prepare = lambda *arguments: worked.append(threading.current_thread())
    await house.call("p").task
    assert worked[0] is not threading.current_thread()
    await house.until(lambda: not any(thread.is_alive() for thread in worked))


async def test_without_a_thread_to_be_had_the_work_is_done_where_it_stands(house, model, monkeypatch):
    worked: list[str] = []
    model.before_prepare = lambda *arguments: worked.append(threading.current_thread().name)
    await house.call("first").task  # begins the threads that wait for work
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("limner-diffusion"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    await house.call("second").task
    assert len(worked) == 2
    assert worked[1].startswith("limner-diffusion")


@pytest.mark.parametrize("how", ["succeeds", "fails"])
async def test_a_call_that_is_over_keeps_no_pictures_alive(house, model, how):
    """Also while the turn goes on for others."""
    held: list[weakref.ref[Any]] = []

    def watch(rows: Sequence[Row]) -> None:
        for row in rows:
            if row.prompt == "watched" and row.step == 1:
                held.extend([weakref.ref(row), weakref.ref(row.picture)])
                if how == "fails":
                    raise ZeroDivisionError

    model.before_advance = watch
    gc.disable()
    try:
        stays = house.call("stays", step_count=400, width=32)
        call = house.call("watched", previews=True)
        task = call.task
        del call.task  # which would lead from the error to itself
        await asyncio.gather(task, return_exceptions=True)
        del call, task
        await house.until(lambda: held and all(each() is None for each in held), 0.5)
        assert not stays.task.done()
        stays.vanish()
    finally:
        gc.enable()
    await house.is_quiet()


async def test_nothing_is_lost_and_nothing_leaks_however_calls_come_and_go(house, model):
    model.step_s = house.shelf.models["b"].step_s = 0.0005
    model.failed = lambda row: BadArgument("no numbers") if row.seed == 7 and row.value == 3 else None
    draw = random.Random(5)
    outcomes: Counter[str] = Counter()

    async def one(number: int) -> None:
        await asyncio.sleep(draw.random() * 0.5)
        steps, count, seed = draw.randint(1, 12), draw.choice([1, 1, 1, 2, 4]), draw.randint(0, 20)
        call = house.call(
            str(number),
            model=draw.choice("aab"),
            step_count=steps,
            image_count=count,
            seed=seed,
            width=draw.choice([16, 32]),
            guidance_scale=draw.choice([1.0, 4.0]),
            sampler=draw.choice(["count", "heun"]),
            weight=draw.choice([0.1, 1.0, 10.0]),
            timeout=draw.choice([None, None, None, 0.01, 30.0]),
            previews=draw.random() < 0.5,
        )
        if draw.random() < 0.3:
            await asyncio.sleep(draw.random() * 0.03)
            call.vanish()
        try:
            values = await call.task
        except (asyncio.CancelledError, Cancelled):
            outcomes["cancelled"] += 1
        except DeadlineExceeded:
            outcomes["late"] += 1
        except BadArgument:
            outcomes["failed"] += 1
        else:
            outcomes["done"] += 1
            evaluations = steps * (2 if call._request.parameters.sampler == "heun" else 1)
            assert values == [evaluations + seed + index for index in range(count)]

    await asyncio.wait_for(asyncio.gather(*(one(number) for number in range(200))), 30)
    assert outcomes.total() == 200
    assert min(outcomes[kind] for kind in ("done", "cancelled", "late", "failed")) > 0, outcomes
    await house.is_quiet()


class Meter:
    """Notes what is recorded or added."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, dict[str, str]]] = []

    def record(self, value: float, labels: dict[str, str]) -> None:
        self.seen.append((value, labels))

    add = record


async def test_steps_and_pictures_are_measured_by_model(house, model, monkeypatch):
    meters = {name: Meter() for name in ("step_duration", "pictures_at_once", "pictures_active")}
    for name, meter in meters.items():
        monkeypatch.setattr(telemetry, name, meter)
    await house.call("p", image_count=3, step_count=5).task
    await house.call("q", model="b", step_count=1).task
    assert [value for value, _ in meters["pictures_at_once"].seen] == [3] * 5 + [1]
    assert all(value >= STEP_S for value, _ in meters["step_duration"].seen)
    assert [(value, labels["model"]) for value, labels in meters["pictures_active"].seen] == [
        (3, "a"),
        (-3, "a"),
        (1, "b"),
        (-1, "b"),
    ]
