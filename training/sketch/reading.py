"""Teaches the text encoders of limner-sketch what captions look like, before the transformer asks them.

From random text encoders, a transformer learns for a long time without them: what it removes noise with is in the
picture itself. So these minutes come first, in which a linear layer predicts a picture's latents from the pooled text.
Captions of things that look alike are alike from then on. The layer is thrown away.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from training.sketch.data import Captions, Latents
from training.sketch.network import Sketch

STEPS, BATCH, RATE = 1200, 256, 2e-3


def teach(sketch: Sketch, data: Latents, captions: Captions, random: np.random.Generator, steps: int = STEPS) -> float:
    """Train the text encoders, and return which part of the latents' variance the last tenth of the steps explained."""
    device = next(sketch.parameters()).device
    encoders = nn.ModuleList([sketch.text_encoder, sketch.text_encoder_2])
    width = sum(each.config.projection_dim for each in (sketch.text_encoder, sketch.text_encoder_2))
    seen = nn.Sequential(nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, data[data.train[:1]].numel()))
    seen.to(device)
    learned = [*encoders.parameters(), *seen.parameters()]
    optimiser = torch.optim.AdamW(learned, RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    errors: list[float] = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        numbers = np.sort(random.choice(data.train, BATCH))
        latents = data[numbers].to(device).flatten(1)
        with torch.autocast(device.type, torch.bfloat16):
            predicted: Tensor = seen(sketch.read(captions.draw(numbers, random).to(device))[1])
        error = (predicted.float() - latents).square().mean()
        optimiser.zero_grad(set_to_none=True)
        error.backward()
        optimiser.step()
        errors.append(float(error.detach() / latents.var()))
    return 1 - float(np.mean(errors[-max(1, steps // 10) :]))
