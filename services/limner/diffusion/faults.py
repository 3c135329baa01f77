"""Errors that the families of models have in common."""

from __future__ import annotations

from limner.core.errors import BadArgument


def no_numbers(step: int, step_count: int) -> BadArgument:
    """Return what a picture ends with whose values are no numbers any more. `step` is 0 within the first one."""
    return BadArgument(
        f"step {max(step, 1)} of {step_count} gave values that are no numbers: guidance or a LoRA's scale is too "
        "strong for the precision that the model runs in; lower them, or set precision to fp32",
        metadata={"step": str(max(step, 1))},
    )
