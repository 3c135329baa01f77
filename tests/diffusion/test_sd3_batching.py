"""Requests among others give what they give alone, and cost what they take."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from limner.core.errors import BadArgument, UnknownModel
from limner.diffusion.lora.store import LoraStore
from limner.diffusion.model import Model, Request
from limner.diffusion.parameters import LoraUse, Parameters, SkipLayers, StepCache
from limner.diffusion.sd3.model import Sd3Model
from limner.diffusion.sd3.row import Bucket
from tests.diffusion.sd3 import PLAIN, alone, finish, latents, load_model, load_pipeline, photograph, start, with_


def write_lora(path: Path, seed: int, *, width: int = 64) -> None:
    """Write a LoRA of rank 2 that changes two layers of the tiny transformer, and a text encoder."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer, size in [
        ("transformer.transformer_blocks.1.attn.to_q", width),
        ("transformer.transformer_blocks.2.attn.to_out.0", width),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", 32),
    ]:
        tensors[f"{layer}.lora_A.weight"] = torch.randn(2, size, generator=generator)
        tensors[f"{layer}.lora_B.weight"] = torch.randn(size, 2, generator=generator)
    save_file(tensors, path)


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> LoraStore:
    folder = tmp_path_factory.mktemp("loras")
    write_lora(folder / "ink.safetensors", 1)
    write_lora(folder / "clay.safetensors", 2)
    write_lora(folder / "other.safetensors", 3, width=48)
    return LoraStore(folder)


@pytest.fixture(scope="module")
def model(tiny_sd3: Path, loras: LoraStore) -> Sd3Model:
    loaded = load_model(tiny_sd3, load_pipeline(tiny_sd3), loras=loras)
    loaded._capacity.assume(Bucket(PLAIN.width, PLAIN.height, PLAIN.text_length), 32)
    return loaded


def edited() -> dict[str, Any]:
    mask = np.zeros((48, 64), np.float32)
    mask[8:32, 16:40] = 1
    return {"image": photograph(), "mask": mask}


SKIP = SkipLayers(scale=2.0, layers=(1, 2), start=0.05, stop=0.5)
INK, CLAY = LoraUse("ink", 0.8), LoraUse("clay", -0.5)

MIXED: list[tuple[Parameters, dict[str, Any]]] = [
    (with_(step_count=4, sampler="turbo", guidance_scale=1.0, seed=1), {}),
    (with_(step_count=28, sampler="euler", guidance_scale=5.0, seed=2, skip_layers=SKIP), {}),
    (with_(step_count=50, sampler="dpmpp-2m", guidance_scale=3.0, seed=3, loras=(INK,)), {}),
    (with_(step_count=10, sampler="heun", seed=4, prompt="a small cat", loras=(CLAY, INK)), {}),
    (with_(step_count=20, seed=5, step_cache=StepCache(interval=3, order=1, warm_up=2)), {}),
    (with_(step_count=18, seed=6, step_cache=StepCache(), skip_layers=SKIP, guidance_scale=2.0), {}),
    (with_(step_count=12, strength=0.5, seed=7, sampler="dpmpp-2m"), {"image": photograph()}),
    (with_(step_count=9, seed=8, sampler="heun", skip_layers=SkipLayers(layers=(3,), start=0, stop=1)), edited()),
    (with_(step_count=30, guidance_scale=1.0, seed=9, prompt="the sky", loras=(CLAY,)), edited()),
]


def test_a_mixed_batch_gives_what_each_request_gives_alone(model: Sd3Model) -> None:
    expected = [alone(model, parameters, **given) for parameters, given in MIXED]
    rows = [start(model, parameters, **given) for parameters, given in MIXED]
    dropped = start(model, with_(step_count=40, seed=77))
    going, waiting, most = [dropped, *rows[:3]], rows[3:], 0
    while going:
        assert not any(model.advance(going))
        most = max(most, len(going))
        if waiting:
            going.append(waiting.pop(0))  # joins in the middle of the others
        if dropped in going and dropped.step == 7:
            going.remove(dropped)
            dropped.close()
        going = [row for row in going if row.step < row.step_count]
    assert most >= 8
    for row, one, (parameters, _) in zip(rows, expected, MIXED, strict=True):
        torch.testing.assert_close(latents(row), one, atol=1e-4, rtol=0, msg=lambda text, p=parameters: f"{p}: {text}")


def test_runs_are_no_larger_than_the_cap_and_give_the_same(model: Sd3Model, monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = model._batch._transformer
    sizes: list[int] = []
    monkeypatch.setattr(transformer, "forward", _counting(transformer.forward, sizes))
    asked = [with_(seed=seed) for seed in range(5)]
    rows = [start(model, each) for each in asked]
    bucket: Any = rows[0].bucket
    model._capacity.lower(bucket, 4)
    try:
        finish(model, rows)
        assert sizes == [4, 4, 2] * 4
    finally:
        model._capacity._lowered.clear()
    for each, row in zip(asked, rows, strict=True):
        torch.testing.assert_close(latents(row), alone(model, each), atol=1e-4, rtol=0)


def _counting(forward: Any, sizes: list[int]) -> Any:
    def counted(latents: torch.Tensor, *args: Any, **options: Any) -> Any:
        sizes.append(len(latents))
        return forward(latents, *args, **options)

    return counted


def _noting(forward: Any, runs: list[None]) -> Any:
    def noted(*args: Any, **options: Any) -> Any:
        runs.append(None)
        return forward(*args, **options)

    return noted


def test_one_run_serves_all_rows_and_another_each_set_of_layers_left_out(
    model: Sd3Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer = model._batch._transformer
    sizes: list[int] = []
    monkeypatch.setattr(transformer, "forward", _counting(transformer.forward, sizes))
    skip = SkipLayers(layers=(1,), start=-1, stop=1)
    rows = [
        start(model, each)
        for each in (
            with_(guidance_scale=1.0),
            with_(),
            with_(skip_layers=skip),
            with_(skip_layers=SkipLayers(layers=(2,), start=-1, stop=1)),
            with_(skip_layers=skip),
        )
    ]
    assert not any(model.advance(rows))
    assert sizes == [9, 2, 1]


def test_steps_that_are_predicted_run_no_blocks(model: Sd3Model, monkeypatch: pytest.MonkeyPatch) -> None:
    block = model._batch._transformer.transformer_blocks[0]
    runs: list[None] = []
    monkeypatch.setattr(block, "forward", _noting(block.forward, runs))
    alone(model, with_(step_count=11, step_cache=StepCache(interval=2, order=1, warm_up=3)))
    assert len(runs) == 7  # three to warm up, and one of two of the other eight


class _Operations(TorchDispatchMode):
    """Notes the operations that torch does."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(operation.name())
        return operation(*args, **(kwargs or {}))


def test_a_step_waits_for_nothing_and_sends_nothing_to_the_device(
    model: Sd3Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [start(model, parameters, **given) for parameters, given in MIXED]
    monkeypatch.setattr(model._watch, "see", lambda rows, latents: None)  # its own tests tell that it waits later
    model.advance(rows)
    with _Operations() as done:
        for _ in range(3):
            model.advance(rows)
    assert "aten::linear" in done.names
    waits = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::equal"}
    sends = {"aten::lift_fresh"}  # makes a tensor of the host's numbers
    assert not done.names & (waits | sends)


def test_rows_tell_what_they_take(model: Sd3Model) -> None:
    guided, plain = start(model, with_()), start(model, with_(guidance_scale=1.0))
    assert (guided.size, plain.size) == (2, 1)
    assert guided.cost == 2 * plain.cost == 2 * (4 * 3 + 77 + 32)
    assert guided.bucket == plain.bucket != start(model, with_(width=48)).bucket
    cached = start(model, with_(step_count=6, step_cache=StepCache(interval=2, order=1, warm_up=1)))
    costs = []
    while cached.step < cached.step_count:
        costs.append(cached.cost)
        model.advance([cached])
    assert min(costs) < costs[0] / 10
    assert costs.count(costs[0]) == 3


def test_heun_takes_two_evaluations_a_step(model: Sd3Model) -> None:
    row = start(model, with_(sampler="heun", step_count=3))
    steps = []
    for _ in range(5):
        model.advance([row])
        steps.append(row.step)
    assert steps == [0, 1, 1, 2, 3]
    assert row.step_count == 3


def test_a_shorter_run_on_a_picture_has_fewer_steps(model: Sd3Model) -> None:
    assert start(model, with_(step_count=10, strength=0.25), image=photograph()).step_count == 3


def test_loras_that_are_not_there_or_do_not_fit_are_refused(tiny_sd3: Path, model: Sd3Model) -> None:
    with pytest.raises(UnknownModel, match="clay, ink"):
        start(model, with_(loras=(LoraUse("oil"),)))
    with pytest.raises(BadArgument, match="other"):
        start(model, with_(loras=(LoraUse("other"),)))
    without = load_model(tiny_sd3, load_pipeline(tiny_sd3))
    with pytest.raises(UnknownModel, match="ink"):
        start(without, with_(loras=(INK,)))


def test_a_lora_changes_the_picture(model: Sd3Model) -> None:
    plain, ink, clay = (alone(model, with_(loras=loras)) for loras in ((), (INK,), (CLAY,)))
    assert (plain - ink).abs().max() > 1e-2
    assert (clay - ink).abs().max() > 1e-2


def test_prepare_asks_between_its_parts_whether_the_call_is_over(model: Sd3Model) -> None:
    asked = []

    def check() -> None:
        asked.append(None)
        if len(asked) == 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        model.prepare(Request(with_(image_count=2), image=photograph()), check)


def test_nothing_of_a_closed_row_stays(model: Sd3Model) -> None:
    row: Any = start(model, with_(step_cache=StepCache()), **edited())
    neighbour = start(model, PLAIN)
    for _ in range(3):
        model.advance([row, neighbour])
    of_row = [weakref.ref(each) for each in (row.state.given.image, row.state.given.noise, row.state)]
    paint = model.preview(row)
    row.close()
    row.close()
    assert paint is not None
    paint()  # what was taken hold of can still be painted
    del paint
    gc.collect()
    assert [each() for each in of_row] == [None] * 3
    assert model.preview(row) is None


def test_it_is_what_the_engine_asks_for(model: Sd3Model) -> None:
    as_the_engine_sees_it: Model = model
    assert as_the_engine_sees_it.most_at_once(start(model, PLAIN).bucket) >= 2
