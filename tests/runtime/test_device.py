"""Turns that calls share."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest

from limner.runtime import device as devices
from limner.runtime.device import Device, Intake, Open, Seat, Shared, Ticket

MOST = 4


@pytest.fixture
async def device() -> AsyncIterator[Device]:
    made = Device("cpu", 32, most_at_once=MOST)
    yield made
    made.close()


@pytest.fixture
def turns() -> list[list[str]]:
    """Who was in which turn."""
    return []


class Blocker:
    """Holds the device's turn until it is let go."""

    def __init__(self, device: Device) -> None:
        self._go, self._in = threading.Event(), threading.Event()
        self._ticket = admitted(device)
        self._task = asyncio.create_task(self._ticket.run(self._wait))

    def _wait(self) -> None:
        self._in.set()
        self._go.wait(5)

    async def holds(self) -> Blocker:
        await asyncio.to_thread(self._in.wait, 5)
        return self

    async def let_go(self) -> None:
        self._go.set()
        await self._task


def admitted(device: Device) -> Ticket:
    return device.admit(lambda position, eta: None)


def offer(ticket: Ticket, name: str, turns: list[list[str]], *, key: Any = "a", size: int = 1) -> asyncio.Task[Any]:
    """Make a call ready, which answers with its name in capitals."""

    def work(seats: Sequence[Seat[str]]) -> None:
        turns.append([seat.given for seat in seats])
        for seat in seats:
            seat.succeed(seat.given.upper())

    return asyncio.create_task(ticket.share(Shared(name, work, key=key, size=size, most=MOST)))


async def test_ready_calls_of_one_key_share_a_turn_as_far_as_they_fit(device, turns):
    blocker = await Blocker(device).holds()
    names = ["p", "q", "r", "s", "t", "u"]
    tasks = [offer(admitted(device), name, turns) for name in names]
    await asyncio.sleep(0.02)
    await blocker.let_go()
    assert await asyncio.gather(*tasks) == [name.upper() for name in names]
    assert turns == [["p", "q", "r", "s"], ["t", "u"]]


async def test_calls_of_another_key_or_too_large_do_not_join(device, turns):
    blocker = await Blocker(device).holds()
    tickets = [admitted(device) for _ in range(5)]
    tasks = [
        offer(tickets[0], "first", turns, size=2),
        offer(tickets[1], "other", turns, key="b"),
        offer(tickets[2], "large", turns, size=3),
        offer(tickets[3], "fits", turns, size=2),
        offer(tickets[4], "alone", turns, key=None),
    ]
    await asyncio.sleep(0.02)
    await blocker.let_go()
    await asyncio.gather(*tasks)
    assert turns == [["first", "fits"], ["other"], ["large"], ["alone"]], "who stands in front is next all the same"


async def test_a_call_waits_for_no_more_turns_than_calls_were_in_front_of_it(device, turns):
    """However many of the other key come after it."""
    blocker = await Blocker(device).holds()
    tasks = [offer(admitted(device), "a0", turns), offer(admitted(device), "a1", turns, size=MOST)]
    tasks.append(offer(admitted(device), "b", turns, key="b"))
    tasks += [offer(admitted(device), f"a{number}", turns) for number in range(2, 12)]
    await asyncio.sleep(0.02)
    await blocker.let_go()
    await asyncio.gather(*tasks)
    assert turns.index(["b"]) == 2
    assert all(len(turn) <= MOST for turn in turns)


async def test_a_call_that_is_alone_starts_at_once(device, turns, monkeypatch):
    monkeypatch.setattr(devices, "COMPANY_WAIT_S", 60)
    assert await asyncio.wait_for(offer(admitted(device), "a", turns), 5) == "A"


async def test_a_call_waits_a_moment_for_those_behind_it_that_are_being_decoded(device, turns, monkeypatch):
    monkeypatch.setattr(devices, "COMPANY_WAIT_S", 60)
    first, second = admitted(device), admitted(device)
    task = offer(first, "a", turns)
    await asyncio.sleep(0.05)
    assert not turns
    other = offer(second, "b", turns)
    await asyncio.wait_for(asyncio.gather(task, other), 5)
    assert turns == [["a", "b"]]


async def test_nobody_waits_longer_for_company_than_the_constant(device, turns):
    assert devices.COMPANY_WAIT_S <= 0.005
    first, _ = admitted(device), admitted(device)
    began = time.monotonic()
    await offer(first, "a", turns)
    assert devices.COMPANY_WAIT_S <= time.monotonic() - began < 1


@pytest.mark.parametrize("how", ["full", "alone", "leaves"])
async def test_nobody_waits_for_company_that_cannot_come(device, turns, monkeypatch, how):
    monkeypatch.setattr(devices, "COMPANY_WAIT_S", 60)
    first, second = admitted(device), admitted(device)
    task = offer(first, "a", turns, size=MOST if how == "full" else 1, key=None if how == "alone" else "a")
    if how == "leaves":
        await asyncio.sleep(0.01)
        second.end()
    await asyncio.wait_for(task, 5)
    assert turns == [["a"]]


async def test_a_call_that_left_while_it_waited_has_no_seat(device, turns):
    blocker = await Blocker(device).holds()
    tickets = [admitted(device) for _ in range(3)]
    tasks = [offer(ticket, name, turns) for ticket, name in zip(tickets, "abc", strict=True)]
    await asyncio.sleep(0.01)
    tickets[1].end()
    tasks[1].cancel()
    await blocker.let_go()
    await asyncio.gather(tasks[0], tasks[2])
    assert turns == [["a", "c"]]


async def test_results_are_handed_over_while_the_turn_goes_on_and_errors_to_those_left(device):
    go = threading.Event()

    def work(seats: Sequence[Seat[str]]) -> None:
        seats[0].succeed("early")
        go.wait(5)
        seats[1].fail(KeyError("its own"))
        raise ZeroDivisionError

    blocker = await Blocker(device).holds()
    tasks = [
        asyncio.create_task(admitted(device).share(Shared(name, work, key="a", most=MOST))) for name in ("p", "q", "r")
    ]
    await asyncio.sleep(0.01)
    await blocker.let_go()
    assert await asyncio.wait_for(tasks[0], 5) == "early"
    assert device.busy
    go.set()
    errors = await asyncio.gather(*tasks[1:], return_exceptions=True)
    assert [type(error) for error in errors] == [KeyError, ZeroDivisionError]


async def test_an_error_that_no_future_takes_leaves_nobody_waiting(device):
    def work(seats: Sequence[Seat[str]]) -> None:
        try:
            next(iter([]))
        except Exception as error:
            seats[0].fail(error)

    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(admitted(device).share(Shared("p", work, key="a", most=MOST)), 5)


async def test_every_call_works_in_its_own_context(device):
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")

    def work(seats: Sequence[Seat[None]]) -> None:
        for seat in seats:
            seat.succeed(seat.within(name.get))

    async def call(its: str) -> str:
        name.set(its)
        result: str = await admitted(device).share(Shared(None, work, key="a", most=MOST))
        return result

    blocker = await Blocker(device).holds()
    calls = asyncio.gather(*(asyncio.create_task(call(its)) for its in "pqr"))
    await asyncio.sleep(0.01)
    await blocker.let_go()
    assert await calls == ["p", "q", "r"]


async def test_as_many_are_decoded_ahead_as_can_share_a_turn(device):
    blocker = await Blocker(device).holds()
    tickets = [admitted(device) for _ in range(8)]
    assert [ticket.near.is_set() for ticket in tickets].count(True) == MOST + 1
    for ticket in tickets:
        ticket.end()
    await blocker.let_go()


async def test_an_error_of_a_shared_turn_keeps_no_pictures_alive(device):
    def work(seats: Sequence[Seat[Any]]) -> None:
        raise ZeroDivisionError

    pictures = [np.zeros(1000) for _ in range(2)]
    held = [weakref.ref(picture) for picture in pictures]
    gc.disable()
    try:
        blocker = await Blocker(device).holds()
        tasks = [
            asyncio.create_task(admitted(device).share(Shared(picture, work, key="a", most=MOST)))
            for picture in pictures
        ]
        await asyncio.sleep(0.01)
        pictures.clear()
        await blocker.let_go()
        kinds = [type(error) for error in await asyncio.gather(*tasks, return_exceptions=True)]
        del tasks
        assert kinds == [ZeroDivisionError] * 2
        for _ in range(100):  # the device's thread may be about to return
            if all(each() is None for each in held):
                return
            await asyncio.sleep(0.01)
        pytest.fail("the pictures wait for Python's collector")
    finally:
        gc.enable()


class Room:
    """Work of an open turn that notes who is in it, and ends its calls when it is told to."""

    def __init__(self) -> None:
        self.joined: list[str] = []
        self.turns = 0
        self._to_end: set[str] = set()
        self._intake: Intake[str] | None = None

    def __call__(self, intake: Intake[str]) -> None:
        self.turns += 1
        self._intake = intake
        here: list[Seat[str]] = []
        while here or not intake.close():
            intake.wait(5)
            for seat in intake.take():
                self.joined.append(seat.given)
                here.append(seat)
            for seat in [seat for seat in here if seat.given in self._to_end]:
                here.remove(seat)
                seat.succeed(seat.given.upper())

    def offer(self, ticket: Ticket, name: str, *, key: Any = "a", size: int = 1) -> asyncio.Task[Any]:
        """Make a call ready, which answers with its name in capitals."""
        return asyncio.create_task(ticket.share(Open(name, self, key=key, size=size, most=MOST)))

    def end(self, *names: str) -> None:
        self._to_end |= set(names)
        if self._intake is not None:
            self._intake.wake()

    async def has(self, *names: str) -> None:
        """Wait until so many have joined, in this order, and see that no others do."""
        for _ in range(500):
            if len(self.joined) >= len(names):
                break
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.02)
        assert self.joined == list(names)


@pytest.fixture
def room() -> Room:
    return Room()


async def test_calls_join_an_open_turn_while_it_goes_on_and_leave_as_they_end(device, room):
    first = room.offer(admitted(device), "p")
    await room.has("p")
    second = room.offer(admitted(device), "q")
    await room.has("p", "q")
    room.end("p")
    assert await first == "P"
    assert device.busy
    third = room.offer(admitted(device), "r")
    await room.has("p", "q", "r")
    room.end("q", "r")
    assert await asyncio.gather(second, third) == ["Q", "R"]
    assert room.turns == 1


async def test_an_open_turn_ends_with_its_last_call_and_another_one_can_begin(device, room):
    for name in "pqr":
        task = room.offer(admitted(device), name)
        room.end(name)
        assert await asyncio.wait_for(task, 5) == name.upper()
    for _ in range(100):
        if not device.busy:
            break
        await asyncio.sleep(0.01)
    assert not device.busy
    assert 1 <= room.turns <= 3
    assert await admitted(device).run(lambda: 5) == 5


async def test_calls_join_as_far_as_they_fit_and_give_their_room_back(device, room):
    tasks = [room.offer(admitted(device), name, size=size) for name, size in [("p", 2), ("q", 1), ("r", 2), ("s", 1)]]
    await room.has("p", "q")
    room.end("q")  # one place is not enough for r, and s overtakes nobody
    await room.has("p", "q", "r")
    room.end("p")
    await room.has("p", "q", "r", "s")
    room.end("r", "s")
    assert await asyncio.gather(*tasks) == ["P", "Q", "R", "S"]
    assert room.turns == 1


async def test_a_call_that_is_larger_than_an_open_turn_has_it_alone(device, room):
    tasks = [room.offer(admitted(device), name, size=size) for name, size in [("p", 1), ("q", MOST + 3), ("r", 1)]]
    await room.has("p")
    room.end("p")
    await room.has("p", "q")
    room.end("q", "r")
    assert await asyncio.gather(*tasks) == ["P", "Q", "R"]


@pytest.mark.parametrize("other", ["alone", "key"])
async def test_nobody_joins_past_a_head_of_another_kind_so_that_the_turn_runs_out(device, room, other):
    first = room.offer(admitted(device), "p")
    await room.has("p")
    told: list[int] = []
    stranger = device.admit(lambda position, eta: told.append(position))
    strangers = Room()
    second = (
        asyncio.create_task(stranger.run(lambda: "LOADED"))
        if other == "alone"
        else strangers.offer(stranger, "loaded", key="b")
    )
    strangers.end("loaded")
    third = room.offer(admitted(device), "q")
    await room.has("p")
    assert told == [0, 1], "next, as far as could be told before it was decoded, and then behind the turn"
    room.end("p", "q")
    assert await asyncio.wait_for(asyncio.gather(first, second, third), 5) == ["P", "LOADED", "Q"]
    assert room.turns == 2


async def test_a_head_that_gives_up_lets_those_behind_it_join(device, room):
    first = room.offer(admitted(device), "p")
    await room.has("p")
    stranger = admitted(device)
    second = room.offer(admitted(device), "q")
    await room.has("p")
    stranger.end()
    await room.has("p", "q")
    room.end("p", "q")
    await asyncio.gather(first, second)


async def test_calls_that_an_open_turn_can_take_are_told_that_they_are_next(device, room):
    told: dict[str, list[int]] = {"room": [], "full": [], "behind": []}
    tasks = [room.offer(admitted(device), "p")]
    await room.has("p")
    early = device.admit(lambda position, eta: told["room"].append(position))
    assert told["room"] == [0]
    tasks.append(room.offer(early, "q", size=MOST - 1))
    await room.has("p", "q")
    late = device.admit(lambda position, eta: told["full"].append(position))
    behind = device.admit(lambda position, eta: told["behind"].append(position))
    assert (told["full"], told["behind"]) == ([1], [2])
    room.end("q")
    await tasks[1]
    await asyncio.sleep(0.01)
    assert (told["full"], told["behind"]) == ([1, 0], [2, 1])
    for ticket in (late, behind):
        ticket.end()
    room.end("p")
    await asyncio.gather(*tasks)


async def test_the_wait_for_an_open_turn_is_estimated_from_the_calls_that_left_it(device, room):
    tasks = [room.offer(admitted(device), name) for name in "pqrst"]
    await room.has("p", "q", "r", "s")
    for name in "pq":
        await asyncio.sleep(0.1)
        room.end(name)
    etas: list[float | None] = []
    await asyncio.gather(*tasks[:2])
    await room.has("p", "q", "r", "s", "t")
    blocked = room.offer(admitted(device), "u", size=MOST)
    await asyncio.sleep(0)
    device.admit(lambda position, eta: etas.append(eta)).end()
    assert etas[0] is not None
    assert 0.1 < etas[0] < 1, "a call leaves every 0.1 s; two must, and some of the first one's time is over"
    room.end(*"rstu")
    await asyncio.gather(*tasks, blocked)


@pytest.mark.parametrize("how", ["raises", "returns"])
async def test_calls_that_an_open_turns_work_leaves_end_with_an_error(device, room, how):
    go = threading.Event()

    def work(intake: Intake[str]) -> None:
        intake.take()
        go.wait(5)  # another one comes and is never taken
        if how == "raises":
            raise ZeroDivisionError

    def offer(name: str) -> asyncio.Task[Any]:
        return asyncio.create_task(admitted(device).share(Open(name, work, key="a", most=MOST)))

    tasks = [offer("p")]
    await asyncio.sleep(0.02)
    tasks.append(offer("q"))
    await asyncio.sleep(0.02)
    go.set()
    errors = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert [type(error) for error in errors] == [ZeroDivisionError if how == "raises" else RuntimeError] * 2
    next_one = room.offer(admitted(device), "r")
    room.end("r")
    assert await asyncio.wait_for(next_one, 5) == "R"


async def test_no_call_is_lost_however_closely_it_meets_the_end_of_an_open_turn(device):
    turns = 0

    def work(intake: Intake[int]) -> None:
        nonlocal turns
        turns += 1
        while not intake.close():
            for seat in intake.take():
                seat.succeed(seat.given)

    async def call(number: int) -> Any:
        await asyncio.sleep((number * 7919 % 211) / 1e4)
        ticket = admitted(device)
        try:
            return await ticket.share(Open(number, work, key="a", most=MOST))
        finally:
            ticket.end()

    device.queue_limit = 1000
    answers = await asyncio.wait_for(asyncio.gather(*map(call, range(1000))), 20)
    assert answers == list(range(1000))
    assert turns > 10, "the end was met"
    assert device._open_calls == 0
    for _ in range(100):
        if not device.busy:
            return
        await asyncio.sleep(0.01)
    pytest.fail("the device stays busy")


async def test_an_open_turn_keeps_no_pictures_of_calls_that_ended(device):
    go = threading.Event()

    def work(intake: Intake[Any]) -> None:
        for seat in intake.take():
            seats.append(weakref.ref(seat))
            seat.fail(ZeroDivisionError())
        del seat
        go.wait(5)
        while not intake.close():
            for seat in intake.take():
                seat.succeed(None)

    seats: list[weakref.ref[Seat[Any]]] = []
    pictures = [np.zeros(1000)]
    held = weakref.ref(pictures[0])
    gc.disable()
    try:
        ticket = admitted(device)
        task = asyncio.create_task(ticket.share(Open(pictures.pop(), work, key="a", most=MOST)))
        await asyncio.gather(task, return_exceptions=True)
        ticket.end()
        del task, ticket
        await asyncio.sleep(0.02)
        assert held() is None, "the picture waits for Python's collector, or for the turn's end"
        assert [seat() for seat in seats] == [None], "as does all that surrounds the call"
    finally:
        go.set()
        gc.enable()


async def test_the_device_is_taken_until_an_open_turns_work_returns(device, room):
    closed, go = threading.Event(), threading.Event()

    def work(intake: Intake[str]) -> None:
        (seat,) = intake.take()
        seat.succeed(None)
        while not intake.close():
            pass
        closed.set()
        go.wait(5)

    await admitted(device).share(Open("p", work, key="a", most=MOST))
    await asyncio.to_thread(closed.wait, 5)
    assert device.busy
    second = room.offer(admitted(device), "q")
    await asyncio.sleep(0.02)
    assert device.waiting == 1
    go.set()
    await room.has("q")
    assert device.busy
    third = room.offer(admitted(device), "r")
    await room.has("q", "r")
    room.end("q", "r")
    assert await asyncio.gather(second, third) == ["Q", "R"]
