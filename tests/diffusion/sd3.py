"""The tiny SD3 pipeline as a model of ours and as diffusers', and how tests run them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline

from limner.diffusion.lora.store import LoraStore
from limner.diffusion.model import Pixels, Request, Row
from limner.diffusion.parameters import Parameters
from limner.diffusion.sd3.components import Components
from limner.diffusion.sd3.model import Sd3Model
from limner.diffusion.sd3.transformer import Transformer
from limner.diffusion.variant import Variant

TINY = Variant(
    name="tiny",
    family="sd3",
    tasks=frozenset({"generate", "edit"}),
    width=64,
    height=64,
    size_multiple=16,
    min_pixels=32 * 32,
    max_pixels=512 * 512,
    step_count=4,
    guidance_scale=4.0,
    samplers=("euler", "heun", "dpmpp-2m", "turbo"),
    shift=3.0,
    text_length=32,
    max_text_length=512,
    layer_count=4,
)

PLAIN = Parameters(
    prompt="a red apple",
    negative_prompt="a blue house",
    width=64,
    height=48,
    step_count=4,
    guidance_scale=4.0,
    strength=1.0,
    sampler="euler",
    shift=3.0,
    text_length=32,
    truncate_prompt=False,
    skip_layers=None,
    step_cache=None,
    loras=(),
    seed=7,
    image_count=1,
)


def load_pipeline(folder: Path) -> Any:
    """Return diffusers' pipeline of a folder."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_model(folder: Path, pipeline: Any, *, loras: LoraStore | None = None, fused: bool = True) -> Sd3Model:
    """Return our model of a folder. It shares the text encoders with diffusers' pipeline of it."""
    transformer = Transformer.from_pretrained(folder / "transformer").eval()
    if fused:
        transformer.fuse()
    components = Components(
        transformer=transformer,
        text_encoder=pipeline.text_encoder,
        text_encoder_2=pipeline.text_encoder_2,
        text_encoder_3=pipeline.text_encoder_3,
        tokenizer=pipeline.tokenizer,
        tokenizer_2=pipeline.tokenizer_2,
        tokenizer_3=pipeline.tokenizer_3,
        vae=AutoencoderKL.from_pretrained(folder / "vae").eval(),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    return Sd3Model(components, TINY, loras=loras, prompt_cache_bytes=1 << 20)


def start(model: Sd3Model, parameters: Parameters, **given: Any) -> Row:
    """Return the row of a request of one picture."""
    (row,) = model.prepare(Request(parameters, **given), lambda: None)
    return row


def finish(model: Sd3Model, rows: Sequence[Row]) -> None:
    """Advance rows together until all are done."""
    while going := [row for row in rows if row.step < row.step_count]:
        assert not any(model.advance(going))


def latents(row: Any) -> torch.Tensor:
    """Return a row's latents, (16, height / 8, width / 8)."""
    found: torch.Tensor = row.state.latents
    return found


def alone(model: Sd3Model, parameters: Parameters, **given: Any) -> torch.Tensor:
    """Return the latents of a request that nothing runs beside."""
    row = start(model, parameters, **given)
    finish(model, [row])
    return latents(row)


def with_(**changes: Any) -> Parameters:
    """Return plain parameters with changes."""
    return replace(PLAIN, **changes)


def photograph(width: int = 64, height: int = 48) -> Pixels:
    """Return a picture with slopes, edges and texture."""
    y, x = np.mgrid[:height, :width]
    waves = 127 + 80 * np.sin(x / 7) * np.cos(y / 5)
    return np.stack([waves, x * 255 // width, 255 * (x // 8 + y // 8 & 1)], -1).astype(np.uint8)
