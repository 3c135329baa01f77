"""Alone, a request's numbers are those of diffusers' pipelines for the same seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
)
from PIL import Image

from limner.diffusion.model import Request
from limner.diffusion.parameters import Parameters, SkipLayers
from limner.diffusion.sd3.model import Sd3Model
from tests.diffusion.sd3 import alone, finish, latents, load_model, load_pipeline, photograph, start, with_

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of DPM in diffusers

SKIP = SkipLayers(scale=2.5, layers=(1, 2), start=0.1, stop=0.7)


@pytest.fixture(scope="module")
def pipeline(tiny_sd3: Path) -> Any:
    return load_pipeline(tiny_sd3)


@pytest.fixture(scope="module")
def model(tiny_sd3: Path, pipeline: Any) -> Sd3Model:
    return load_model(tiny_sd3, pipeline)


def scheduler(sampler: str, shift: float = 3.0) -> Any:
    if sampler == "dpmpp-2m":
        return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    if sampler == "heun":
        return FlowMatchHeunDiscreteScheduler(shift=shift)
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def theirs(kind: Any, pipeline: Any, asked: Parameters, *, output: str = "latent", seed: int = 7, **given: Any) -> Any:
    """Return what a pipeline of diffusers makes: latents, (16, height / 8, width / 8), or a picture."""
    made = kind(**{**pipeline.components, "scheduler": scheduler(asked.sampler, asked.shift or 1.0)})
    made.set_progress_bar_config(disable=True)
    if asked.skip_layers is not None:
        given |= {
            "skip_guidance_layers": list(asked.skip_layers.layers),
            "skip_layer_guidance_scale": asked.skip_layers.scale,
            "skip_layer_guidance_start": asked.skip_layers.start,
            "skip_layer_guidance_stop": asked.skip_layers.stop,
        }
    return made(
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt,
        width=asked.width,
        height=asked.height,
        num_inference_steps=asked.step_count,
        guidance_scale=asked.guidance_scale,
        max_sequence_length=asked.text_length,
        generator=torch.Generator().manual_seed(seed),
        output_type=output,
        **given,
    ).images[0]


def same(ours: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("skip_layers", [None, SKIP], ids=["", "skip"])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
@pytest.mark.parametrize(
    ("sampler", "step_count"), [("euler", 10), ("heun", 6), ("dpmpp-2m", 10), ("dpmpp-2m", 16), ("turbo", 4)]
)
def test_text_to_image(
    model: Sd3Model, pipeline: Any, sampler: str, step_count: int, guidance_scale: float, skip_layers: SkipLayers | None
) -> None:
    asked = with_(sampler=sampler, step_count=step_count, guidance_scale=guidance_scale, skip_layers=skip_layers)
    same(alone(model, asked), theirs(StableDiffusion3Pipeline, pipeline, asked))


@pytest.mark.parametrize("shift", [1.0, 6.0])
def test_text_to_image_at_other_shifts_and_sizes(model: Sd3Model, pipeline: Any, shift: float) -> None:
    asked = with_(shift=shift, width=96, height=32, text_length=77, prompt="the sea")
    same(alone(model, asked), theirs(StableDiffusion3Pipeline, pipeline, asked))


@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
@pytest.mark.parametrize("strength", [1.0, 0.6, 0.05])
@pytest.mark.parametrize(("sampler", "step_count"), [("euler", 10), ("heun", 6), ("turbo", 4)])
def test_image_to_image(
    model: Sd3Model, pipeline: Any, sampler: str, step_count: int, strength: float, guidance_scale: float
) -> None:
    asked = with_(sampler=sampler, step_count=step_count, strength=strength, guidance_scale=guidance_scale)
    image = photograph()
    expected = theirs(StableDiffusion3Img2ImgPipeline, pipeline, asked, image=Image.fromarray(image), strength=strength)
    same(alone(model, asked, image=image), expected)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize(("sampler", "step_count"), [("euler", 10), ("heun", 6), ("turbo", 4)])
def test_inpainting(
    model: Sd3Model, pipeline: Any, sampler: str, step_count: int, strength: float, guidance_scale: float
) -> None:
    asked = with_(sampler=sampler, step_count=step_count, strength=strength, guidance_scale=guidance_scale)
    image, mask = photograph(), np.zeros((48, 64), np.float32)
    mask[13:37, 5:50] = 1  # cuts through latents: the same of them are taken
    expected = theirs(
        StableDiffusion3InpaintPipeline,
        pipeline,
        asked,
        image=Image.fromarray(image),
        mask_image=Image.fromarray((mask * 255).astype(np.uint8)),
        strength=strength,
    )
    same(alone(model, asked, image=image, mask=mask), expected)


def test_what_the_mask_keeps_is_the_picture_again_and_dpm_edits_too(model: Sd3Model) -> None:
    image, mask = photograph(), np.zeros((48, 64), np.float32)
    mask[:, :32] = 1
    results = [
        alone(model, with_(sampler="dpmpp-2m", seed=3, prompt=prompt), image=image, mask=mask)
        for prompt in ("a cat", "the sea")
    ]
    whole = alone(model, with_(sampler="dpmpp-2m", seed=3, prompt="a cat"), image=image)
    torch.testing.assert_close(results[0][:, :, 4:], results[1][:, :, 4:], atol=0, rtol=0)
    assert (results[0] - results[1])[:, :, :4].abs().max() > 1e-3
    assert (results[0] - whole)[:, :, 4:].abs().max() > 1e-3


def test_pictures_are_those_of_the_pipeline(model: Sd3Model, pipeline: Any) -> None:
    asked = with_(width=64, height=64)
    row = start(model, asked)
    finish(model, [row])
    ours = model.decode(row)
    expected = theirs(StableDiffusion3Pipeline, pipeline, asked, output="np")
    assert ours.shape == (64, 64, 3)
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    assert np.abs(ours.astype(int) - (expected * 255).round().astype(int)).max() <= 1


def test_inpainted_pictures_are_decoded_with_the_shift_that_diffusers_forgets(model: Sd3Model, pipeline: Any) -> None:
    image, mask = photograph(), np.ones((48, 64), np.float32)
    row = start(model, with_(), image=image, mask=mask)
    finish(model, [row])
    vae = pipeline.vae
    with torch.no_grad():
        right = vae.decode(latents(row)[None] / vae.config.scaling_factor + vae.config.shift_factor).sample[0]
    expected = (right / 2 + 0.5).clamp(0, 1).mul(255).round().permute(1, 2, 0).numpy()
    assert np.abs(model.decode(row).astype(int) - expected.astype(int)).max() <= 1


def test_every_picture_of_a_request_has_a_seed_of_its_own(model: Sd3Model) -> None:
    rows = model.prepare(Request(with_(image_count=3, seed=5)), lambda: None)
    finish(model, rows)
    for index, row in enumerate(rows):
        same(latents(row), alone(model, with_(seed=5 + index)))
