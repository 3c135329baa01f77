"""Previews are the picture without the noise that is still in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from limner.diffusion.sd3.model import Sd3Model
from limner.diffusion.sd3.preview import painted
from tests.diffusion.sd3 import PLAIN, finish, latents, load_model, load_pipeline, photograph, start, with_


@pytest.fixture(scope="module")
def model(tiny_sd3: Path) -> Sd3Model:
    return load_model(tiny_sd3, load_pipeline(tiny_sd3))


def test_there_is_nothing_to_show_before_the_first_step(model: Sd3Model) -> None:
    assert model.preview(start(model, PLAIN)) is None


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp-2m"])
def test_the_last_preview_is_of_the_picture_itself(model: Sd3Model, sampler: str) -> None:
    row = start(model, with_(sampler=sampler))
    finish(model, [row])
    paint = model.preview(row)
    assert paint is not None
    picture = paint()
    assert picture.shape == (6, 8, 3)
    assert picture.dtype == np.uint8
    assert np.abs(picture.astype(int) - painted(latents(row), None)).max() <= 1


def test_a_preview_is_of_the_step_that_it_was_taken_at(model: Sd3Model) -> None:
    row: Any = start(model, PLAIN)
    model.advance([row])
    paint = model.preview(row)
    assert paint is not None
    before = paint()
    finish(model, [row])
    assert (paint() == before).all()


def test_a_preview_has_what_the_mask_keeps_as_it_is(model: Sd3Model) -> None:
    mask = np.zeros((48, 64), np.float32)
    mask[:, :32] = 1
    row: Any = start(model, PLAIN, image=photograph(), mask=mask)
    model.advance([row])
    paint = model.preview(row)
    assert paint is not None
    kept = painted(row.state.given.image, None)
    assert (paint()[:, 4:] == kept[:, 4:]).all()
    assert (paint()[:, :4] != kept[:, :4]).any()


def test_channels_are_weighed_as_published() -> None:
    one = torch.zeros(16, 1, 2)
    one[2, 0, 1] = 2.0
    assert painted(one, None).tolist() == [[[128, 128, 128], [175, 147, 137]]]


def test_a_decoder_paints_pictures_of_full_size(model: Sd3Model, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    decoder = AutoencoderTiny(
        latent_channels=16, num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4, **blocks
    ).eval()
    monkeypatch.setattr(model, "_preview_decoder", decoder)
    row = start(model, PLAIN)
    finish(model, [row])
    paint = model.preview(row)
    assert paint is not None
    assert paint().shape == (48, 64, 3)
    with torch.no_grad():
        expected = decoder.decode(latents(row)[None]).sample[0]
    right = (expected / 2 + 0.5).clamp(0, 1).mul(255).round().permute(1, 2, 0).numpy()
    assert np.abs(paint().astype(int) - right).max() <= 1


def test_latents_that_are_not_sd3s_are_painted_by_the_models_own_vae(tiny_sd3: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny_sd3, folder)
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.335, "shift_factor": -0.06}))
    model = load_model(folder, load_pipeline(tiny_sd3))
    row = start(model, PLAIN)
    finish(model, [row])
    paint = model.preview(row)
    assert paint is not None
    preview = paint()
    assert preview.shape == (48, 64, 3)
    assert np.abs(preview.astype(int) - model.decode(row)).max() <= 1
