"""Parts in memory: those of the folder, of a single file with its text encoders apart, in what a plan says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from limner.core.errors import ModelNotInstalled
from limner.core.placement import Placement
from limner.diffusion import loading
from limner.diffusion.encoders import Encoder
from limner.diffusion.loading import load_legacy_parts, load_sd3
from limner.diffusion.plan import Plan
from limner.diffusion.quantise import Int8Linear
from limner.diffusion.sources import find
from limner.diffusion.tiny import write_sd1_inpaint
from tests.diffusion.test_single_file import tensors_of

PLAN = Plan(
    placement=Placement("cpu", "fp32", "torch", "a test"),
    dtype="fp32",
    quantisation="none",
    t5_quantisation="none",
    text_encoders="device",
    text_dtype="fp32",
    vae_dtype="fp32",
    t5=True,
    group_offload=False,
    vae_tiling=False,
    needed_bytes=0,
    cpu_needed_bytes=0,
    parts={},
)


def run(components):
    """One evaluation of the transformer on fixed inputs."""
    config = components.transformer.config
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, generator=generator).to(components.dtype)

    with torch.inference_mode():
        return components.transformer(
            drawn(1, 16, 4, 6),
            torch.tensor([500.0]),
            drawn(1, 9, config.joint_attention_dim),
            drawn(1, config.pooled_projection_dim),
        )[0]


def test_a_folder_gives_every_part_with_its_own_values(tiny_sd3):
    told = []
    components = load_sd3(find("tiny", str(tiny_sd3)), PLAN, step=told.append)
    assert told == [1, 2, 3, 4]
    vae = load_file(tiny_sd3 / "vae" / "diffusion_pytorch_model.safetensors")
    torch.testing.assert_close(components.vae.state_dict()["decoder.conv_in.weight"], vae["decoder.conv_in.weight"])
    for part in ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae"):
        module = getattr(components, part)
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert components.tokenizer_3.model_max_length == 512
    assert components.preview_decoder is None


def test_precisions_are_those_of_the_plan(tiny_sd3):
    plan = replace(PLAN, dtype="bf16", vae_dtype="fp32", text_dtype="bf16", t5=False)
    components = load_sd3(find("tiny", str(tiny_sd3)), plan)
    assert components.dtype == components.transformer.proj_out.weight.dtype == torch.bfloat16
    assert components.text_encoder.dtype == torch.bfloat16
    assert components.vae.dtype == torch.float32
    assert components.text_encoder_3 is None
    assert components.tokenizer_3 is None


@pytest.mark.parametrize(
    "change",
    [{"quantisation": "int8"}, {"group_offload": True}, {"text_encoders": "offload"}, {"t5_quantisation": "int8"}],
    ids=lambda change: next(iter(change)),
)
def test_what_saves_memory_hardly_changes_what_is_computed(change, tiny_sd3):
    place = find("tiny", str(tiny_sd3))
    plain, saving = load_sd3(place, PLAN), load_sd3(place, replace(PLAN, **change))
    expected = run(plain)
    torch.testing.assert_close(run(saving), expected, rtol=0, atol=0.05 * float(expected.abs().max()))
    ids = torch.tensor([[0, 5, 6, 2]])
    with torch.inference_mode():
        wanted, found = (each.text_encoder_3(ids).last_hidden_state for each in (plain, saving))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.05 * float(wanted.abs().max()))
    quantised = [module for module in saving.transformer.modules() if isinstance(module, Int8Linear)]
    assert bool(quantised) == (change == {"quantisation": "int8"})


def test_a_single_file_takes_its_text_encoders_from_elsewhere(tiny_sd3, tmp_path):
    file = tmp_path / "mine.safetensors"
    save_file(tensors_of("small_large", "small_vae"), file)
    components = load_sd3(find("mine", str(file)), PLAN, text_encoders=str(tiny_sd3))
    assert len(components.transformer.transformer_blocks) == 2
    assert components.text_encoder.config.hidden_size == 32
    assert components.text_encoder_3 is not None
    assert torch.isfinite(run(components)).all()


def test_weights_in_16_bits_alone_are_taken(tiny_sd3, tmp_path):
    folder = shutil.copytree(tiny_sd3, tmp_path / "mine")
    for part, file in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (folder / part / f"{file}.safetensors").rename(folder / part / f"{file}.fp16.safetensors")
    components = load_sd3(find("mine", str(folder)), PLAN)
    weights = load_file(folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    torch.testing.assert_close(
        components.vae.decoder.conv_in.weight, torch.nn.Parameter(weights["decoder.conv_in.weight"])
    )


def test_openclip_is_filled_up_with_the_token_0(tiny_sd3, tmp_path):
    """As the published vocabularies are laid out: CLIP-L is filled up with its end."""
    names = ["!", "a</w>", "c", "a", "t</w>", "<|startoftext|>", "<|endoftext|>"]
    special = {"bos_token": names[5], "eos_token": names[6], "unk_token": names[6], "pad_token": names[6]}
    beside = tmp_path / "text_encoders"
    for part in ("tokenizer", "tokenizer_2"):
        (beside / part).mkdir(parents=True)
        (beside / part / "vocab.json").write_text(json.dumps({name: index for index, name in enumerate(names)}))
        (beside / part / "merges.txt").write_text("#version: 0.2\n")
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
        (beside / part / "tokenizer_config.json").write_text(json.dumps(config))
    for part, file in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        tokenizer = loading._tokenizer(
            Encoder(part, tiny_sd3 / "model_index.json", "", beside / f"tokenizer{part[12:]}")
        )
        ids = tokenizer("a cat", padding="max_length", max_length=8).input_ids
        assert ids == [5, 1, 2, 3, 4, 6, *([6, 6] if file == "clip_l" else [0, 0])]


def spoiled(folder: Path, target: Path) -> Path:
    """A copy of a folder whose VAE lacks a tensor."""
    shutil.copytree(folder, target)
    file = target / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["decoder.conv_in.bias"]
    save_file(tensors, file, {"format": "pt"})
    return target


def test_weights_that_do_not_fit_are_no_noise_but_an_error(tiny_sd3, tmp_path):
    place = find("mine", str(spoiled(tiny_sd3, tmp_path / "mine")))
    with pytest.raises(ModelNotInstalled, match=r"1 missing keys, such as decoder\.conv_in\.bias"):
        load_sd3(place, PLAN)


def test_a_configuration_that_can_not_be_read_is_told(tiny_sd3, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(tiny_sd3, folder)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps({**config, "num_layers": 3}))
    with pytest.raises(ModelNotInstalled, match="transformer"):
        load_sd3(find("mine", str(folder)), PLAN)


def test_a_preview_decoder_has_to_be_there(tiny_sd3, tmp_path):
    with pytest.raises(ModelNotInstalled, match=r"preview_decoder: there is no config\.json"):
        load_sd3(find("tiny", str(tiny_sd3)), PLAN, preview_decoder=str(tmp_path))


def test_older_pipelines_are_loaded_as_planned(tmp_path):
    place = find("mine", str(write_sd1_inpaint(tmp_path / "sd1")))
    parts = load_legacy_parts(place, replace(PLAN, vae_tiling=True, text_encoders="offload"))
    assert parts.inpaints
    assert parts.vae.use_tiling
    assert parts.unet.dtype == torch.float32
