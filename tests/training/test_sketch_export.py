from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

from limner.diffusion.tiny import vae
from tests.training import sketches
from training.sketch import export
from training.sketch.network import best


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tokenizer = sketches.tokenizer()
    sketches.write_run(folder / "run", sketches.sketch(tokenizer), tokenizer)
    vae(latent_channels=16, scaling_factor=0.5, shift_factor=0.25).save_pretrained(folder / "vae")
    return folder


def exported(run, to):
    export.main(["--out", str(run / "run"), "--vae", str(run / "vae"), "--to", str(to), "--shift", "2"])
    return to


def test_the_folder_is_one_that_diffusers_draws_with(run, tmp_path) -> None:
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        exported(run, tmp_path / "sketch"), text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)

    picture = pipeline("a red apple", num_inference_steps=2).images[0]

    assert picture.size == (128, 128)
    assert pipeline.scheduler.config.shift == 2
    assert pipeline.vae.config.scaling_factor == 0.5


def test_weights_are_those_of_the_best_average_in_16_bits(run, tmp_path) -> None:
    folder = exported(run, tmp_path / "sketch")

    network, _ = best(run / "run")
    for name, part in network.named_children():
        (file,) = (folder / name).glob("*.safetensors")
        stored = load_file(file)
        for key, value in part.state_dict().items():
            assert stored[key].dtype == torch.float16
            assert torch.equal(stored[key], value.half())


def test_what_stood_there_before_is_gone(run, tmp_path) -> None:
    (tmp_path / "sketch").mkdir()
    (tmp_path / "sketch/old.safetensors").touch()

    folder = exported(run, tmp_path / "sketch")

    assert not (folder / "old.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["sketch"]
