"""Single files against the outputs of Stability's own code on the same weights; golden/README.md says how those were
made. Full-size networks are compared by names and shapes alone, without memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from limner.core.errors import ModelNotInstalled
from limner.diffusion import single_file
from limner.diffusion.encoders import Encoder
from limner.diffusion.facts import variant_of
from limner.diffusion.models import MODELS
from limner.diffusion.shapes import part_of
from limner.diffusion.sources import Place, Tensor, find, read_header
from tests.diffusion.golden import sd3_cases

GOLDEN = Path(__file__).parent / "golden"
NAMES = {"large": "sd3.5_large", "medium": "sd3.5_medium", "sd3_medium": "sd3_medium"}


def names_of(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes as Stability's code has them."""
    lines = (line.partition(" ") for line in (GOLDEN / f"{name}.names.txt").read_text().splitlines())
    return {key: tuple(map(int, shape.split("x"))) if shape else () for key, _, shape in lines}


def tensors_of(*names: str) -> dict[str, torch.Tensor]:
    shapes = {key: shape for name in names for key, shape in names_of(name).items()}
    return {key: torch.from_numpy(values) for key, values in sd3_cases.weights(shapes).items()}


def written(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "sd3.npz") as outputs:
        return {name: torch.from_numpy(outputs[name]) for name in outputs}


@pytest.fixture(scope="module")
def given():
    return {name: torch.from_numpy(values) for name, values in sd3_cases.inputs().items()}


def place_of(path: Path) -> Place:
    return find("mine", str(path))


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""], ids=["prefixed", "bare"])
@pytest.mark.parametrize("case", sd3_cases.CASES)
def test_a_transformer_computes_what_the_published_code_does(case, prefix, golden, given, tmp_path):
    tensors = {
        prefix + key.removeprefix(sd3_cases.TRANSFORMER_PREFIX): tensor
        for key, tensor in tensors_of(f"small_{case}").items()
    }
    transformer = single_file.read_transformer(
        place_of(written(tmp_path / "it.safetensors", {**tensors, **tensors_of("small_vae")})), torch.float32
    )
    with torch.inference_mode():
        velocity, _ = transformer(given["latents"], given["timestep"], given["text"], given["pooled"])
    torch.testing.assert_close(velocity, golden[case], rtol=0, atol=1e-4 * float(golden[case].abs().max()))


def test_a_vae_computes_what_the_published_code_does(golden, given, tmp_path):
    file = written(tmp_path / "it.safetensors", tensors_of("small_large", "small_vae"))
    vae = single_file.read_vae(place_of(file), torch.float32)
    with torch.inference_mode():
        moments = vae.encode(given["picture"]).latent_dist.parameters
        decoded = vae.decode(given["latents"][:1]).sample
    for found, expected in ((moments, golden["moments"]), (decoded, golden["decoded"])):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert (vae.config.scaling_factor, vae.config.shift_factor) == (1.5305, 0.0609)


@pytest.mark.parametrize("inside", [False, True], ids=["file of its own", "in the single file"])
@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
def test_clip_computes_what_the_published_code_does(name, inside, golden, tmp_path):
    prefix = f"text_encoders.{'clip_l' if name == 'text_encoder' else 'clip_g'}.transformer." if inside else ""
    tensors = {prefix + key: tensor for key, tensor in tensors_of(f"small_{name}").items()}
    if name == "text_encoder":  # the published file has none, and what is there must not matter
        tensors[f"{prefix}text_projection.weight"] = torch.full((64, 64), 7.0)
    encoder = Encoder(name, written(tmp_path / "it.safetensors", tensors), prefix, tmp_path)
    config = {"vocab_size": 49408, "hidden_act": sd3_cases.ACTIVATIONS[name], "projection_dim": 64, "eos_token_id": 2}
    model = single_file.read_clip(encoder, torch.float32, {**config, **sd3_cases.CLIP})
    ids = torch.from_numpy(sd3_cases.tokens(49407 if name == "text_encoder" else 0))
    with torch.inference_mode():
        found = model(ids, output_hidden_states=True)
    expected_pooled = golden[f"{name}_pooled"]
    if name == "text_encoder":  # the recipe's own projection is the identity too
        torch.testing.assert_close(model.text_projection.weight, torch.eye(64))
    torch.testing.assert_close(found.hidden_states[-2], golden[name], rtol=0, atol=2e-4)
    torch.testing.assert_close(found.text_embeds, expected_pooled, rtol=0, atol=2e-4)


def test_t5_computes_what_the_published_code_does(golden, tmp_path):
    tensors = tensors_of("small_text_encoder_3")
    encoder = Encoder("text_encoder_3", written(tmp_path / "it.safetensors", tensors), "", tmp_path)
    config = {"d_kv": 32, "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, **sd3_cases.T5}
    model = single_file.read_t5(encoder, torch.float32, config)
    with torch.inference_mode():
        found = model(torch.from_numpy(sd3_cases.t5_tokens())).last_hidden_state
    expected = golden["text_encoder_3"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("case", "layers", "dual", "parameters", "positions"),
    [
        ("large", 38, (), 8_056_627_520, 89_653_248),
        ("medium", 24, tuple(range(13)), 2_243_171_520, 226_492_416),
        ("sd3_medium", 24, (), 2_028_328_000, 56_623_104),
    ],
)
def test_published_files_have_every_tensor_of_the_architecture(case, layers, dual, parameters, positions, monkeypatch):
    """Names and shapes of the published code, read as a file would be, into a network without memory."""
    shapes = names_of(NAMES[case])
    place = Place("mine", GOLDEN / "nothing.safetensors", "sd3")
    place.__dict__["header"] = {key: Tensor("F16", shape) for key, shape in shapes.items()}
    monkeypatch.setattr(
        single_file, "_read", lambda path, keys: ((key, torch.empty(shapes[key], device="meta")) for key in keys)
    )
    transformer = single_file.read_transformer(place, torch.bfloat16)
    assert len(transformer.transformer_blocks) == layers
    assert tuple(i for i, block in enumerate(transformer.transformer_blocks) if block.attn2 is not None) == dual
    assert sum(parameter.numel() for parameter in transformer.parameters()) == parameters
    assert transformer.pos_embed.pos_embed.numel() == positions
    vae = single_file.read_vae(place, torch.bfloat16)
    assert sum(parameter.numel() for parameter in vae.parameters()) == 83_819_683


@pytest.mark.parametrize("case", ["large", "medium", "sd3_medium"])
def test_cards_tell_the_published_size(case):
    shape = next(known.SHAPE for known in MODELS.values() if known.CARD.name == NAMES[case].replace("_", "-"))
    prefix = sd3_cases.TRANSFORMER_PREFIX
    header = {
        key.removeprefix(prefix): Tensor("F16", tensor)
        for key, tensor in names_of(NAMES[case]).items()
        if key.startswith(prefix)
    }
    assert part_of(header) == shape.denoiser


@pytest.mark.parametrize(
    ("file", "name", "parameters"),
    [
        ("clip_l", "text_encoder", 123_650_304),
        ("clip_g", "text_encoder_2", 694_659_840),
        ("t5xxl", "text_encoder_3", 4_762_310_656),
    ],
)
def test_published_text_encoders_have_every_tensor(file, name, parameters, monkeypatch):
    shapes = names_of(file)
    monkeypatch.setattr(Encoder, "header", property(lambda self: {key: Tensor("F16", shapes[key]) for key in shapes}))
    monkeypatch.setattr(
        single_file, "_read", lambda path, keys: ((key, torch.empty(shapes[key], device="meta")) for key in keys)
    )
    encoder = Encoder(name, GOLDEN, "", GOLDEN)
    read = single_file.read_t5 if name == "text_encoder_3" else single_file.read_clip
    assert sum(parameter.numel() for parameter in read(encoder, torch.bfloat16).parameters()) == parameters


def test_turbo_is_known_by_its_name(tmp_path):
    shapes = names_of("sd3.5_large")
    for name, steps in (("sd3.5_large_turbo.safetensors", 4), ("sd3.5_large.safetensors", 40)):
        place = Place("mine", tmp_path / name, "sd3")
        (tmp_path / name).touch()
        place.__dict__["header"] = {key: Tensor("F16", shape) for key, shape in shapes.items()}
        assert variant_of(place).step_count == steps


def test_what_does_not_fit_is_named(tmp_path):
    tensors = tensors_of("small_large", "small_vae")
    prefix = sd3_cases.TRANSFORMER_PREFIX
    del tensors[f"{prefix}joint_blocks.1.x_block.mlp.fc1.bias"]
    tensors[f"{prefix}joint_blocks.0.x_block.mlp.fc3.bias"] = torch.zeros(3)
    tensors[f"{prefix}final_layer.linear.bias"] = torch.zeros(5)
    with pytest.raises(ModelNotInstalled) as caught:
        single_file.read_transformer(place_of(written(tmp_path / "it.safetensors", tensors)), torch.float32)
    assert "missing: transformer_blocks.1.ff.net.0.proj.bias;" in caught.value.message
    assert "not known: joint_blocks.0.x_block.mlp.fc3.bias;" in caught.value.message
    assert "of another shape: proj_out.bias (5,) instead of (64,)" in caught.value.message


def test_a_file_without_a_vae_is_refused(tmp_path):
    file = written(tmp_path / "it.safetensors", tensors_of("small_large"))
    with pytest.raises(ModelNotInstalled, match=r"first_stage_model\.encoder\.down"):
        single_file.read_vae(place_of(file), torch.float32)


def test_headers_are_read_without_the_weights(tmp_path):
    file = written(tmp_path / "it.safetensors", {"a": torch.zeros(2, 3, dtype=torch.bfloat16)})
    assert read_header(file) == {"a": Tensor("BF16", (2, 3))}
