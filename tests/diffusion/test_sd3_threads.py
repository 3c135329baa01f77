"""SD3 models in the step loop, where one thread steps, one encodes, decodes and paints previews, and one loads others:
pictures are the same as alone, whatever goes on beside."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limner.diffusion.parameters import Parameters, SkipLayers, StepCache
from limner.diffusion.sd3.model import Sd3Model
from tests.diffusion.sd3 import finish, load_model, load_pipeline, photograph, start, with_
from tests.diffusion.test_engine import House, Shelf

FRESH_MODELS = 6
CACHED = with_(
    skip_layers=SkipLayers(layers=(0,), start=0.1, stop=0.9), step_cache=StepCache(interval=2, warm_up=1), image_count=2
)
ASKED = [
    CACHED,
    with_(sampler="heun", seed=3, step_cache=StepCache(interval=3, order=2, warm_up=2), step_count=6),
    with_(sampler="dpmpp-2m", guidance_scale=1.0, width=80, seed=4, image_count=2),
    with_(step_count=9, seed=5, width=80, step_cache=StepCache(interval=2, warm_up=1)),
]


@pytest.fixture(scope="module")
def pipeline(tiny_sd3: Path) -> Any:
    return load_pipeline(tiny_sd3)


@contextmanager
def another() -> Iterator[None]:
    """What diffusers and transformers do to all threads while they make a model of half precision."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def pictures_alone(model: Sd3Model, asked: Parameters) -> list[np.ndarray]:
    found = []
    for index in range(asked.image_count):
        row = start(model, replace(asked, seed=asked.seed + index, image_count=1))
        finish(model, [row])
        found.append(model.decode(row))
    return found


def test_a_model_that_is_being_loaded_meanwhile_changes_no_picture(tiny_sd3, pipeline):
    mask = np.zeros((48, 64), np.float32)
    mask[16:32, 16:48] = 1

    def made(beside: bool, **given: Any) -> list[np.ndarray]:
        model = load_model(tiny_sd3, pipeline)  # without prompts that it knows
        pictures = []
        for sampler in ("euler", "heun", "dpmpp-2m"):
            with another() if beside else nullcontext():
                row = start(model, with_(sampler=sampler, step_cache=StepCache(warm_up=1)), **given)
                finish(model, [row])
                paint = model.preview(row)
                assert paint is not None
                pictures += [paint(), model.decode(row)]
        return pictures

    for given in ({}, {"image": photograph()}, {"image": photograph(), "mask": mask}):
        for now, before in zip(made(True, **given), made(False, **given), strict=True):
            np.testing.assert_array_equal(now, before)


async def test_pictures_of_fresh_models_are_as_alone_whatever_goes_on_beside(tiny_sd3, pipeline):
    expected = [pictures_alone(load_model(tiny_sd3, pipeline), asked) for asked in ASKED]
    source = random.Random(5)
    stop, loading = threading.Event(), threading.Lock()  # one at a time, as in the library
    load = threading.Thread(target=keep_busy, args=(stop, loading))
    load.start()
    try:
        for _ in range(FRESH_MODELS):
            with loading:
                model = load_model(tiny_sd3, pipeline)
            model._capacity.assume(model._usual, source.choice([2, 4, 8]))  # rows of a call go together, or do not
            house = House(Shelf(a=model))
            try:
                calls = [house.call(**asdict(asked) | usual(asked), previews=True) for asked in ASKED]
                await asyncio.gather(*(call.task for call in calls))
            finally:
                house.close()
            for call, pictures in zip(calls, expected, strict=True):
                (result,) = call.told("result")
                for image, picture in zip(result.more_images, pictures, strict=True):
                    got = np.frombuffer(image.raw.data, np.uint8).reshape(picture.shape)
                    assert np.abs(got.astype(int) - picture).max() <= 1
    finally:
        stop.set()
        load.join()


def usual(asked: Parameters) -> dict[str, Any]:
    """Return what `asdict` would take apart."""
    return {"skip_layers": asked.skip_layers, "step_cache": asked.step_cache, "loras": asked.loras}


def keep_busy(stop: threading.Event, loading: threading.Lock) -> None:
    """Compute and load, as other threads of a server do."""
    values = torch.ones(256, 256)
    while not stop.is_set():
        with loading, another():
            values @ values
