"""What goes wrong with one row stays with it, and missing memory makes runs smaller before it makes them fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from limner.core.errors import BadArgument, OutOfMemory
from limner.diffusion.memory import is_out_of_memory
from limner.diffusion.parameters import StepCache
from limner.diffusion.sd3.model import Sd3Model
from limner.diffusion.sd3.watch import Watch
from tests.diffusion.sd3 import PLAIN, alone, finish, latents, load_model, load_pipeline, photograph, start, with_


@pytest.fixture(scope="module")
def pipeline(tiny_sd3: Path) -> Any:
    return load_pipeline(tiny_sd3)


@pytest.fixture
def model(tiny_sd3: Path, pipeline: Any) -> Sd3Model:
    return load_model(tiny_sd3, pipeline)


class Memory:
    """Stands before a function, and lets so many rows pass."""

    def __init__(self, function: Any, most: int) -> None:
        self.function = function
        self.most = most
        self.sizes: list[int] = []

    def __call__(self, batch: torch.Tensor, *args: Any, **options: Any) -> Any:
        self.sizes.append(len(batch))
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return self.function(batch, *args, **options)


def limited(model: Sd3Model, monkeypatch: pytest.MonkeyPatch, most: int) -> Memory:
    transformer = model._batch._transformer
    memory = Memory(transformer.forward, most)
    monkeypatch.setattr(transformer, "forward", memory)
    return memory


def test_without_memory_for_all_rows_runs_become_smaller_and_stay_so(
    model: Sd3Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [with_(seed=seed) for seed in range(4)]
    expected = [alone(model, each) for each in asked]
    rows = [start(model, each) for each in asked]
    before = model.most_at_once(rows[0].bucket)
    memory = limited(model, monkeypatch, 3)
    assert not any(model.advance(rows))
    assert memory.sizes == [8, 4, 2, 2, 2, 2]
    memory.sizes.clear()
    finish(model, rows)
    assert set(memory.sizes) == {2}
    assert model.most_at_once(rows[0].bucket) == 2 < before
    for row, one in zip(rows, expected, strict=True):
        torch.testing.assert_close(latents(row), one, atol=1e-4, rtol=0)


def test_a_row_with_guidance_goes_on_in_two_runs(model: Sd3Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone(model, PLAIN)
    memory = limited(model, monkeypatch, 1)
    torch.testing.assert_close(alone(model, PLAIN), expected, atol=1e-4, rtol=0)
    assert memory.sizes[:3] == [2, 1, 1]


def test_a_row_that_does_not_run_alone_is_refused_and_the_model_goes_on(
    model: Sd3Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = start(model, with_(width=128)), start(model, PLAIN)
    with monkeypatch.context() as patched:
        limited(model, patched, 0)
        (error,) = model.advance([large])
    assert isinstance(error, OutOfMemory)
    assert "128 × 48" in error.message
    finish(model, [small])
    assert model.decode(small).shape == (48, 64, 3)


def test_faults_that_are_not_memory_change_no_row(model: Sd3Model, monkeypatch: pytest.MonkeyPatch) -> None:
    row: Any = start(model, PLAIN)
    before = latents(row).clone()
    with monkeypatch.context() as patched:
        patched.setattr(model._batch._transformer, "forward", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.advance([row])
    torch.testing.assert_close(latents(row), before, atol=0, rtol=0)
    assert (row.step, row.evaluation) == (0, 0)
    torch.testing.assert_close(latents(_finished(model, row)), alone(model, PLAIN), atol=0, rtol=0)


def _finished(model: Sd3Model, row: Any) -> Any:
    finish(model, [row])
    return row


def test_a_row_without_numbers_ends_alone_and_says_at_which_step(model: Sd3Model) -> None:
    expected = alone(model, PLAIN)
    bad: Any = start(model, with_(seed=2))
    good = start(model, PLAIN)
    assert model.advance([bad, good]) == [None, None]
    bad.state.latents = torch.full_like(bad.state.latents, float("nan"))
    error, nothing = model.advance([bad, good])
    assert nothing is None
    assert isinstance(error, BadArgument)
    assert "step 2 of 4 gave values that are no numbers" in error.message
    assert "lower them, or set precision" in error.message
    assert model.advance([bad, good]) == [error, None]  # it is not run any more
    assert bad.step == 2
    finish(model, [good])
    torch.testing.assert_close(latents(good), expected, atol=1e-4, rtol=0)
    with pytest.raises(BadArgument, match="step 2 of 4"):
        model.decode(bad)


def test_a_fault_in_the_last_steps_is_found_when_the_picture_is_made(model: Sd3Model) -> None:
    row: Any = start(model, PLAIN)
    finish(model, [row])
    row.state.latents = torch.full_like(row.state.latents, float("inf"))
    with pytest.raises(BadArgument, match="step 4 of 4"):
        model.decode(row)


class Device:
    """Stands in for a CUDA device: what was sent is done when somebody waits for it."""

    def __init__(self) -> None:
        self.waited = 0

    def __call__(self) -> Device:
        return self

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        self.waited += 1


def test_on_a_gpu_faults_are_told_a_step_later_and_the_host_stays_near(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setattr(torch.cuda, "Event", device)
    watch = Watch(torch.device("cuda"))
    row: Any = _Row()
    for step, value in enumerate([1.0, float("nan"), float("nan"), float("nan")], start=1):
        watch.catch_up()
        row.step = step
        watch.see([row], torch.full((1, 16, 4, 4), value))
        assert device.waited == max(step - 2, 0)
        assert (row.fault is not None) == (step == 4)  # told before step 4, of step 2
    assert "step 2 of 9" in str(row.fault)


class _Row:
    def __init__(self) -> None:
        self.step = 0
        self.step_count = 9
        self.fault: Exception | None = None


def test_pictures_are_made_in_tiles_when_memory_is_not_enough(model: Sd3Model, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = model._autoencoder._vae
    row = start(model, PLAIN)
    finish(model, [row])
    whole = model.decode(row)
    decode, tilings = vae.decode, []

    def poor(values: torch.Tensor) -> Any:
        tilings.append(vae.use_tiling)
        if not vae.use_tiling:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
        return decode(values)

    monkeypatch.setattr(vae, "decode", poor)
    assert (model.decode(row) == whole).all()  # one tile is enough for so small a picture
    assert tilings == [False, True]


def test_pictures_that_do_not_even_fit_in_tiles_are_refused(model: Sd3Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def poorer(*args: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(model._autoencoder._vae, "encode", poorer)
    with pytest.raises(OutOfMemory, match="ask for a smaller picture"):
        start(model, PLAIN, image=photograph())


def test_what_counts_as_missing_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("shapes don't match"))


CACHED = with_(step_count=6, step_cache=StepCache(interval=2, warm_up=1))


def test_runs_that_become_smaller_leave_predictions_as_they_were(
    model: Sd3Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [CACHED, replace(CACHED, seed=8)]
    expected = [alone(model, each) for each in asked]
    rows = [start(model, each) for each in asked]
    assert not any(model.advance(rows))
    memory = limited(model, monkeypatch, 1)
    finish(model, rows)
    assert memory.sizes[:5] == [4, 2, 1, 1, 1]
    for row, one in zip(rows, expected, strict=True):
        torch.testing.assert_close(latents(row), one, atol=1e-4, rtol=0)


def test_a_row_of_which_a_part_was_too_much_ends_alone(model: Sd3Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone(model, CACHED)
    poor: Any = start(model, replace(CACHED, seed=8))
    good = start(model, CACHED)
    assert model.advance([poor, good]) == [None, None]
    run = model._batch.run

    def partly(*given: Any) -> Any:
        found = run(*given)
        found[1] = OutOfMemory("too much")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(model._batch, "run", partly)
        error, nothing = model.advance([poor, good])
    assert isinstance(error, OutOfMemory)
    assert nothing is None
    assert (poor.step, poor.evaluation) == (1, 1)
    finish(model, [good])
    torch.testing.assert_close(latents(good), expected, atol=1e-4, rtol=0)


def test_a_row_that_there_is_no_memory_to_predict_from_ends_alone(
    model: Sd3Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(model, CACHED)
    poor: Any = start(model, replace(CACHED, seed=8))
    good = start(model, CACHED)

    def fail(*given: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(poor.state.forecasts["positive"], "record", fail)
    error, nothing = model.advance([poor, good])
    assert isinstance(error, OutOfMemory)
    assert nothing is None
    finish(model, [good])
    torch.testing.assert_close(latents(good), expected, atol=1e-4, rtol=0)


def test_memory_that_runs_out_anywhere_is_told_as_such(model: Sd3Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any, **named: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    row: Any = start(model, PLAIN)
    with monkeypatch.context() as patched:
        patched.setattr(row.state, "branches", fail)
        with pytest.raises(OutOfMemory, match=r"not enough memory on cpu to take a step; .*20.00 GiB"):
            model.advance([row])
    finish(model, [row])
    monkeypatch.setattr(model._text, "_encode", fail)
    with pytest.raises(OutOfMemory, match="prepare the pictures"):
        start(model, with_(prompt="one that was not read before"))
