from __future__ import annotations

import copy
import weakref

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.nn import functional
from transformers import T5Config, T5EncoderModel

from limner.diffusion.lora.adapters import Adapters
from limner.diffusion.lora.lora import Lora, LowRank, ScaledLora
from limner.diffusion.quantise import KINDS, NF4, Int8Linear, QuantisedLinear, quantise
from limner.diffusion.sd3.transformer import Transformer

# How far, as a share of the output, a layer with normal weights is off: what the formats give in theory and a tenth.
FARTHEST = {"int8": 0.007 * 1.1, "fp8": 0.037 * 1.1, "nf4": 0.092 * 1.1}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def transformer(tiny_sd3) -> Transformer:
    found = Transformer.from_pretrained(tiny_sd3, subfolder="transformer").eval()
    found.fuse()
    return found


def inputs(dtype: torch.dtype = torch.float32, rows: int = 2) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(3)
    shapes = [(rows, 16, 8, 8), (rows, 20, 64), (rows, 64)]
    latents, text, pooled = (torch.randn(shape, generator=source).to(dtype) for shape in shapes)
    return [latents, torch.full((rows,), 500.0).to(dtype), text, pooled]


def off(values: torch.Tensor, right: torch.Tensor) -> float:
    return float((values.float() - right.float()).norm() / right.float().norm())


def weights(module: nn.Module) -> int:
    return sum(weight.nbytes for weight in module.parameters())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4"])
def test_a_layer_is_off_by_what_its_format_rounds(kind, bias):
    torch.manual_seed(0)
    layer = nn.Linear(256, 512, bias=bias)
    nn.init.normal_(layer.weight)
    values = torch.randn(3, 40, 256)
    if kind == "fp8":  # multiplied into bf16
        layer, values = layer.bfloat16(), values.bfloat16()
    quantised = KINDS[kind](layer)
    right = functional.linear(values.float(), layer.weight.float(), None if layer.bias is None else layer.bias.float())
    found = quantised(values)
    assert (found.shape, found.dtype) == (right.shape, values.dtype)
    assert off(found, right) < FARTHEST[kind]
    bits = 8 * weights(quantised) / layer.weight.numel()
    assert bits < {"int8": 8.3, "fp8": 8.3, "nf4": 5.2}[kind]
    assert (quantised.in_features, quantised.out_features) == (256, 512)


def test_each_output_channel_has_a_scale_of_its_own():
    layer = nn.Linear(64, 2, bias=False)
    layer.weight[0], layer.weight[1] = 1000.0, 0.001
    found = Int8Linear(layer)(torch.ones(1, 64))
    torch.testing.assert_close(found, torch.tensor([[64000.0, 0.064]]))


def test_layers_of_zeros_stay_zeros():
    layer = nn.Linear(64, 64)
    nn.init.zeros_(layer.weight)
    nn.init.ones_(layer.bias)
    for kind in ("int8", "nf4"):
        assert (KINDS[kind](layer)(torch.ones(2, 64)) == 1).all()
    assert (KINDS["fp8"](layer.bfloat16())(torch.zeros(2, 64).bfloat16()) == 1).all()


def test_nf4_has_the_sixteen_values():
    layer = nn.Linear(16, 16, bias=False)
    layer.weight.copy_(torch.tensor(NF4).repeat(16, 1) * 3)
    torch.testing.assert_close(KINDS["nf4"](layer)(torch.eye(16)), layer.weight.t(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "farthest"), [("int8", 0.01), ("nf4", 0.2)])
def test_a_transformer_s_blocks_are_quantised_and_nothing_else(transformer, kind, farthest):
    right, _ = transformer(*inputs())
    quantised = copy.deepcopy(transformer)
    quantise(quantised, kind)
    found, _ = quantised(*inputs())
    assert 0 < off(found, right) < farthest
    inside = [layer for layer in quantised.transformer_blocks.modules() if hasattr(layer, "in_features")]
    assert inside
    assert all(isinstance(layer, QuantisedLinear) for layer in inside)
    assert type(quantised.context_embedder) is nn.Linear
    assert type(quantised.proj_out) is nn.Linear
    assert weights(quantised.transformer_blocks) < weights(transformer.transformer_blocks) / 3


def test_fp8_leaves_layers_alone_whose_sizes_can_t_be_multiplied(transformer):
    transformer.bfloat16()
    right, _ = transformer(*inputs(torch.bfloat16))
    block = transformer.transformer_blocks[0]
    block.attn.to_out[0] = nn.Linear(64, 60).bfloat16()
    quantise(block, "fp8")
    assert type(block.attn.to_out[0]) is nn.Linear
    block.attn.to_out[0] = nn.Linear(64, 64).bfloat16()
    quantise(transformer, "fp8")
    found, _ = transformer(*inputs(torch.bfloat16))
    assert found.isfinite().all()
    assert found.shape == right.shape


def test_layers_are_let_go_one_by_one(transformer, monkeypatch):
    gone: list[weakref.ref[nn.Linear]] = []
    alive: list[int] = []

    def counted(layer: nn.Linear) -> Int8Linear:
        gone.append(weakref.ref(layer))
        alive.append(sum(each() is not None for each in gone))
        return Int8Linear(layer)

    monkeypatch.setitem(KINDS, "int8", counted)
    quantise(transformer, "int8")
    assert max(alive) <= 2  # the one before may be held by the loop
    assert len(alive) > 20


def test_none_changes_nothing(transformer):
    quantise(transformer, "none")
    assert not any(isinstance(layer, QuantisedLinear) for layer in transformer.modules())


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_t5_reads_the_same(kind, dtype):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=100, d_model=64, d_kv=8, d_ff=128, num_layers=2, num_heads=8, feed_forward_proj="gated-gelu"
    )
    t5 = T5EncoderModel(config).eval().to(dtype)
    for block in t5.encoder.block:  # as transformers keeps it where the rest is in fp16
        block.layer[1].DenseReluDense.wo.float()
    tokens = torch.arange(40)[None]
    right = t5(tokens).last_hidden_state
    quantise(t5, kind)
    found = t5(tokens).last_hidden_state
    assert found.dtype == right.dtype
    assert 0 < off(found, right) < {"int8": 0.02, "nf4": 0.2}[kind]
    assert sum(isinstance(layer, QuantisedLinear) for layer in t5.modules()) == 2 * 7


def test_loras_add_to_quantised_layers_what_they_add_to_others(transformer):
    source = torch.Generator().manual_seed(1)
    low_rank = LowRank(torch.randn(4, 64, generator=source) / 8, torch.randn(64, 4, generator=source) / 2, scale=1.0)
    lora = Lora("style", {"transformer": {"transformer_blocks.1.attn.to_k": low_rank}})

    def change(module: Transformer) -> torch.Tensor:
        adapters = Adapters({"transformer": module})
        plain, _ = module(*inputs())
        with adapters.applied("transformer", [(ScaledLora(lora, 1.0),), ()]):
            changed, _ = module(*inputs())
        assert torch.equal(changed[1], plain[1])
        return changed[0] - plain[0]

    right = change(transformer)
    quantise(transformer, "int8")
    assert right.abs().max() > 1e-3
    assert off(change(transformer), right) < 0.05


def test_quantised_weights_are_saved_as_any(transformer, tmp_path):
    quantise(transformer, "nf4")
    save_model(transformer, str(tmp_path / "weights.safetensors"))
    other = copy.deepcopy(transformer)
    for weight in other.parameters():
        weight.zero_()
    load_model(other, str(tmp_path / "weights.safetensors"))
    assert torch.equal(other(*inputs())[0], transformer(*inputs())[0])


def test_a_change_of_dtype_leaves_quantised_weights(transformer):
    quantise(transformer, "int8")
    transformer.bfloat16()
    assert transformer.transformer_blocks[0].attn.to_qkv.weight.dtype == torch.int8
    assert transformer(*inputs(torch.bfloat16))[0].dtype == torch.bfloat16


def test_layers_are_quantised_on_the_device_and_stay_there(transformer):
    quantise(transformer, "int8", "meta")
    assert transformer.transformer_blocks[0].attn.to_qkv.weight.is_meta
    assert not transformer.proj_out.weight.is_meta
