"""What the full-size benchmark counts, and that all of its ways run."""

from __future__ import annotations

import pytest
import torch

from bench.full_size import Bench, timed


@pytest.mark.parametrize(("model", "tera"), [("sd3.5-large", 31.1), ("sd3.5-medium", 11.2)])
def test_operations_of_a_forward_pass_are_the_published_sizes(model: str, tera: float) -> None:
    assert Bench.operations_of(model, 1024) / 1e12 == pytest.approx(tera, abs=0.1)


def test_all_ways_run() -> None:
    bench = Bench("tiny", 64)
    torch.set_num_threads(1)
    for make in (bench.theirs, bench.bare, bench.ours):
        assert timed(bench, make(compiled=False), 2, 2, 4.5) > 0
