"""SD 1 and SDXL, stepped, against diffusers' own pipelines on tiny ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from limner.core.errors import BadArgument, OutOfMemory
from limner.diffusion import tiny
from limner.diffusion.legacy.model import LegacyModel
from limner.diffusion.legacy.parts import Parts
from limner.diffusion.legacy.preview import clean_latents
from limner.diffusion.legacy.row import LegacyRow
from limner.diffusion.legacy.samplers import SAMPLERS, scheduler
from limner.diffusion.model import Request
from limner.diffusion.models import MODELS
from limner.diffusion.parameters import LoraUse, Parameters, SkipLayers, StepCache

# numpy asks diffusers' schedulers for what torch's tensors don't offer yet.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

WIDTH, HEIGHT = 96, 64

PARAMETERS = Parameters(
    prompt="a red apple",
    negative_prompt="a dog",
    width=WIDTH,
    height=HEIGHT,
    step_count=4,
    guidance_scale=5.0,
    strength=1.0,
    sampler="DDIM",
    shift=None,
    text_length=77,
    truncate_prompt=False,
    skip_layers=None,
    step_cache=None,
    loras=(),
    seed=7,
    image_count=1,
)


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return made(request.param)


def made(family: str, in_channels: int = 9) -> Any:
    pipe = (tiny.sd1_pipeline if family == "sd1" else tiny.sdxl_pipeline)(in_channels=in_channels)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def parts_of(pipe: Any) -> Parts:
    is_xl = hasattr(pipe, "text_encoder_2")
    return Parts(
        family="sdxl" if is_xl else "sd1",
        unet=pipe.unet,
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        scheduler=dict(pipe.scheduler.config),
        device=torch.device("cpu"),
        dtype=torch.float32,
        text_encoder_2=pipe.text_encoder_2 if is_xl else None,
        tokenizer_2=pipe.tokenizer_2 if is_xl else None,
    )


def model_of(pipe: Any) -> LegacyModel:
    return LegacyModel(parts_of(pipe), MODELS["sd1.5-inpaint"].VARIANT)


def picture() -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def mask() -> NDArray[np.float32]:
    values = np.zeros((HEIGHT, WIDTH), np.float32)
    values[16:48, 32:72] = 1
    return values


def edit(**changes: Any) -> Request:
    return Request(replace(PARAMETERS, **changes), image=picture(), mask=mask())


def theirs(pipe: Any, request: Request, output: str = "latent") -> Any:
    """What diffusers' own pipeline answers."""
    parameters = request.parameters
    own = type(pipe)(**{**pipe.components, "scheduler": scheduler(parameters.sampler, dict(pipe.scheduler.config))})
    own.set_progress_bar_config(disable=True)
    assert request.image is not None
    covered = np.ones((HEIGHT, WIDTH), np.float32) if request.mask is None else request.mask
    return own(
        prompt=parameters.prompt,
        negative_prompt=parameters.negative_prompt or None,
        image=Image.fromarray(request.image),
        mask_image=Image.fromarray((covered * 255).astype(np.uint8)),
        width=WIDTH,
        height=HEIGHT,
        num_inference_steps=parameters.step_count,
        guidance_scale=parameters.guidance_scale,
        strength=parameters.strength,
        generator=torch.Generator().manual_seed(parameters.seed),
        output_type=output,
    ).images


def finish(model: LegacyModel, row: Any) -> int:
    """Advance a row to its end and return how many evaluations that took."""
    count = 0
    while row.step < row.step_count:
        assert model.advance([row]) == [None]
        count += 1
    return count


def only(rows: Any) -> LegacyRow:
    (row,) = rows
    assert isinstance(row, LegacyRow)
    return row


def nothing() -> None:
    pass


def rows_running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("limner-legacy")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert rows_running() == []


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_gives_what_the_pipeline_itself_gives(pipe: Any, sampler: str) -> None:
    model, request = model_of(pipe), edit(sampler=sampler, step_count=5, strength=0.7)
    row = only(model.prepare(request, nothing))
    finish(model, row)
    torch.testing.assert_close(row.latents, theirs(pipe, request), rtol=0, atol=1e-5)
    row.close()


@pytest.mark.parametrize("changes", [{}, {"guidance_scale": 1.0}, {"negative_prompt": ""}, {"strength": 0.5}])
def test_the_decoded_picture_is_the_pipelines(pipe: Any, changes: dict[str, Any]) -> None:
    model, request = model_of(pipe), edit(**changes)
    row = only(model.prepare(request, nothing))
    assert row.size == (1 if "guidance_scale" in changes else 2)
    finish(model, row)
    expected = np.asarray(theirs(pipe, request, "pil")[0])
    np.testing.assert_array_equal(model.decode(row), expected)
    row.close()


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_base_model_of_four_channels_edits_too(family: str) -> None:
    pipe = made(family, in_channels=4)
    model, request = model_of(pipe), edit(strength=0.6)
    row = only(model.prepare(request, nothing))
    finish(model, row)
    torch.testing.assert_close(row.latents, theirs(pipe, request), rtol=0, atol=1e-5)
    row.close()
