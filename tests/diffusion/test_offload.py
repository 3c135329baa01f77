"""The meta device stands for one with a memory of its own: what is called there is seen to be there, and computes
nothing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accelerate import init_empty_weights
from diffusers.hooks.group_offloading import ModuleGroup
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from limner.diffusion.lora.adapters import Adapters
from limner.diffusion.lora.lora import Lora, LowRank, ScaledLora
from limner.diffusion.offload import by_blocks, on_demand
from limner.diffusion.quantise import quantise
from limner.diffusion.sd3.transformer import Transformer

META, CPU = torch.device("meta"), torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def t5() -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)).eval()


@pytest.fixture
def transformer(tiny_sd3) -> Transformer:
    found = Transformer.from_pretrained(tiny_sd3, subfolder="transformer").eval()
    found.fuse()
    return found


def inputs(rows: int = 2) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(3)
    shapes = [(rows, 16, 8, 8), (rows, 20, 64), (rows, 64)]
    latents, text, pooled = (torch.randn(shape, generator=source) for shape in shapes)
    return [latents, torch.full((rows,), 500.0), text, pooled]


def devices(module: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}


def test_a_text_encoder_is_on_the_device_while_it_is_called(t5):
    before = {name: weight.clone() for name, weight in t5.named_parameters()}
    seen, given = [], []
    t5.encoder.embed_tokens.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].device.type))
    t5.encoder.block[1].register_forward_hook(lambda *_: seen.append(devices(t5)))
    on_demand(t5, META)
    output = t5(input_ids=torch.arange(7)[None])
    assert output.last_hidden_state.device.type == "meta"
    assert seen == [{"meta"}]
    assert given == ["meta"]
    assert devices(t5) == {"cpu"}
    assert t5.device == CPU
    for name, weight in t5.named_parameters():
        assert torch.equal(weight, before[name]), name


def test_a_text_encoder_keeps_its_weights_while_another_model_is_loaded(t5):
    expected = t5(input_ids=torch.arange(7)[None]).last_hidden_state
    on_demand(t5, CPU)
    with init_empty_weights():  # as loaders have it, for all threads
        output = t5(input_ids=torch.arange(7)[None])
    assert torch.equal(output.last_hidden_state, expected)
    assert devices(t5) == {"cpu"}


@pytest.mark.parametrize("kind", ["none", "int8"])
def test_what_a_text_encoder_reads_is_the_same(t5, kind):
    quantise(t5, kind)
    tokens = torch.arange(7)[None]
    right = t5(tokens).last_hidden_state
    on_demand(t5, CPU)
    assert torch.equal(t5(input_ids=tokens).last_hidden_state, right)


def test_clip_s_buffers_move_too():
    clip = CLIPTextModelWithProjection(
        CLIPTextConfig(hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, vocab_size=50)
    ).eval()
    on_demand(clip, META)
    assert clip(torch.arange(9)[None], output_hidden_states=True).hidden_states[-2].device.type == "meta"
    assert devices(clip) == {"cpu"}


def test_a_call_that_fails_leaves_the_weights_in_main_memory(t5):
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    hook = t5.encoder.block[0].register_forward_hook(fail)
    on_demand(t5, META)
    with pytest.raises(RuntimeError, match="out of memory"):
        t5(torch.arange(7)[None])
    assert devices(t5) == {"cpu"}
    hook.remove()
    t5(torch.arange(7)[None])  # and the next one isn't kept waiting


def test_one_call_at_a_time(t5):
    at_once, most, guard = 0, 0, threading.Lock()

    def enter(*_: object) -> None:
        nonlocal at_once, most
        with guard:
            at_once += 1
            most = max(most, at_once)

    def leave(*_: object) -> None:
        nonlocal at_once
        threading.Event().wait(0.005)
        with guard:
            at_once -= 1

    t5.encoder.block[0].register_forward_pre_hook(enter)
    t5.encoder.block[1].register_forward_hook(leave)
    on_demand(t5, META)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: t5(torch.arange(7)[None]), range(12)))
    assert most == 1
    assert devices(t5) == {"cpu"}


@pytest.mark.parametrize("kind", ["none", "int8"])
def test_blocks_one_by_one_give_the_same(transformer, kind):
    quantise(transformer, kind)
    whole, features = transformer(*inputs())
    skipped, _ = transformer(*inputs(), skip_layers=(1, 2))
    predicted, _ = transformer(*inputs(), features=features)
    by_blocks(transformer, CPU)
    for _ in range(2):
        assert torch.equal(transformer(*inputs())[0], whole)
        assert torch.equal(transformer(*inputs(), skip_layers=(1, 2))[0], skipped)
        assert torch.equal(transformer(*inputs(), features=features)[0], predicted)


def test_each_block_comes_and_goes_in_its_turn(transformer, monkeypatch):
    blocks = list(transformer.transformer_blocks)
    story: list[tuple[str, int]] = []

    def told(what: str):
        def tell(group: ModuleGroup) -> None:
            story.extend((what, blocks.index(module)) for module in group.modules if module in blocks)

        return tell

    by_blocks(transformer, CPU)
    monkeypatch.setattr(ModuleGroup, "onload_", told("comes"))
    monkeypatch.setattr(ModuleGroup, "offload_", told("goes"))
    transformer(*inputs(), skip_layers=(2,))
    assert story == [(what, index) for index in (0, 1, 3) for what in ("comes", "goes")]


def test_loras_work_on_blocks_that_come_and_go(transformer):
    source = torch.Generator().manual_seed(1)
    low_rank = LowRank(torch.randn(4, 64, generator=source), torch.randn(64, 4, generator=source), scale=1.0)
    lora = Lora("style", {"transformer": {"transformer_blocks.1.attn.to_q": low_rank}})

    def changed() -> torch.Tensor:
        with Adapters({"transformer": transformer}).applied("transformer", [(ScaledLora(lora),), ()]):
            return transformer(*inputs())[0]

    right = changed()
    assert not torch.equal(right, transformer(*inputs())[0])
    by_blocks(transformer, CPU)
    assert torch.equal(changed(), right)
