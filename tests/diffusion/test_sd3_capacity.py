"""How many rows run at once is measured, with time set by the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from limner.diffusion.sd3 import capacity
from limner.diffusion.sd3.capacity import Capacity
from limner.diffusion.sd3.row import Bucket
from tests.diffusion.sd3 import PLAIN, TINY, load_model, load_pipeline, start

USUAL = Bucket(1024, 1024, 256)


class Clock:
    """A device that takes `seconds(rows)` for a run, and memory for so many rows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Any, memory: int = 1000) -> None:
        self.now = 100.0
        self.runs: list[int] = []
        self._seconds = seconds
        self._memory = memory
        monkeypatch.setattr(capacity.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(capacity.time, "perf_counter", lambda: self.now)

    def run(self, rows: int) -> bool:
        self.runs.append(rows)
        self.now += self._seconds(rows)
        return rows <= self._memory


@pytest.mark.parametrize(
    ("seconds", "most"),
    [
        (lambda rows: 0.01, 16),  # the device is not full at all
        (lambda rows: 0.001 * max(rows, 4), 4),  # full from 4 rows on: no better beyond
        (lambda rows: 0.001 * rows * {1: 1.0, 2: 0.8, 4: 1.0, 8: 0.5, 16: 0.49}[rows], 8),  # one that was disturbed
        (lambda rows: 0.001 * rows * (1 if rows < 4 else 1.2), 2),  # worse from 4 on
        (lambda rows: 0.02 * rows, 2),  # rows gain nothing at all
        (lambda rows: 0.02 * rows**0.9, 8),  # 16 would take 2.4 seconds a step
        (lambda rows: 0.5 * rows, 2),  # one alone takes 5
    ],
)
def test_the_cap_is_where_rows_gain_no_more_or_steps_are_too_long(
    monkeypatch: pytest.MonkeyPatch, seconds: Any, most: int
) -> None:
    clock, found = Clock(monkeypatch, seconds), Capacity()
    found.measure(USUAL, clock.run, share=0.1, budget_s=5.0)
    assert found.of(USUAL) == most
    assert clock.now <= 105


def test_the_cap_is_what_memory_is_enough_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, found = Clock(monkeypatch, lambda rows: 0.001, memory=7), Capacity()
    found.measure(USUAL, clock.run, share=1.0, budget_s=5.0)
    assert found.of(USUAL) == 4


def test_other_sizes_follow_by_their_tokens() -> None:
    found = Capacity()
    found.assume(USUAL, 4)
    assert found.of(USUAL) == 4
    assert found.of(Bucket(512, 512, 256)) == 4 * USUAL.tokens // Bucket(512, 512, 256).tokens > 8
    assert found.of(Bucket(2048, 2048, 256)) == 2  # a row with guidance always
    assert found.of(Bucket(64, 64, 77)) == 64


def test_a_cap_is_lowered_for_its_size_alone() -> None:
    found = Capacity()
    found.assume(USUAL, 8)
    found.lower(USUAL, 3)
    found.lower(USUAL, 5)
    assert found.of(USUAL) == 3
    assert found.of(Bucket(1024, 768, 256)) > 8
    found.lower(USUAL, 0)
    assert found.of(USUAL) == 1


def test_a_model_is_measured_at_its_usual_size(tiny_sd3: Path) -> None:
    model = load_model(tiny_sd3, load_pipeline(tiny_sd3))
    model.profile()
    usual = Bucket(TINY.width, TINY.height, TINY.text_length)
    assert 2 <= model.most_at_once(usual) <= 16
    assert model.most_at_once(start(model, PLAIN).bucket) >= model.most_at_once(usual)


def test_a_model_whose_steps_are_long_is_not_measured(tiny_sd3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(tiny_sd3, load_pipeline(tiny_sd3))
    tried: list[int] = []

    def slow(bucket: Bucket, rows: int, layers: int) -> bool:
        tried.append(rows)
        clock.now += 5.0
        return True

    clock = Clock(monkeypatch, lambda rows: 0.0)
    monkeypatch.setattr(model._batch, "try_out", slow)
    model.profile()
    assert tried == [1]
    assert model.most_at_once(Bucket(TINY.width, TINY.height, TINY.text_length)) == 2
