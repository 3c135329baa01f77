"""Guidance: how the velocities of a row's branches become one. Knows no transformer and no rows."""

from __future__ import annotations

import torch

from limner.diffusion.parameters import SkipLayers


def skips(skip: SkipLayers | None, evaluation: int, step_count: int) -> bool:
    """Say whether skip-layer guidance acts at an evaluation, counted from 0: strictly between its shares of the steps.

    As StableDiffusion3Pipeline, which counts evaluations, of which Heun's method has two a step.
    """
    return skip is not None and step_count * skip.start < evaluation < step_count * skip.stop


def guided(
    negative: torch.Tensor,
    positive: torch.Tensor,
    skipped: torch.Tensor,
    scale: torch.Tensor,
    skip_scale: torch.Tensor,
) -> torch.Tensor:
    """Return the velocity away from the negative prompt (Ho and Salimans, 2022), and away from what is predicted with
    layers left out. Velocities are (rows, channels, height, width), scales (rows, 1, 1, 1). Rows without one of the
    branches have the positive one in its place, and come out exactly as if there were none."""
    return negative + scale * (positive - negative) + skip_scale * (positive - skipped)
