from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from limner.diffusion.tiny import vae
from tests.training import sketches
from training.sketch import export, sample
from training.sketch.network import best


@pytest.fixture(scope="module")
def parts():
    tokenizer = sketches.tokenizer()
    return tokenizer, sketches.sketch(tokenizer)


def test_it_draws_what_the_pipeline_draws(parts) -> None:
    tokenizer, network = parts
    pipeline = export.pipeline(
        network, tokenizer, vae(latent_channels=16, scaling_factor=1.0, shift_factor=0.0), shift=2.0
    )
    prompts = ["a red apple", "a blue car"]
    noise = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(3))
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent", "height": 128, "width": 128}
    pipeline.set_progress_bar_config(disable=True)
    served = pipeline(prompts, latents=noise, max_sequence_length=77, **options).images

    drawn = sample.latents(network, tokenizer, prompts, steps=4, guidance=3.0, shift=2.0, seed=3, text_length=77)

    assert drawn.std() > 0.5
    assert (drawn - served).abs().mean() < 0.02 * served.std()  # bfloat16 here, float32 there


def test_guidance_and_seed_make_a_difference(parts) -> None:
    tokenizer, network = parts
    usual = sample.latents(network, tokenizer, ["a cat"], steps=2)

    assert torch.equal(usual, sample.latents(network, tokenizer, ["a cat"], steps=2))
    assert not torch.equal(usual, sample.latents(network, tokenizer, ["a cat"], steps=2, seed=1))
    assert not torch.equal(usual, sample.latents(network, tokenizer, ["a cat"], steps=2, guidance=1.0))


def test_latents_are_scaled_back_before_they_are_decoded() -> None:
    decoder = vae(latent_channels=16, scaling_factor=0.5, shift_factor=0.25).eval()
    own = torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(0))

    pictures = sample.decoded(decoder, (own - 0.25) * 0.5)

    with torch.no_grad():
        expected = ((decoder.decode(own).sample.clamp(-1, 1) + 1) * 127.5).round()
    assert pictures.shape == (1, 32, 48, 3)
    np.testing.assert_allclose(pictures[0], expected[0].permute(1, 2, 0), atol=1)


def test_a_grid_has_pictures_row_by_row_on_white() -> None:
    pictures = np.stack([np.full((8, 10, 3), value, np.uint8) for value in (10, 20, 30)])

    sheet = sample.grid(pictures, 2)

    assert sheet.shape == (2 * 8 + sample.GAP, 2 * 10 + sample.GAP, 3)
    assert (sheet[0, 0, 0], sheet[0, -1, 0], sheet[-1, 0, 0], sheet[-1, -1, 0]) == (10, 20, 30, 255)
    assert sheet[0, 11, 0] == 255


def test_a_grid_of_a_run_is_a_picture_file(parts, tmp_path) -> None:
    tokenizer, network = parts
    vae(latent_channels=16, scaling_factor=0.5, shift_factor=0.25).save_pretrained(tmp_path / "vae")
    sketches.write_run(tmp_path / "run", network, tokenizer)

    sample.main(["a cat", "a dog", "--out", str(tmp_path / "run"), "--vae", str(tmp_path / "vae"), "--steps", "2"])

    picture = cv2.imread(str(tmp_path / "run/sample.png"))
    assert picture.shape == (128, 4 * 128 + 3 * sample.GAP, 3)
    sample.Drawer(tmp_path / "vae", ["a cat"])(*best(tmp_path / "run"), tmp_path / "grid.png")
    assert (tmp_path / "grid.png").exists()
