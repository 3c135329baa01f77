import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from training.checkpoint import Average, Budget, Checkpoint


class Run:
    """A line is fitted to noise that both kinds of random numbers make."""

    def __init__(self, path: Path) -> None:
        torch.manual_seed(1)
        self.network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        self.optimiser = torch.optim.Adam(self.network.parameters(), 0.1)
        self.average = Average(self.network)
        parts = {"network": self.network, "optimiser": self.optimiser, "average": self.average}
        self.checkpoint = Checkpoint(path, parts, np.random.default_rng(3))

    def step(self) -> None:
        random = self.checkpoint.random
        inputs = torch.from_numpy(random.normal(size=(8, 2)).astype(np.float32)) + torch.rand(8, 2)
        loss = (self.network(inputs) - 1).square().mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.average.update(self.network)
        self.checkpoint.step += 1

    def weights(self) -> list[float]:
        return [
            value.sum().item() for value in (*self.network.parameters(), *self.average.network.state_dict().values())
        ]


def test_a_resumed_run_goes_on_as_one_that_was_never_stopped(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole.pt")
    for _ in range(6):
        whole.step()
    first = Run(tmp_path / "run.pt")
    for _ in range(3):
        first.step()
    first.checkpoint.best = 27.5
    first.checkpoint.save(2.0)
    first.step()  # is lost
    second = Run(tmp_path / "run.pt")
    assert second.checkpoint.resume()
    assert (second.checkpoint.step, second.checkpoint.seconds, second.checkpoint.best) == (3, 2.0, 27.5)
    for _ in range(3):
        second.step()
    assert second.weights() == whole.weights()


def test_without_a_file_a_run_begins(tmp_path: Path) -> None:
    run = Run(tmp_path / "none.pt")
    assert not run.checkpoint.resume()
    assert run.checkpoint.step == 0


def test_a_save_that_fails_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run.pt")
    run.checkpoint.save()
    before = (tmp_path / "run.pt").read_bytes()

    def break_off(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space")

    monkeypatch.setattr(torch, "save", break_off)
    with pytest.raises(OSError, match="no space"):
        run.checkpoint.save()
    assert (tmp_path / "run.pt").read_bytes() == before


def test_the_average_follows_weights_and_statistics() -> None:
    network = nn.BatchNorm1d(1)
    average = Average(network, decay=0.5)
    with torch.no_grad():
        network.weight.fill_(3)
        network.running_mean.fill_(8)
        network.num_batches_tracked.fill_(7)
    for _ in range(60):
        average.update(network)
    assert average.network.weight.item() == pytest.approx(3)
    assert average.network.running_mean.item() == pytest.approx(8)
    assert average.network.num_batches_tracked.item() == 7
    assert not average.network.training


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_budget_and_not_the_process(number: int) -> None:
    before = signal.getsignal(number)
    with Budget(minutes=10) as budget:
        assert budget.left()
        os.kill(os.getpid(), number)
        assert not budget.left()
    assert signal.getsignal(number) is before


def test_time_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("training.checkpoint.time.monotonic", lambda: now)
    budget = Budget(minutes=2)
    now = 130.0
    assert (budget.left(), budget.spent()) == (True, 0.25)
    assert (budget.seconds(), budget.seconds()) == (30.0, 0.0)
    assert (budget.due("line", 20), budget.due("line", 20), budget.due("save", 40)) == (True, False, False)
    now = 220.0
    assert (budget.left(), budget.spent()) == (False, 1.0)
