"""Samplers' schedules and updates are diffusers' schedulers', for a velocity that is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from limner.core.errors import BadArgument
from limner.diffusion.sd3.samplers import SAMPLERS, Evaluation, evaluations, first_step

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of DPM in diffusers

SCHEDULERS = {
    "euler": FlowMatchEulerDiscreteScheduler,
    "heun": FlowMatchHeunDiscreteScheduler,
    "dpmpp-2m": DPMSolverMultistepScheduler,
}


def scheduler_of(sampler: str, shift: float) -> Any:
    if sampler == "dpmpp-2m":
        return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    return SCHEDULERS[sampler](shift=shift)


def velocity(latents: torch.Tensor, timestep: float) -> torch.Tensor:
    """Some smooth field: what it is does not matter."""
    return torch.sin(latents) * (1 + timestep / 1000) - 0.3 * latents


def run(plan: tuple[Evaluation, ...], latents: torch.Tensor) -> list[torch.Tensor]:
    memory = torch.zeros_like(latents)
    seen = []
    for each in plan:
        found, mix = velocity(latents, each.timestep), each.latents
        new = mix.latents * latents + mix.velocity * found + mix.memory * memory
        if each.memory:
            memory = each.memory.latents * latents + each.memory.velocity * found
        latents = new
        seen.append(latents)
    return seen


@pytest.mark.parametrize("strength", [1.0, 0.6, 0.01])
@pytest.mark.parametrize("shift", [1.0, 3.0, 6.5])
@pytest.mark.parametrize("step_count", [1, 2, 4, 14, 15, 28, 50])
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_updates_are_those_of_diffusers_schedulers(
    sampler: str, step_count: int, shift: float, strength: float
) -> None:
    noise = torch.randn(16, 6, 8, generator=torch.Generator().manual_seed(1))
    plan = evaluations(sampler, step_count=step_count, shift=shift, strength=strength)
    ours = run(plan, noise)
    scheduler = scheduler_of(sampler, shift)
    scheduler.set_timesteps(step_count)
    begin = first_step(step_count, strength) * scheduler.order
    scheduler.set_begin_index(begin)
    timesteps, theirs = scheduler.timesteps[begin:], noise
    assert [each.timestep for each in plan] == pytest.approx(timesteps.tolist(), rel=1e-6)
    for timestep, each in zip(timesteps, ours, strict=True):
        theirs = scheduler.step(velocity(theirs, float(timestep)), timestep, theirs, return_dict=False)[0]
        # diffusers' Heun divides differences by the noise level, which costs it digits where that is small
        torch.testing.assert_close(each, theirs, atol=2e-4 if sampler == "heun" else 2e-5, rtol=1e-5)


@pytest.mark.parametrize(("sampler", "count"), [("euler", 28), ("heun", 55), ("dpmpp-2m", 28)])
def test_steps_are_counted_and_end_without_noise(sampler: str, count: int) -> None:
    plan = evaluations(sampler, step_count=28, shift=3.0)
    assert len(plan) == count
    assert plan[-1].step == 28
    assert plan[-1].sigma_after == 0
    assert plan[-1].memory is None
    assert [each.step for each in plan] == sorted(each.step for each in plan)


def test_turbo_goes_through_the_four_published_noise_levels() -> None:
    plan = evaluations("turbo", step_count=4, shift=3.0)
    assert [each.sigma for each in plan] == pytest.approx([1.0, 0.8577, 0.6022, 0.0089], abs=5e-5)
    assert plan == evaluations("euler", step_count=4, shift=3.0)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"sampler": "euler a"}, "no sampler 'euler a'.*euler, heun, dpmpp-2m, turbo"),
        ({"sampler": "turbo", "step_count": 8}, "has 4 steps, and 8 were asked for"),
        ({"sampler": "turbo", "shift": 1.0}, "has the shift 3, and 1"),
        ({"strength": 1e-30}, "leaves none of 4 steps; give at least 0.25"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(BadArgument, match=said):
        evaluations(**{"sampler": "euler", "step_count": 4, "shift": 3.0} | asked)


def test_the_strength_is_the_share_of_the_steps_that_are_done() -> None:
    assert [first_step(50, strength) for strength in (1.0, 0.6, 0.5, 0.01)] == [0, 20, 25, 49]
    assert set(SAMPLERS) == {*SCHEDULERS, "turbo"}
