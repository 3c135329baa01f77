"""Which device a run is on. Knows no network."""

from __future__ import annotations

import torch

CHOICES = ("auto", "cpu", "cuda")


def device_of(name: str) -> torch.device:
    """Return the device of a command line's `--device`; of "auto" the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
