"""LoRAs change each row of a batch as peft changes a model: several at once, different ones for different rows."""

from __future__ import annotations

import copy
import gc
import itertools
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from limner.core.errors import BadArgument, OutOfMemory
from limner.diffusion.lora.adapters import Adapters
from limner.diffusion.lora.file import lora_of, read_lora
from limner.diffusion.lora.lora import Lora, LowRank, ScaledLora
from limner.diffusion.quantise import quantise
from limner.diffusion.sd3.transformer import Transformer
from limner.diffusion.tiny import sd3_pipeline

EVERYWHERE = [
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("net.0.proj", "net.2", "norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out"),
    *("context_embedder", "linear_1", "linear_2"),
]


@pytest.fixture(scope="module")
def published() -> Any:
    """diffusers' own transformer; tests take copies."""
    return sd3_pipeline().transformer.eval()


@pytest.fixture(scope="module", params=["separate", "fused"])
def transformer(request: pytest.FixtureRequest, published: Any) -> Transformer:
    ours = Transformer.from_config(published.config)
    ours.load_state_dict(published.state_dict())
    if request.param == "fused":
        ours.fuse()
    return ours.eval()


@pytest.fixture(scope="module")
def files(published: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three LoRAs as diffusers saves them: of everything, of attention alone, and of another rank and alpha."""
    folder, paths = tmp_path_factory.mktemp("loras"), []
    configurations = [
        LoraConfig(r=4, lora_alpha=4, target_modules=EVERYWHERE),
        LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_v", "add_k_proj"], use_rslora=True),
        LoraConfig(r=8, lora_alpha=4, target_modules=EVERYWHERE, alpha_pattern={"attn.to_k": 16}),
    ]
    for index, configuration in enumerate(configurations):
        model = copy.deepcopy(published)
        model.add_adapter(configuration, adapter_name="default")
        generator = torch.Generator().manual_seed(index)
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.data = torch.randn(weight.shape, generator=generator) * 0.2
        model.save_lora_adapter(folder, adapter_name="default", weight_name=f"{index}.safetensors")
        paths.append(folder / f"{index}.safetensors")
    return paths


@pytest.fixture(scope="module")
def loras(files: Sequence[Path]) -> list[Lora]:
    return [read_lora(path) for path in files]


def inputs(count: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return (
        torch.randn(count, 16, 8, 8, generator=generator),
        torch.linspace(900, 100, count),
        torch.randn(count, 10, 64, generator=generator),
        torch.randn(count, 64, generator=generator),
    )


@torch.no_grad()
def ours(transformer: Transformer, rows: Sequence[Sequence[ScaledLora]], adapters: Adapters | None = None) -> Tensor:
    adapters = adapters or Adapters({"transformer": transformer})
    with adapters.applied("transformer", rows):
        return transformer(*inputs(len(rows)))[0]


@torch.no_grad()
def theirs(published: Any, files: Sequence[Path], scales: Sequence[float], count: int = 4) -> Tensor:
    model = copy.deepcopy(published)
    for path in files:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several are what is wanted
            model.load_lora_adapter(path.parent, weight_name=path.name, adapter_name=path.stem, prefix=None)
    model.set_adapters([path.stem for path in files], weights=list(scales))
    latents, timestep, text, pooled = inputs(count)
    return model.eval()(latents, encoder_hidden_states=text, pooled_projections=pooled, timestep=timestep).sample


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_lora_changes_a_model_as_peft_does(
    index: int, transformer: Transformer, published: Any, files: Sequence[Path], loras: Sequence[Lora]
) -> None:
    expected = theirs(published, [files[index]], [1.0])
    assert (ours(transformer, [(ScaledLora(loras[index]),)] * 4) - expected).abs().max() < 1e-5
    assert (ours(transformer, [()] * 4) - expected).abs().max() > 1e-3


def test_several_are_added_with_their_scales_as_peft_does(
    transformer: Transformer, published: Any, files: Sequence[Path], loras: Sequence[Lora]
) -> None:
    scales = [0.5, -1.25, 2.0]
    expected = theirs(published, files, scales)
    rows = [tuple(map(ScaledLora, loras, scales))] * 4
    assert (ours(transformer, rows) - expected).abs().max() < 1e-5


def test_rows_of_a_batch_are_as_each_alone(transformer: Transformer, loras: Sequence[Lora]) -> None:
    one, two = ScaledLora(loras[0]), ScaledLora(loras[1], 0.5)
    rows = [(one,), (), (one, two), (one, two), (ScaledLora(loras[2], 1.5),), (), (two,), (ScaledLora(loras[0], 2),)]
    together = ours(transformer, rows)
    for index, row in enumerate(rows):
        alone = ours(transformer, [row] * len(rows))[index]
        assert (together[index] - alone).abs().max() < 1e-5
    for first, second in itertools.combinations(range(len(rows)), 2):
        if rows[first] != rows[second]:
            lone = [ours(transformer, [rows[row]] * len(rows))[0] for row in (first, second)]
            assert (lone[0] - lone[1]).abs().max() > 1e-4


def test_rows_without_loras_stay_bit_for_bit(transformer: Transformer, loras: Sequence[Lora]) -> None:
    plain = ours(transformer, [()] * 4)
    mixed = ours(transformer, [(), (ScaledLora(loras[0]),), (), (ScaledLora(loras[0], 0.0),)])
    for row in (0, 2, 3):
        assert torch.equal(mixed[row], plain[row])
    assert torch.equal(ours(transformer, [()] * 4), plain)


def test_hooks_are_gone_afterwards_also_when_the_model_failed(transformer: Transformer, loras: Sequence[Lora]) -> None:
    adapters = Adapters({"transformer": transformer})

    def hooked() -> bool:
        return any(module._forward_hooks for module in transformer.modules())

    def fail() -> None:
        with adapters.applied("transformer", [(ScaledLora(loras[0]),)]):
            assert hooked()
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        fail()
    assert not hooked()


def test_a_batch_of_another_size_than_said_is_an_error(transformer: Transformer, loras: Sequence[Lora]) -> None:
    adapters = Adapters({"transformer": transformer})
    with (
        adapters.applied("transformer", [(ScaledLora(loras[0]),)] * 3),
        torch.no_grad(),
        pytest.raises(ValueError, match="batch of 4 rows where LoRAs were given for 3"),
    ):
        transformer(*inputs(4))


def test_other_threads_see_the_model_as_it_is(transformer: Transformer, loras: Sequence[Lora]) -> None:
    plain = ours(transformer, [()] * 4)
    seen: list[Tensor] = []
    adapters = Adapters({"transformer": transformer})
    with adapters.applied("transformer", [(ScaledLora(loras[0]),)] * 4):
        thread = threading.Thread(target=lambda: seen.append(ours(transformer, [()] * 4)))
        thread.start()
        thread.join()
    assert torch.equal(seen[0], plain)


def test_threads_apply_loras_of_their_own_at_the_same_time(transformer: Transformer, loras: Sequence[Lora]) -> None:
    adapters = Adapters({"transformer": transformer})
    rows = [[(ScaledLora(lora),)] * 2 for lora in loras]
    expected = [ours(transformer, each) for each in rows]
    faults: list[float] = []

    def work(index: int) -> None:
        for _ in range(20):
            faults.append(float((ours(transformer, rows[index], adapters) - expected[index]).abs().max()))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(faults) == 60
    assert max(faults) < 1e-5


def test_what_was_compiled_runs_with_loras_too(transformer: Transformer, loras: Sequence[Lora]) -> None:
    compiled = copy.deepcopy(transformer)
    runs: list[None] = []

    def backend(graph: Any, example: Any) -> Any:
        runs.append(None)
        return graph

    compiled.transformer_blocks[0].compile(backend=backend)  # one is enough, and takes a second
    plain = ours(compiled, [()] * 2)
    assert (plain - ours(transformer, [()] * 2)).abs().max() < 1e-5
    compiled_once = len(runs)
    for lora in loras:
        rows = [(ScaledLora(lora),), ()]
        assert (ours(compiled, rows) - ours(transformer, rows)).abs().max() < 1e-5
    assert torch.equal(ours(compiled, [()] * 2), plain)
    assert len(runs) == compiled_once > 0


def test_low_rank_weights_follow_the_layers_inputs(transformer: Transformer, loras: Sequence[Lora]) -> None:
    half = copy.deepcopy(transformer).to(torch.bfloat16)
    adapters = Adapters({"transformer": half})
    adapters.attach(loras[0])
    rows = [(ScaledLora(loras[0]),), ()]
    with torch.no_grad(), adapters.applied("transformer", rows):
        changed = half(*(each.bfloat16() for each in inputs(2)))[0]
    assert changed.dtype == torch.bfloat16
    expected = ours(transformer, rows)
    assert (changed - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantised_layers_are_changed_alike(kind: Any, transformer: Transformer, loras: Sequence[Lora]) -> None:
    quantised = copy.deepcopy(transformer)
    quantise(quantised, kind)
    rows = [(ScaledLora(loras[0]),), ()]
    change = ours(transformer, rows) - ours(transformer, [()] * 2)
    quantised_change = ours(quantised, rows) - ours(quantised, [()] * 2)
    assert (quantised_change[0] - change[0]).norm() < (0.02 if kind == "int8" else 0.2) * change[0].norm()
    assert (quantised_change[1] == 0).all()


def test_what_is_kept_of_a_lora_goes_with_it(transformer: Transformer, files: Sequence[Path]) -> None:
    adapters = Adapters({"transformer": transformer})
    lora = read_lora(files[0])
    adapters.attach(lora)
    assert len(adapters._additions) == 1
    del lora
    gc.collect()
    assert len(adapters._additions) == 0


def test_loras_for_other_models_are_refused_with_the_layers_named(transformer: Transformer) -> None:
    adapters = Adapters({"transformer": transformer, "text_encoder": None})
    fitting = LowRank(torch.zeros(2, 64), torch.zeros(64, 2), 1.0)
    layers = {f"transformer_blocks.{index}.attn.to_q": fitting for index in range(12)}
    with pytest.raises(BadArgument) as caught:
        adapters.attach(Lora("larger", {"transformer": layers}))
    assert "LoRA 'larger' was made for another model: 8 of its 12 layers don't fit" in caught.value.message
    assert "transformer.transformer_blocks.4.attn.to_q (not there)" in caught.value.message
    assert "and 3 more" in caught.value.message
    wide = LowRank(torch.zeros(2, 96), torch.zeros(96, 2), 1.0)
    layers = {"transformer_blocks.0.attn.to_q": wide, "transformer_blocks.0.attn.to_k": fitting}
    with pytest.raises(BadArgument, match=r"1 of its 2 .*attn.to_q \(96 to 96 channels, and 64 to 64 here\)"):
        adapters.attach(Lora("wider", {"transformer": layers}))
    for path in ("transformer_blocks.0", "transformer_blocks.0.attn.norm_q", "pos_embed.proj", ""):
        with pytest.raises(BadArgument, match="not there"):
            adapters.attach(Lora("odd", {"transformer": {path: fitting}}))


def test_a_device_that_is_full_says_so(
    transformer: Transformer, files: Sequence[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters, lora = Adapters({"transformer": transformer}), read_lora(files[0])

    def full(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", full)
        with pytest.raises(OutOfMemory, match="not enough memory for LoRA '0', 0 MiB as saved"):
            adapters.attach(lora)
    adapters.attach(lora)


def test_components_that_are_left_out_are_left_alone(transformer: Transformer) -> None:
    adapters = Adapters({"transformer": transformer, "text_encoder_3": None})
    lora = lora_of(
        {
            "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight": torch.ones(1, 7),
            "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight": torch.ones(9, 1),
        },
        "t5",
    )
    adapters.attach(lora)
    assert adapters.of_text([ScaledLora(lora)]) == ()
    assert torch.equal(ours(transformer, [(ScaledLora(lora),)] * 2, adapters), ours(transformer, [()] * 2))
