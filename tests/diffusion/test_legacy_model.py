"""SD 1 and SDXL, stepped, against diffusers' own pipelines on tiny ones."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image

from limner.core.errors import BadArgument, Cancelled, OutOfMemory
from limner.core.picture import Picture
from limner.diffusion import tiny
from limner.diffusion.editing import Asked, change
from limner.diffusion.legacy.model import LegacyModel
from limner.diffusion.legacy.parts import Parts
from limner.diffusion.legacy.preview import Seen, clean_latents
from limner.diffusion.legacy.row import LegacyRow
from limner.diffusion.legacy.samplers import SAMPLERS, Samplers
from limner.diffusion.model import Request
from limner.diffusion.models import MODELS
from limner.diffusion.models._samplers import LEGACY_SAMPLERS
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


@functools.cache
def samplers_of(pipe: Any) -> Samplers:
    return Samplers(pipe.scheduler.config)


@functools.cache
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
    own = type(pipe)(**{**pipe.components, "scheduler": samplers_of(pipe).scheduler(parameters.sampler)})
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


def test_pictures_that_take_turns_are_what_they_are_alone(pipe: Any) -> None:
    model = model_of(pipe)
    requests = [
        edit(sampler="Heun", step_count=3),
        edit(sampler="DPM++ 2M Karras", step_count=6, seed=1, prompt="a blue sea"),
        edit(sampler="DPM++ 2M Karras", step_count=3, seed=2),
        edit(sampler="Euler a", step_count=4, guidance_scale=1.0),
    ]
    rows = [only(model.prepare(request, nothing)) for request in requests]
    while any(row.step < row.step_count for row in rows):
        assert set(model.advance([row for row in rows if row.step < row.step_count])) == {None}
    for row, request in zip(rows, requests, strict=True):
        torch.testing.assert_close(row.latents, theirs(pipe, request), rtol=0, atol=1e-5)
        row.close()


def test_each_picture_of_a_call_has_its_own_seed(pipe: Any) -> None:
    model = model_of(pipe)
    rows: Any = model.prepare(edit(image_count=3), nothing)
    assert len({row.bucket for row in rows}) == 3
    for index, row in enumerate(rows):
        finish(model, row)
        torch.testing.assert_close(row.latents, theirs(pipe, edit(seed=7 + index)), rtol=0, atol=1e-5)
        row.close()


@pytest.mark.parametrize(
    ("sampler", "strength", "steps", "evaluations"),
    [
        ("Euler", 1.0, 6, 6),
        ("Euler", 0.5, 3, 3),
        ("Heun", 1.0, 6, 11),
        ("DPM2 a", 0.5, 3, 5),
        ("PNDM", 1.0, 6, 7),
        ("DPM++ SDE", 1.0, 6, 6),
    ],
)
def test_steps_are_those_that_were_asked_for(
    pipe: Any, sampler: str, strength: float, steps: int, evaluations: int
) -> None:
    model = model_of(pipe)
    row = only(model.prepare(edit(sampler=sampler, strength=strength, step_count=6), nothing))
    assert (row.step, row.step_count) == (0, steps)
    seen = [row.step]
    while row.step < row.step_count:
        model.advance([row])
        seen.append(row.step)
    assert len(seen) == evaluations + 1
    assert sorted(set(seen)) == list(range(steps + 1))
    assert seen == sorted(seen)
    row.close()


def test_no_mask_is_a_mask_of_all(pipe: Any) -> None:
    model, request = model_of(pipe), replace(edit(strength=0.6), mask=None)
    row = only(model.prepare(request, nothing))
    finish(model, row)
    torch.testing.assert_close(row.latents, theirs(pipe, request), rtol=0, atol=1e-5)
    row.close()


@pytest.mark.parametrize(
    ("family", "theirs_of"), [("sd1", StableDiffusionPipeline), ("sdxl", StableDiffusionXLPipeline)]
)
def test_a_base_model_generates(family: str, theirs_of: Any) -> None:
    pipe = made(family, in_channels=4)
    model = model_of(pipe)
    row = only(model.prepare(Request(PARAMETERS), nothing))
    finish(model, row)
    shared = {key: each for key, each in pipe.components.items() if key not in ("feature_extractor", "image_encoder")}
    shared["scheduler"] = samplers_of(pipe).scheduler("DDIM")
    own = theirs_of(
        **shared, **({"feature_extractor": None, "requires_safety_checker": False} if family == "sd1" else {})
    )
    own.set_progress_bar_config(disable=True)
    expected = own(
        prompt="a red apple",
        negative_prompt="a dog",
        width=WIDTH,
        height=HEIGHT,
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).images[0]
    np.testing.assert_array_equal(model.decode(row), (expected * 255).round().astype(np.uint8))
    row.close()


def test_a_closed_row_stops_and_its_thread_is_gone(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = pipe.unet.forward
    monkeypatch.setattr(pipe.unet, "forward", lambda *args, **options: (calls.append(1), forward(*args, **options))[1])
    model = model_of(pipe)
    row, other = only(model.prepare(edit(), nothing)), only(model.prepare(edit(), nothing))
    model.advance([row])
    model.advance([row])
    assert len(rows_running()) == 2
    row.close()
    row.close()
    assert len(rows_running()) == 1
    assert model.advance([row]) == [None]
    assert len(calls) == 2
    finish(model, other)
    torch.testing.assert_close(other.latents, theirs(pipe, edit()), rtol=0, atol=1e-5)
    other.close()
    with pytest.raises(ValueError, match="closed"):
        model.decode(row)


def test_a_call_that_ends_while_it_is_prepared_leaves_nothing(pipe: Any) -> None:
    checks = []

    def check() -> None:
        checks.append(len(rows_running()))
        if len(checks) == 3:
            raise Cancelled("the caller went away")

    with pytest.raises(Cancelled):
        model_of(pipe).prepare(edit(image_count=4), check)
    assert checks == [0, 1, 2]
    assert rows_running() == []


def test_values_that_are_no_numbers_end_their_row_alone(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(pipe)
    bad, good = only(model.prepare(edit(), nothing)), only(model.prepare(edit(), nothing))
    model.advance([bad, good])
    forward = pipe.unet.forward
    monkeypatch.setattr(pipe.unet, "forward", lambda *args, **options: (forward(*args, **options)[0] * np.nan,))
    (error,) = model.advance([bad])
    assert isinstance(error, BadArgument)
    assert "step 2 of 4 gave values that are no numbers" in error.message
    monkeypatch.undo()
    finish(model, good)
    torch.testing.assert_close(good.latents, theirs(pipe, edit()), rtol=0, atol=1e-5)
    bad.close()
    good.close()


def test_a_row_that_needs_too_much_memory_is_tried_with_less(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    forward = UNet2DConditionModel.forward

    def small(self: Any, sample: torch.Tensor, *args: Any, **options: Any) -> Any:
        batches.append(len(sample))
        if len(sample) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, sample, *args, **options)

    expected = theirs(pipe, edit())
    monkeypatch.setattr(UNet2DConditionModel, "forward", small)
    model = LegacyModel(
        parts_of(made("sdxl" if hasattr(pipe, "text_encoder_2") else "sd1")), MODELS["sdxl-inpaint"].VARIANT
    )
    row = only(model.prepare(edit(), nothing))
    finish(model, row)
    assert batches == [2, 1, 1] * 4
    torch.testing.assert_close(row.latents, expected, rtol=0, atol=1e-4)
    row.close()


def test_a_row_that_needs_too_much_memory_after_all_ends_alone(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(pipe)
    large, other = only(model.prepare(edit(), nothing)), only(model.prepare(edit(), nothing))

    def none(*args: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(pipe.unet, "forward", none)
        (error,) = model.advance([large])
    assert isinstance(error, OutOfMemory)
    assert "take step 1" in str(error)
    large.close()
    finish(model, other)
    torch.testing.assert_close(other.latents, theirs(pipe, edit()), rtol=0, atol=1e-5)
    other.close()


def test_a_picture_is_decoded_by_tiles_if_memory_runs_out(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(pipe)
    row = only(model.prepare(edit(), nothing))
    finish(model, row)
    whole, decode, tiling = model.decode(row), pipe.vae.decode, []

    def short(*args: Any, **options: Any) -> Any:
        tiling.append(pipe.vae.use_tiling)
        if not pipe.vae.use_tiling:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(*args, **options)

    monkeypatch.setattr(pipe.vae, "decode", short)
    np.testing.assert_array_equal(model.decode(row), whole)  # it is smaller than a tile
    assert tiling == [False, True]
    assert not pipe.vae.use_tiling
    row.close()


def test_the_preview_is_what_the_unet_takes_the_picture_for(pipe: Any) -> None:
    model = model_of(pipe)
    row = only(model.prepare(edit(sampler="Euler"), nothing))
    assert model.preview(row) is None
    reference = samplers_of(pipe).scheduler("Euler")
    reference.set_timesteps(4)
    for timestep in reference.timesteps:
        reference.is_scale_input_called = True
        model.advance([row])
        assert row.seen is not None
        sigma = float(reference.sigmas[reference.index_for_timestep(timestep)])
        sample = row.seen.latents * (sigma**2 + 1) ** 0.5
        expected = reference.step(row.seen.prediction, timestep, sample).pred_original_sample
        found = clean_latents(row.seen, reference.alphas_cumprod, "epsilon")
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
        make = model.preview(row)
        assert make is not None
        pixels = make()
        assert (pixels.shape, pixels.dtype) == ((HEIGHT // 8, WIDTH // 8, 3), np.uint8)
        assert pixels.std() > 0
    assert row.latents is not None
    torch.testing.assert_close(found, row.latents[0], rtol=0, atol=1e-3)
    row.close()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_clean_latents_are_found_from_whatever_is_predicted(kind: str) -> None:
    clean, noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    alphas = torch.linspace(0.99, 0.01, 1000)
    alpha = alphas[500]
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    prediction = {"epsilon": noise, "v_prediction": velocity, "sample": clean}[kind]
    torch.testing.assert_close(clean_latents(Seen(noisy, prediction, 500.0), alphas, kind), clean, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"sampler": "dpm++ 2m"}, "options.sampler", "did you mean 'DPM\\+\\+ 2M'"),
        ({"sampler": "x"}, "options.sampler", "There are: DPM\\+\\+ 2M, "),
        ({"loras": (LoraUse("mine"),)}, "options.loras", "SD3"),
        ({"skip_layers": SkipLayers()}, "options.skip_layers", "SD3"),
        ({"step_cache": StepCache()}, "options.step_cache", "SD3"),
        ({"strength": 0.2}, "options.strength", "at least 0.25"),
        ({"sampler": "LCM", "step_count": 51}, "options.step_count", "at most 50"),
        ({"prompt": "a " * 80}, "prompt", "82 tokens.*77"),
        ({"negative_prompt": "a " * 80}, "options.negative_prompt", "82 tokens.*77"),
    ],
)
def test_what_cannot_be_done_is_said(pipe: Any, changes: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(BadArgument, match=said) as raised:
        model_of(pipe).prepare(edit(**changes), nothing)
    assert [violation.field for violation in raised.value.violations] == [field]


def test_an_inpainting_model_makes_nothing_from_text_alone(pipe: Any) -> None:
    with pytest.raises(BadArgument, match="only edits"):
        model_of(pipe).prepare(Request(PARAMETERS), nothing)


def test_a_long_prompt_is_cut_if_that_is_asked_for(pipe: Any) -> None:
    model = model_of(pipe)
    rows = [
        only(model.prepare(edit(prompt="a " * 80 + rest, truncate_prompt=True), nothing)) for rest in ("dog", "red sea")
    ]
    for row in rows:
        finish(model, row)
    first, second = (row.latents for row in rows)
    assert first is not None
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    for row in rows:
        row.close()


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_networks_keep_their_dtypes(family: str) -> None:
    """SDXL's own pipeline changes the VAE's dtype for the time of a call: others may be decoding."""
    parts = parts_of(made(family))
    parts.unet.to(torch.bfloat16)
    parts.dtype = torch.bfloat16
    seen: set[torch.dtype] = set()
    encode = parts.vae.encode
    parts.vae.encode = lambda pixels: (seen.add(parts.vae.dtype), encode(pixels))[1]
    model = LegacyModel(parts, MODELS["sdxl-inpaint"].VARIANT)
    row = only(model.prepare(edit(), nothing))
    finish(model, row)
    assert row.latents is not None
    assert row.latents.dtype == torch.bfloat16
    assert model.decode(row).shape == (HEIGHT, WIDTH, 3)
    row.close()
    assert seen == {torch.float32}


def test_the_names_are_those_that_requests_are_checked_against() -> None:
    assert tuple(SAMPLERS) == LEGACY_SAMPLERS


@pytest.mark.parametrize("sides", [(1, 200), (200, 1), (1, 1)])
def test_thin_strokes_of_a_mask_reach_the_unet(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, sides: tuple[int, int]
) -> None:
    """Latents are taken by one pixel each, so that strokes beside these would be lost."""
    width, height = sides
    stroke = np.zeros((300, 300), np.uint8)
    stroke[51 : 51 + height, 51 : 51 + width] = 1
    variant = replace(MODELS["sd1.5-inpaint"].VARIANT, width=64, height=64, min_pixels=32 * 32, max_pixels=96 * 96)
    whole = Picture(np.random.default_rng(4).integers(0, 256, (300, 300, 3), np.uint8))
    changed = change(whole, stroke, variant, asked=Asked())
    size, hole = changed.frame.size, changed.hole
    assert hole is not None
    seen = []
    forward = pipe.unet.forward
    monkeypatch.setattr(
        pipe.unet, "forward", lambda sample, *args, **named: seen.append(sample) or forward(sample, *args, **named)
    )
    model = LegacyModel(parts_of(pipe), variant)
    parameters = replace(PARAMETERS, width=size.width, height=size.height)
    row = only(model.prepare(Request(parameters, image=changed.image, mask=hole), nothing))
    assert model.advance([row]) == [None]
    row.close()
    masks = seen[0][:, 4].numpy()  # beside the latents
    np.testing.assert_array_equal(masks[0], hole[::8, ::8])
    scaled = changed.frame.box.width / changed.frame.seen.width
    assert masks[0].sum() >= max(sides) / scaled / 8
