"""Small pictures of what a row of SD 1 or SDXL will become: the clean latents that the UNet implies, as colours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from limner.diffusion.model import Pixels

# Colours of a latent pixel, RGB in [-1, 1] = latents · matrix. Found by linear regression; published in InvokeAI's
# `step_callback.py`: SD 1's by torridgristle, after Kevin Turner's ("Decoding latents to RGB without upscaling",
# discuss.huggingface.co, 2022), SDXL's by StAlKeR7779.
_COLOURS = {
    "sd1": ((0.3444, 0.1385, 0.0670), (0.1247, 0.4027, 0.1494), (-0.3192, 0.2513, 0.2103), (-0.1307, -0.1874, -0.7445)),
    "sdxl": (
        (0.3816, 0.4930, 0.5320),
        (-0.3753, 0.1631, 0.1739),
        (0.1770, 0.3588, -0.2048),
        (-0.4350, -0.2644, -0.4289),
    ),
}


@dataclass(frozen=True)
class Seen:
    """What the UNet saw in an evaluation, and what it said: tensors that nobody changes any more."""

    latents: torch.Tensor  # (4, height / 8, width / 8), with the variance that the UNet was trained with
    prediction: torch.Tensor  # like latents; after guidance
    timestep: float  # 0 to 999; between whole ones for some samplers


def clean_latents(seen: Seen, alphas: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """Return the latents without noise as the prediction implies them, float32. `alphas` are the schedule's cumulated
    products, float32 (1000,); `prediction_type` is `epsilon`, `v_prediction` or `sample`."""
    latents: torch.Tensor = seen.latents.float()
    prediction: torch.Tensor = seen.prediction.float()
    noise_ratio = _ratio(alphas.cpu().double().numpy(), seen.timestep)  # sigma² = (1 - alpha) / alpha
    kept, lost = math.sqrt(1 / (1 + noise_ratio)), math.sqrt(noise_ratio / (1 + noise_ratio))
    if prediction_type == "epsilon":
        return (latents - lost * prediction) / kept
    if prediction_type == "v_prediction":  # Salimans and Ho, 2022
        return kept * latents - lost * prediction
    return prediction


def colours(latents: torch.Tensor, family: Literal["sdxl", "sd1"]) -> Pixels:
    """Return clean latents (4, height / 8, width / 8) as a picture of an eighth of its sides."""
    matrix = torch.tensor(_COLOURS[family], dtype=torch.float32)
    rgb = torch.einsum("chw,cr->hwr", latents.float().cpu(), matrix)
    return np.asarray(((rgb + 1) / 2).clamp(0, 1).mul(255).round().to(torch.uint8).numpy())


def _ratio(alphas: NDArray[np.float64], timestep: float) -> float:
    """Return the noise's variance over the picture's at a timestep, its logarithm linear between whole ones."""
    logs = np.log((1 - alphas) / alphas)
    return float(np.exp(np.interp(timestep, np.arange(len(logs)), logs)))
