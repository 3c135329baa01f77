"""Functions that go on when they are told to."""

from __future__ import annotations

import threading

import pytest

from limner.diffusion.legacy.turns import Closed, Turns


def counting(seen: list[object], limit: int = 3) -> Turns:
    turns: Turns

    def count() -> None:
        try:
            for number in range(limit):
                seen.append(number)
                turns.pause()
        except Closed:
            seen.append("closed")
            raise

    turns = Turns("counting", count)
    return turns


def test_nothing_runs_before_the_first_turn() -> None:
    seen: list[object] = []
    turns = counting(seen)
    assert seen == []
    turns.close()
    turns.resume()
    assert seen == []


def test_each_turn_goes_to_the_next_pause_and_the_last_to_the_end() -> None:
    seen: list[object] = []
    turns = counting(seen)
    lengths = []
    while not turns.ended:
        turns.resume()
        lengths.append(len(seen))
    assert lengths == [1, 2, 3, 3]
    turns.resume()
    turns.close()
    assert seen == [0, 1, 2]


def test_what_is_raised_comes_out_once() -> None:
    def fail() -> None:
        raise ArithmeticError("no number")

    turns = Turns("failing", fail)
    with pytest.raises(ArithmeticError, match="no number"):
        turns.resume()
    assert turns.ended
    turns.resume()
    turns.close()


def test_closing_ends_the_function_in_its_pause() -> None:
    seen: list[object] = []
    turns = counting(seen)
    turns.resume()
    turns.close()
    turns.close()
    assert seen == [0, "closed"]
    assert turns.ended
    assert "counting" not in [thread.name for thread in threading.enumerate()]


def test_closing_in_the_middle_of_a_turn_waits_for_its_end() -> None:
    going, go_on = threading.Event(), threading.Event()
    turns: Turns

    def work() -> None:
        turns.pause()
        going.set()
        go_on.wait(10)
        turns.pause()

    turns = Turns("working", work)
    turns.resume()
    resuming = threading.Thread(target=turns.resume)
    resuming.start()
    assert going.wait(10)
    closing = threading.Thread(target=turns.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    go_on.set()
    closing.join(10)
    resuming.join(10)
    assert not closing.is_alive()
    assert not resuming.is_alive()
    assert turns.ended


def test_many_at_once_are_all_handed_over() -> None:
    """Hand-overs in two directions, from several threads: none is lost."""
    done = []

    def drive() -> None:
        seen: list[object] = []
        turns = counting(seen, 200)
        while not turns.ended:
            turns.resume()
        done.append(len(seen))

    drivers = [threading.Thread(target=drive) for _ in range(8)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(60)
    assert done == [200] * 8
