"""Samplers of flow matching as lists of evaluations, every number known ahead: a step never waits for the device. Knows
no tensors and no torch.

The model's velocity v leads from a picture x0 to noise: latents at a noise level are x = (1 - sigma) x0 + sigma noise,
and x0 = x - sigma v (Lipman et al., 2023; Esser et al., 2024). What every sampler makes of x and v is a sum of
multiples of them and of one tensor that it remembers: so rows with different samplers are updated at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limner.core.errors import BadArgument

SAMPLERS = ("euler", "heun", "dpmpp-2m", "turbo")

TRAINED_STEPS = 1000  # noise levels of the training; the transformer is told 1000 times sigma
TURBO_STEPS, TURBO_SHIFT = 4, 3.0  # what SD3.5 Large Turbo was distilled for; its last step hardly moves


@dataclass(frozen=True)
class Mix:
    """A sum of multiples: of the latents, of the velocity, and of what is remembered."""

    latents: float
    velocity: float
    memory: float = 0.0


@dataclass(frozen=True)
class Evaluation:
    """One run of the transformer, and what becomes of the latents by it."""

    timestep: float  # that the transformer is told, 0 to 1000
    sigma: float  # noise level of the latents that it sees, 0 to 1
    sigma_after: float  # noise level of the latents afterwards
    latents: Mix  # the latents afterwards
    memory: Mix | None  # what is remembered afterwards; None: nothing
    step: int  # steps that are done afterwards


def evaluations(sampler: str, *, step_count: int, shift: float | None, strength: float = 1.0) -> tuple[Evaluation, ...]:
    """Return what is to be done, in order.

        evaluations("euler", step_count=28, shift=3.0)                  # 28 evaluations from noise
        evaluations("heun", step_count=28, shift=3.0)                   # 55: each step but the last takes two
        evaluations("euler", step_count=50, shift=3.0, strength=0.6)    # the last 30 of 50 steps

    `shift` moves the schedule towards noise; None is no shift. Raises BadArgument for samplers that there aren't, for
    step counts and shifts that the turbo schedule hasn't, and for strengths that leave no step.
    """
    if sampler not in SAMPLERS:
        message = f"no sampler {sampler!r} for this model; there are: {', '.join(SAMPLERS)}"
        raise BadArgument(message, field="options.sampler")
    if sampler == "turbo":
        _check_turbo(step_count, shift)
    sigmas, timesteps = _SCHEDULES[sampler](step_count, 1.0 if shift is None else shift)
    first = first_step(step_count, strength)
    if first == step_count:
        message = f"strength {strength:g} leaves none of {step_count} steps; give at least {1 / step_count:g}"
        raise BadArgument(message, field="options.strength")
    return tuple(_STEPS[sampler](sigmas[first:], timesteps[first:]))


def first_step(step_count: int, strength: float) -> int:
    """Return how many steps are left out at the beginning when a picture is changed by so much, as diffusers does."""
    return int(max(step_count - min(step_count * strength, step_count), 0))


def _check_turbo(step_count: int, shift: float | None) -> None:
    if step_count != TURBO_STEPS:
        raise BadArgument(
            f"the turbo schedule has {TURBO_STEPS} steps, and {step_count} were asked for: "
            f"give {TURBO_STEPS}, or take the sampler `euler`",
            field="options.step_count",
        )
    if shift != TURBO_SHIFT:
        raise BadArgument(
            f"the turbo schedule has the shift {TURBO_SHIFT:g}, and {shift} was asked for: "
            f"give {TURBO_SHIFT:g}, or take the sampler `euler`",
            field="options.schedule_shift",
        )


Schedule = tuple[list[float], list[float]]
"""Noise levels, one more than there are steps, down to 0; and what the transformer is told, one a step. In float32."""


def _flow_schedule(step_count: int, shift: float) -> Schedule:
    """As FlowMatchEulerDiscreteScheduler, which shifts twice at the lower end."""
    lowest = float(np.float32(_shifted(1 / TRAINED_STEPS, shift)))
    sigmas = np.linspace(1.0, lowest, step_count)
    levels = _shifted_all(sigmas, shift).astype(np.float32)
    return [*levels.tolist(), 0.0], (levels * np.float32(TRAINED_STEPS)).tolist()


def _dpm_schedule(step_count: int, shift: float) -> Schedule:
    """As DPMSolverMultistepScheduler with flow sigmas: it begins below 1, where the logarithm of the signal-to-noise
    ratio is finite, and tells the transformer whole numbers."""
    unshifted = 1.0 - np.linspace(1.0, 1 / TRAINED_STEPS, step_count + 1)
    levels = np.flip(_shifted_all(unshifted, shift))[:-1]
    timesteps = (levels * TRAINED_STEPS).astype(np.int64)
    return [*levels.astype(np.float32).tolist(), 0.0], [float(each) for each in timesteps]


def _shifted(sigma: float, shift: float) -> float:
    return shift * sigma / (1 + (shift - 1) * sigma)


def _shifted_all(sigmas: NDArray[np.float64], shift: float) -> NDArray[np.float64]:
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def _euler(sigmas: Sequence[float], timesteps: Sequence[float]) -> list[Evaluation]:
    return [
        Evaluation(timestep, sigma, after, Mix(1.0, after - sigma), None, step)
        for step, (timestep, sigma, after) in enumerate(zip(timesteps, sigmas[:-1], sigmas[1:], strict=True), start=1)
    ]


def _heun(sigmas: Sequence[float], timesteps: Sequence[float]) -> list[Evaluation]:
    """Each step goes to its end and back half-way with the mean of the velocities at both ends (Karras et al., 2022).
    The last one is Euler's: at its end there is nothing more to predict."""
    done: list[Evaluation] = []
    for step, timestep in enumerate(timesteps, start=1):
        sigma, after = sigmas[step - 1], sigmas[step]
        change = after - sigma
        if step == len(timesteps):
            done.append(Evaluation(timestep, sigma, after, Mix(1.0, change), None, step))
        else:
            done.append(Evaluation(timestep, sigma, after, Mix(1.0, change), Mix(1.0, change / 2), step - 1))
            done.append(Evaluation(timesteps[step], after, after, Mix(0.0, change / 2, 1.0), None, step))
    return done


def _dpmpp_2m(sigmas: Sequence[float], timesteps: Sequence[float]) -> list[Evaluation]:
    """DPM-Solver++ (2M), midpoint (Lu et al., 2022), with the picture that is predicted remembered. First and last
    steps are of first order."""
    done: list[Evaluation] = []
    for step, timestep in enumerate(timesteps, start=1):
        sigma, after = sigmas[step - 1], sigmas[step]
        kept, share = after / sigma, -(1 - after) * math.expm1(-(_log_ratio(after) - _log_ratio(sigma)))
        earlier = 0.0  # how much of the change since the last prediction is added
        if 1 < step < len(timesteps):
            before, now = _log_ratio(sigma) - _log_ratio(sigmas[step - 2]), _log_ratio(after) - _log_ratio(sigma)
            earlier = share * now / (2 * before)
        of_picture = share + earlier  # the picture being latents - sigma * velocity
        latents = Mix(kept + of_picture, -sigma * of_picture, -earlier)
        memory = Mix(1.0, -sigma) if step < len(timesteps) else None
        done.append(Evaluation(timestep, sigma, after, latents, memory, step))
    return done


def _log_ratio(sigma: float) -> float:
    """Return the logarithm of the ratio of signal to noise."""
    return math.log(1 - sigma) - math.log(sigma) if sigma > 0 else math.inf


_SCHEDULES: dict[str, Callable[[int, float], Schedule]] = {
    "euler": _flow_schedule,
    "heun": _flow_schedule,
    "dpmpp-2m": _dpm_schedule,
    "turbo": _flow_schedule,
}
_STEPS: dict[str, Callable[[Sequence[float], Sequence[float]], list[Evaluation]]] = {
    "euler": _euler,
    "heun": _heun,
    "dpmpp-2m": _dpmpp_2m,
    "turbo": _euler,
}
