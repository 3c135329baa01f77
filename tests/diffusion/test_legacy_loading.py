"""SD 1 and SDXL from folders and single files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from limner.core.errors import ModelNotInstalled
from limner.diffusion import tiny
from limner.diffusion.legacy import loading
from limner.diffusion.legacy.loading import load_legacy
from limner.diffusion.legacy.parts import Parts
from limner.diffusion.legacy.single_file import config
from tests.diffusion.ldm_names import write_single_file

CPU = torch.device("cpu")
MODULES = "unet", "vae", "text_encoder", "text_encoder_2"


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pipe(family: str) -> Any:
    return tiny.sd1_pipeline() if family == "sd1" else tiny.sdxl_pipeline()


@pytest.fixture
def folder(pipe: Any, tmp_path: Path) -> Path:
    pipe.save_pretrained(tmp_path / "model", safe_serialization=True)
    return tmp_path / "model"


@pytest.fixture
def single_file(pipe: Any, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of the tiny pipeline, and configurations as if it were of the published architecture."""
    configs = {name: dict(getattr(pipe, name).config) for name in ("unet", "vae", "scheduler")}
    configs |= {name: getattr(pipe, name).config.to_dict() for name in MODULES[2:] if hasattr(pipe, name)}
    monkeypatch.setattr(loading, "config", lambda family: configs)
    pipe.tokenizer.save_pretrained(tmp_path / "text_encoders" / "tokenizer")
    return write_single_file(pipe, tmp_path / "model.safetensors")


def load(path: Path, family: str, **options: Any) -> Parts:
    return load_legacy(path, family=family, **({"device": CPU, "dtype": torch.float32} | options))  # type: ignore[arg-type]


def assert_same_networks(parts: Parts, pipe: Any) -> None:
    for name in MODULES:
        theirs, ours = getattr(pipe, name, None), getattr(parts, name)
        assert (theirs is None) == (ours is None)
        if theirs is not None:
            assert not ours.training
            expected = theirs.state_dict()
            assert ours.state_dict().keys() == expected.keys()
            for key, tensor in ours.state_dict().items():
                torch.testing.assert_close(tensor, expected[key], rtol=0, atol=0)


def test_a_folder_gives_what_was_written(folder: Path, pipe: Any, family: str) -> None:
    parts = load(folder, family)
    assert_same_networks(parts, pipe)
    assert parts.inpaints
    assert parts.scheduler["beta_schedule"] == "scaled_linear"
    assert parts.tokenizer("a red apple").input_ids == pipe.tokenizer("a red apple").input_ids


def test_folders_with_the_published_names_are_read(folder: Path, pipe: Any, family: str) -> None:
    """The published weights have CLIP's names with `text_model.`, and older names of the VAE's attention."""
    for name in ("text_encoder", "text_encoder_2"):
        if (file := folder / name / "model.safetensors").is_file():
            clip = {
                key if key.startswith("text_") else f"text_model.{key}": each for key, each in load_file(file).items()
            }
            clip["text_model.embeddings.position_ids"] = torch.arange(77)[None]
            save_file(clip, file, metadata={"format": "pt"})
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    vae = {}
    for key, tensor in load_file(file).items():
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            key = key.replace(new, old)
        vae[key] = tensor
    save_file(vae, file, metadata={"format": "pt"})
    assert_same_networks(load(folder, family), pipe)


def test_weights_that_are_there_in_sixteen_bits_alone_are_read(folder: Path, pipe: Any, family: str) -> None:
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert_same_networks(load(folder, family), pipe)


def test_only_the_vae_of_sdxl_stays_in_float32(folder: Path, family: str) -> None:
    parts = load(folder, family, dtype=torch.float16)
    assert parts.unet.dtype == parts.text_encoder.dtype == torch.float16
    assert parts.vae.dtype == (torch.float32 if family == "sdxl" else torch.float16)
    assert load(folder, family, dtype=torch.bfloat16).vae.dtype == torch.bfloat16


def test_text_encoders_have_a_dtype_of_their_own(folder: Path, family: str) -> None:
    parts = load(folder, family, dtype=torch.bfloat16, text_dtype=torch.float32)
    assert (parts.unet.dtype, parts.text_encoder.dtype) == (torch.bfloat16, torch.float32)


def test_weights_that_are_missing_are_named(folder: Path, family: str) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_in.bias"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelNotInstalled, match=r"1 missing keys, such as conv_in\.bias"):
        load(folder, family)


def test_pickles_are_not_read(folder: Path, family: str) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ModelNotInstalled, match="vae can't be loaded"):
        load(folder, family)


def test_a_folder_without_tokenizer_says_so(folder: Path, family: str) -> None:
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(ModelNotInstalled, match="tokenizer"):
        load(folder, family)


def test_a_single_file_gives_the_same_networks(single_file: Path, pipe: Any, family: str) -> None:
    parts = load(single_file, family)
    assert_same_networks(parts, pipe)
    assert parts.tokenizer("a red apple").input_ids == pipe.tokenizer("a red apple").input_ids


def test_a_single_files_channels_are_its_own(family: str, single_file: Path, pipe: Any) -> None:
    four = tiny.sd1_pipeline(in_channels=4) if family == "sd1" else tiny.sdxl_pipeline(in_channels=4)
    write_single_file(four, single_file)
    parts = load(single_file, family)
    assert parts.unet.config.in_channels == 4
    assert not parts.inpaints


@pytest.mark.parametrize(
    ("key", "network"),
    [
        ("model.diffusion_model.middle_block.1.norm.weight", "UNet"),
        ("first_stage_model.decoder.conv_in.bias", "VAE"),
        ("{clip}.text_model.final_layer_norm.weight", "CLIP-L"),
    ],
)
def test_a_single_file_that_lacks_something_names_it(single_file: Path, family: str, key: str, network: str) -> None:
    clip = "conditioner.embedders.0.transformer" if family == "sdxl" else "cond_stage_model.transformer"
    tensors = load_file(single_file)
    del tensors[key.format(clip=clip)]
    save_file(tensors, single_file)
    with pytest.raises(ModelNotInstalled, match=f"does not hold a {network}.*missing: "):
        load(single_file, family)


def test_a_single_file_of_other_widths_is_refused(single_file: Path, family: str) -> None:
    tensors = load_file(single_file)
    tensors["model.diffusion_model.out.2.weight"] = torch.zeros(4, 8, 3, 3)
    save_file(tensors, single_file)
    with pytest.raises(ModelNotInstalled, match=r"size mismatch for conv_out\.weight"):
        load(single_file, family)


def test_a_single_file_without_tokenizers_says_where_they_are_looked_for(
    single_file: Path, family: str, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "text_encoders")
    with pytest.raises(ModelNotInstalled, match=r"tokenizer.*hf download openai/clip-vit-large-patch14"):
        load(single_file, family, hub_cache=str(tmp_path / "hub"))


def test_the_carried_configurations_are_of_the_published_architectures() -> None:
    """By their numbers of parameters, as published."""

    def count(model: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    with torch.device("meta"):
        assert count(UNet2DConditionModel(**config("sd1")["unet"])) == 859_520_964
        assert count(UNet2DConditionModel(**config("sdxl")["unet"])) == 2_567_463_684
        assert count(AutoencoderKL(**config("sd1")["vae"])) == 83_653_863
        assert count(AutoencoderKL(**config("sdxl")["vae"])) == 83_653_863
        assert count(CLIPTextModel(CLIPTextConfig(**config("sd1")["text_encoder"]))) == 123_060_480
        assert count(CLIPTextModelWithProjection(CLIPTextConfig(**config("sdxl")["text_encoder_2"]))) == 694_659_840
