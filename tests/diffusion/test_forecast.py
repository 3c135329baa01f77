"""Predicted steps: which are computed, and that polynomials of the order are predicted exactly."""

from __future__ import annotations

import pytest
import torch

from limner.diffusion.parameters import StepCache
from limner.diffusion.sd3.forecast import Forecast


def run(forecast: Forecast, count: int, features: torch.Tensor) -> list[float | None]:
    """Return the largest error of each predicted step of the features' polynomial in the step; None for computed."""
    errors: list[float | None] = []
    for step in range(count):
        true = sum(coefficient * step**power for power, coefficient in enumerate(features))
        if forecast.computes(step):
            forecast.record(step, torch.as_tensor(true))
            errors.append(None)
        else:
            errors.append(float((forecast.predict(step) - true).abs().max()))
    return errors


@pytest.mark.parametrize(
    ("cache", "computed"),
    [
        (StepCache(interval=2, warm_up=3), [0, 1, 2, 4, 6, 8]),
        (StepCache(interval=3, warm_up=1), [0, 3, 6, 9]),
        (StepCache(interval=4, warm_up=2), [0, 1, 5, 9]),
    ],
)
def test_which_steps_are_computed(cache: StepCache, computed: list[int]) -> None:
    errors = run(Forecast(cache), 10, torch.ones(1, 4, 8))
    assert [step for step, error in enumerate(errors) if error is None] == computed


@pytest.mark.parametrize("interval", [2, 4])
def test_order_0_repeats_and_order_1_continues_lines(interval: int) -> None:
    constant, slope = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    line = torch.stack([constant, slope])
    repeated = [each for each in run(Forecast(StepCache(interval, order=0, warm_up=2)), 12, line) if each is not None]
    continued = [each for each in run(Forecast(StepCache(interval, order=1, warm_up=2)), 12, line) if each is not None]
    assert min(repeated) > 0.1
    assert max(continued) < 1e-5


def test_order_2_is_nearer_to_a_parabola() -> None:
    parabola = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))
    worst = {
        order: max(each for each in run(Forecast(StepCache(2, order, warm_up=3)), 12, parabola) if each is not None)
        for order in (0, 1, 2)
    }
    assert worst[2] < worst[1] < worst[0]


def test_nothing_is_predicted_from_nothing() -> None:
    assert Forecast(StepCache(interval=8, warm_up=1)).computes(3)
