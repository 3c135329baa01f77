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
from limner.runtime.device import Device, Seat, Shared, Ticket

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
