"""LoRAs are read under the names of every trainer, and mean the same; other files are refused with their keys named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import save_file
from torch import Tensor

from limner.core.errors import BadArgument
from limner.diffusion.lora.adapters import Adapters
from limner.diffusion.lora.file import lora_of, read_lora
from limner.diffusion.lora.lora import Lora, ScaledLora
from limner.diffusion.sd3.transformer import Transformer
from limner.diffusion.tiny import sd3_pipeline

WIDTH, BLOCKS, DUAL = 64, 4, 2
RANK, ALPHA = 3, 1.5


def published_layers() -> Iterator[tuple[str, int, int]]:
    """Names in Stability AI's code, inputs and outputs, of all linear layers of the tiny pipeline's transformer."""
    yield "context_embedder", 64, WIDTH
    yield "t_embedder.mlp.0", 256, WIDTH
    yield "t_embedder.mlp.2", WIDTH, WIDTH
    yield "y_embedder.mlp.0", 64, WIDTH
    yield "y_embedder.mlp.2", WIDTH, WIDTH
    for block in range(BLOCKS):
        for stream in ("x_block", "context_block"):
            layer, last = f"joint_blocks.{block}.{stream}", stream == "context_block" and block == BLOCKS - 1
            dual = stream == "x_block" and block < DUAL
            yield f"{layer}.attn.qkv", WIDTH, 3 * WIDTH
            yield f"{layer}.adaLN_modulation.1", WIDTH, (2 if last else 9 if dual else 6) * WIDTH
            if not last:
                yield f"{layer}.attn.proj", WIDTH, WIDTH
                yield f"{layer}.mlp.fc1", WIDTH, 4 * WIDTH
                yield f"{layer}.mlp.fc2", 4 * WIDTH, WIDTH
            if dual:
                yield f"{layer}.attn2.qkv", WIDTH, 3 * WIDTH
                yield f"{layer}.attn2.proj", WIDTH, WIDTH
    yield "final_layer.adaLN_modulation.1", WIDTH, 2 * WIDTH
    yield "final_layer.linear", WIDTH, 64


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Tensor]:
    """A published single file's transformer with random weights."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    weights: dict[str, Tensor] = {}
    for name, inputs, outputs in published_layers():
        weights |= {f"{name}.weight": random(outputs, inputs), f"{name}.bias": random(outputs)}
    for block in range(BLOCKS):
        attentions = ["x_block.attn", "context_block.attn", *(["x_block.attn2"] if block < DUAL else [])]
        for attention in attentions:
            for norm in ("ln_q", "ln_k"):
                weights[f"joint_blocks.{block}.{attention}.{norm}.weight"] = 1 + random(16)
    weights |= {"x_embedder.proj.weight": random(WIDTH, 16, 2, 2), "x_embedder.proj.bias": random(WIDTH)}
    weights["pos_embed"] = sd3_pipeline().transformer.pos_embed.pos_embed
    return weights


@pytest.fixture(scope="module")
def low_ranks() -> dict[str, tuple[Tensor, Tensor]]:
    """Down and up for every linear layer by its published name."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: (
            torch.randn(RANK, inputs, generator=generator) * 0.2,
            torch.randn(outputs, RANK, generator=generator) * 0.2,
        )
        for name, inputs, outputs in published_layers()
    }


def transformer_of(checkpoint: Mapping[str, Tensor], *, fused: bool = False) -> Transformer:
    transformer = Transformer.from_config(sd3_pipeline().transformer.config)
    transformer.load_state_dict(convert_sd3_transformer_checkpoint_to_diffusers(dict(checkpoint)))
    if fused:
        transformer.fuse()
    return transformer.eval()


@torch.no_grad()
def velocity(transformer: Transformer, lora: Lora | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(2, 16, 8, 8, generator=generator)
    text, pooled = torch.randn(2, 10, 64, generator=generator), torch.randn(2, 64, generator=generator)
    adapters = Adapters({"transformer": transformer})
    if lora:
        adapters.attach(lora)
    with adapters.applied("transformer", [(ScaledLora(lora),) if lora else ()] * 2):
        result: Tensor = transformer(latents, torch.tensor([900.0, 200.0]), text, pooled)[0]
    return result


@pytest.fixture(scope="module")
def merged(checkpoint: Mapping[str, Tensor], low_ranks: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
    """What the model gives when the additions are part of the published weights."""
    weights = dict(checkpoint)
    for name, (down, up) in low_ranks.items():
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + ALPHA / RANK * up @ down
    return velocity(transformer_of(weights))


def kohya(low_ranks: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in low_ranks.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {
            f"{key}.lora_down.weight": down,
            f"{key}.lora_up.weight": up,
            f"{key}.alpha": torch.tensor(ALPHA),
        }
    return tensors


def comfy(low_ranks: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in low_ranks.items():
        key = f"diffusion_model.{name}"
        tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up, f"{key}.alpha": torch.tensor(ALPHA)}
    return tensors


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("form", [kohya, comfy])
def test_published_names_mean_the_published_layers(
    form: Any,
    fused: bool,
    checkpoint: Mapping[str, Tensor],
    low_ranks: Mapping[str, tuple[Tensor, Tensor]],
    merged: Tensor,
) -> None:
    """Every linear layer, joined projections and swapped halves with them, as if the weights had been changed."""
    transformer = transformer_of(checkpoint, fused=fused)
    changed = velocity(transformer, lora_of(form(low_ranks), "all"))
    assert (changed - merged).abs().max() < 1e-4 * merged.abs().max()
    assert (velocity(transformer) - merged).abs().max() > 0.1 * merged.abs().max()


def test_every_linear_layer_is_tried(checkpoint: Mapping[str, Tensor]) -> None:
    linears = [name for name, module in transformer_of(checkpoint).named_modules() if hasattr(module, "in_features")]
    joined = sum(2 for name, *_ in published_layers() if "qkv" in name)
    assert len(linears) == len(list(published_layers())) + joined


DIFFUSERS = {
    "transformer_blocks.3.attn.to_q": (64, 64),
    "transformer_blocks.1.attn2.to_v": (64, 64),
    "transformer_blocks.0.attn.to_out.0": (64, 64),
    "transformer_blocks.0.attn.add_k_proj": (64, 64),
    "transformer_blocks.0.attn.to_add_out": (64, 64),
    "transformer_blocks.1.ff.net.0.proj": (64, 256),
    "transformer_blocks.1.ff_context.net.2": (256, 64),
    "transformer_blocks.2.norm1.linear": (64, 384),
    "transformer_blocks.3.norm1_context.linear": (64, 128),
    "time_text_embed.timestep_embedder.linear_1": (256, 64),
    "norm_out.linear": (64, 128),
    "context_embedder": (64, 64),
    "proj_out": (64, 64),
}
CLIP = {"text_model.encoder.layers.0.self_attn.q_proj": (32, 32), "text_model.encoder.layers.4.mlp.fc2": (37, 32)}
T5 = {"encoder.block.1.layer.0.SelfAttention.o": (32, 64), "encoder.block.0.layer.1.DenseReluDense.wo": (37, 64)}
COMPONENTS = {"transformer": DIFFUSERS, "text_encoder": CLIP, "text_encoder_2": CLIP, "text_encoder_3": T5}


def saved(prefixes: Mapping[str, str], down: str, up: str, *, dots: bool) -> dict[str, Tensor]:
    """A file with the layers above: zeros but for one number, which tells the layers apart."""
    tensors: dict[str, Tensor] = {}
    for component, prefix in prefixes.items():
        for index, (path, (inputs, outputs)) in enumerate(COMPONENTS[component].items(), 1):
            key = prefix + (path if dots else path.replace(".", "_"))
            tensors[f"{key}.{down}.weight"] = torch.full((2, inputs), float(index))
            tensors[f"{key}.{up}.weight"] = torch.ones(outputs, 2)
    return tensors


ONE_TRAINER = {
    "transformer": "lora_transformer_",
    "text_encoder": "lora_te1_",
    "text_encoder_2": "lora_te2_",
    "text_encoder_3": "lora_te3_",
}
DOTTED = {name: f"{name}." for name in COMPONENTS}
COMFY_TEXT = {
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": "text_encoders.t5xxl.transformer.",
}
FORMS = {
    "diffusers": (DOTTED, "lora_A", "lora_B", True),
    "diffusers with an adapter's name": (DOTTED, "lora_A.default", "lora_B.default", True),
    "diffusers, older": (DOTTED, "lora.down", "lora.up", True),
    "diffusers, older text encoders": (DOTTED, "lora_linear_layer.down", "lora_linear_layer.up", True),
    "diffusers, the transformer alone": ({"transformer": ""}, "lora_A", "lora_B", True),
    "peft": ({"transformer": "base_model.model."}, "lora_A", "lora_B", True),
    "peft, wrapped once more": ({"transformer": "base_model.model.transformer."}, "lora_A", "lora_B", True),
    "sd-scripts": (ONE_TRAINER | {"transformer": "lora_unet_"}, "lora_down", "lora_up", False),
    "OneTrainer": (ONE_TRAINER, "lora_down", "lora_up", False),
    "OneTrainer, newer": (DOTTED, "lora_down", "lora_up", True),
    "LyCORIS": ({"transformer": "lycoris_"}, "lora_down", "lora_up", False),
    "ComfyUI": (COMFY_TEXT | {"transformer": "diffusion_model."}, "lora_A", "lora_B", True),
}


@pytest.mark.parametrize("form", FORMS)
def test_names_of_all_trainers_lead_to_the_same_layers(form: str) -> None:
    prefixes, down, up, dots = FORMS[form]
    lora = lora_of(saved(prefixes, down, up, dots=dots), "style")
    assert lora.layers.keys() == prefixes.keys()
    for component, layers in lora.layers.items():
        assert layers.keys() == COMPONENTS[component].keys()
        for index, (path, (inputs, outputs)) in enumerate(COMPONENTS[component].items(), 1):
            assert layers[path].down.shape == (2, inputs)
            assert layers[path].up.shape == (outputs, 2)
            assert layers[path].down[0, 0] == index
            assert layers[path].scale == 1


def layer(key: str = "transformer.transformer_blocks.0.attn.to_q") -> dict[str, Tensor]:
    return {f"{key}.lora_A.weight": torch.ones(4, 64), f"{key}.lora_B.weight": torch.ones(64, 4)}


def the_layer(lora: Lora) -> Any:
    (component,) = lora.layers.values()
    (found,) = component.values()
    return found


@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        ({}, 1),
        ({"transformer.lora_alpha": 8, "transformer.r": 4}, 2),
        ({"lora_alpha": 8, "r": 4}, 2),
        ({"transformer.lora_alpha": 8, "transformer.use_rslora": True}, 4),
        ({"lora_alpha": 8, "alpha_pattern": {"to_q": 2}}, 0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"^transformer_blocks.0.attn.to_q": 2}}, 0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"attn.to_k": 2, "q": 2, "^to_q": 2}}, 2),
    ],
)
def test_alpha_is_taken_from_what_peft_writes_down(metadata: Mapping[str, Any], scale: float, tmp_path: Path) -> None:
    assert the_layer(lora_of(layer(), "style", metadata)).scale == scale
    save_file(layer(), tmp_path / "style.safetensors", {"lora_adapter_metadata": json.dumps(metadata)})
    assert the_layer(read_lora(tmp_path / "style.safetensors")).scale == scale
    save_file(layer("base_model.model.transformer_blocks.0.attn.to_q"), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(metadata))
    plain = {key.removeprefix("transformer."): value for key, value in metadata.items()}
    (tmp_path / "adapter_config.json").write_text(json.dumps(plain))
    lora = read_lora(tmp_path / "adapter_model.safetensors", "style")
    assert the_layer(lora).scale == scale
    assert lora.name == "style"


def test_alpha_of_a_layer_goes_before_the_configuration() -> None:
    tensors = layer() | {"transformer.transformer_blocks.0.attn.to_q.alpha": torch.tensor(1.0)}
    assert the_layer(lora_of(tensors, "style", {"lora_alpha": 8})).scale == 0.25


def test_a_lora_of_bfloat16_is_read(tmp_path: Path) -> None:
    save_file({key: values.bfloat16() for key, values in layer().items()}, tmp_path / "style.safetensors")
    lora = read_lora(tmp_path / "style.safetensors")
    assert lora.name == "style"
    assert the_layer(lora).down.dtype == torch.bfloat16
    assert lora.byte_count == 2 * 4 * 64 * 2


def test_a_file_may_be_written_anew_while_its_lora_is_used(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    save_file(layer(), path)
    lora = read_lora(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert (the_layer(lora).down == 1).all()


Q = "transformer.transformer_blocks.0.attn.to_q"
BAD: dict[str, tuple[dict[str, Tensor], str]] = {
    "nothing": ({}, "LoRA 'style' holds nothing"),
    "DoRA": (layer() | {f"{Q}.dora_scale": torch.ones(64, 1)}, rf"is a DoRA.*: {re.escape(Q)}\.dora_scale"),
    "DoRA of peft": (layer() | {f"{Q}.lora_magnitude_vector": torch.ones(64)}, "is a DoRA"),
    "LoKr": ({"lycoris_transformer_blocks_0_attn_to_q.lokr_w1": torch.ones(4, 4)}, "is a LoKr"),
    "LoHa": ({"lycoris_transformer_blocks_0_attn_to_q.hada_w1_a": torch.ones(4, 4)}, "is a LoHa"),
    "OFT": ({"oft_unet_x.oft_blocks": torch.ones(4, 4)}, "is a OFT"),
    "one half": (
        {f"{Q}.lora_A.weight": torch.ones(4, 64)},
        rf"has 1 of its 1 keys.*one half of them: {re.escape(Q)}\.lora_A\.weight",
    ),
    "alpha alone": (layer() | {"transformer.proj_out.alpha": torch.tensor(1.0)}, r"1 of its 3 keys.*proj_out\.alpha"),
    "weights": ({f"{Q}.weight": torch.ones(64, 64)}, "1 of its 1 keys"),
    "biases": (layer() | {f"{Q}.lora_B.bias": torch.ones(64)}, r"1 of its 3 keys.*lora_B\.bias"),
    "embeddings": (layer() | {"bundle_emb.word.clip_l": torch.ones(2, 64)}, r"bundle_emb\.word\.clip_l"),
    "many": (
        {f"lora_unet_double_blocks_{index}_img_attn_qkv.lora_down.weight": torch.ones(1, 1) for index in range(9)},
        "9 of its 9 keys.*_4_img_attn_qkv.lora_down.weight and 4 more",
    ),
    "SD 1.5": (
        {
            "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.ones(4, 320),
            "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": torch.ones(320, 4),
            "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(4, 768),
            "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(3072, 4),
        },
        "was made for SD 1.5 or SDXL.*lora_unet_down_blocks_0",
    ),
    "SDXL of diffusers": (layer("unet.down_blocks.1.attentions.0.proj_in"), "was made for SD 1.5 or SDXL"),
    "a convolution": (
        {f"{Q}.lora_A.weight": torch.ones(4, 64, 1, 1), f"{Q}.lora_B.weight": torch.ones(64, 4, 1, 1)},
        "4×64×1×1 float32 and 64×4×1×1 float32, which is no linear one",
    ),
    "two ranks": (
        {f"{Q}.lora_A.weight": torch.ones(4, 64), f"{Q}.lora_B.weight": torch.ones(64, 8)},
        "4×64 float32 and 64×8 float32",
    ),
    "no rank": ({f"{Q}.lora_A.weight": torch.ones(0, 64), f"{Q}.lora_B.weight": torch.ones(64, 0)}, "is no linear one"),
    "two names": (layer() | layer(f"base_model.model.{Q}"), re.escape(f"changes {Q} twice")),
    "whole numbers": ({key: values.to(torch.int8) for key, values in layer().items()}, "4×64 int8 and 64×4 int8"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_lora_for_sd3_is_refused(case: str, tmp_path: Path) -> None:
    tensors, message = BAD[case]
    save_file(tensors, tmp_path / "style.safetensors")
    with pytest.raises(BadArgument, match=message) as caught:
        read_lora(tmp_path / "style.safetensors")
    assert [each.field for each in caught.value.violations] == ["options.loras"]
    assert str(tmp_path) not in caught.value.message


def test_doras_are_refused_by_their_configuration_too() -> None:
    with pytest.raises(BadArgument, match="is a DoRA, says its configuration"):
        lora_of(layer(), "style", {"transformer.use_dora": True})
    lora_of(layer(), "style", {"transformer.use_dora": False})


def damaged() -> Sequence[bytes]:
    return [b"", b"no safetensors file", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0[]"]


@pytest.mark.parametrize("content", damaged())
def test_damaged_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "style.safetensors").write_bytes(content)
    with pytest.raises(BadArgument, match="LoRA 'style' is no whole safetensors file"):
        read_lora(tmp_path / "style.safetensors")


def test_files_that_were_cut_off_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    save_file(layer(), path)
    for size in (path.stat().st_size - 1, 100, 8, 4):
        whole = path.read_bytes()
        (tmp_path / "cut.safetensors").write_bytes(whole[:size])
        with pytest.raises(BadArgument, match="'cut' is no whole safetensors file"):
            read_lora(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    "metadata", ["no JSON", "[1]", '{"lora_alpha": "x"}', '{"lora_alpha":1,"alpha_pattern":{"(":1}}']
)
def test_configurations_that_mean_nothing_are_refused(metadata: str, tmp_path: Path) -> None:
    save_file(layer(), tmp_path / "style.safetensors", {"lora_adapter_metadata": metadata})
    with pytest.raises(BadArgument, match="configuration"):
        read_lora(tmp_path / "style.safetensors")
