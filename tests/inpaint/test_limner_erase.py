"""The network that ships: as the server opens it, by every engine and precision, and better than fills without weights.

Nothing here is skipped where the weights are missing: without them Limner is not whole."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.quality import Case, cases, score
from limner.core.errors import ModelNotInstalled
from limner.core.picture import Picture
from limner.core.placement import Placement
from limner.engine.catalog import Catalog, State
from limner.engine.machine import Machine, this_machine
from limner.engine.placement import LARGEST_DIFFERENCE
from limner.engine.store import Store
from limner.export.photographs import CALIBRATION, HELD_OUT, examples
from limner.export.precisions import difference, fills
from limner.inpaint.config import InpaintConfig
from limner.inpaint.filler import Filler, Options, Part
from limner.inpaint.models import MODELS, limner_erase
from limner.inpaint.strategy import Strategy, inpaint, plan
from limner.runtime.job import Job

GAIN_DB = 1.0  # by which it has to beat the classic fills, in the holes of photographs that it never saw


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("empty") / "models")


@pytest.fixture(scope="module")
def opened(store: Store) -> Callable[[str, str], Filler]:
    """`opened("openvino", "bf16")`, once for each."""

    @functools.cache
    def opened(engine: str, precision: str) -> Filler:
        return limner_erase.load(Placement("cpu", precision, engine, "a test", 2), store)

    return opened


def never(share: float) -> None:
    """The check of calls that are never over."""


def part(example: dict[str, NDArray[np.float32]]) -> Part:
    pixels = np.rint(example["image"][0].transpose(1, 2, 0) * 255).astype(np.uint8)
    return Part(np.ascontiguousarray(pixels), example["mask"][0, 0] > 0, Options())


PARTS = [part(example) for example in examples((*HELD_OUT, *CALIBRATION), 200)]


def catalog(store: Store, default: str = "lama", engines: frozenset[str] | None = None) -> Catalog:
    machine = this_machine() if engines is None else Machine(engines)
    return Catalog(
        MODELS, defaults={"inpaint": default}, server="inpaint", config=InpaintConfig(), store=store, machine=machine
    )


def test_it_is_installed_on_a_new_machine_and_has_its_digest(store: Store) -> None:
    models = catalog(store)
    assert models.state("limner-erase") is State.INSTALLED
    assert models.digest("limner-erase") == limner_erase.CARD.files[0].digest.removeprefix("sha256:")
    assert len(models.digest("limner-erase")) == 64
    assert not store.root.exists()


def test_it_needs_an_engine(store: Store) -> None:
    assert catalog(store, engines=frozenset()).state("limner-erase") is State.NOT_INSTALLED


def test_it_is_loaded_in_little_time_and_memory(store: Store) -> None:
    models = catalog(store, "limner-erase")
    with models.use("limner-erase", pixels=256 * 256) as model:
        (filled,) = model.fill(PARTS[:1], never)
    assert filled.shape == PARTS[0].pixels.shape
    measured = models.measured("limner-erase")
    assert measured is not None
    assert measured.loaded_bytes < 2 * limner_erase.CARD.memory_estimate_bytes


def test_another_file_in_its_place_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "network.onnx").write_bytes(b"another one")
    monkeypatch.setattr(Store, "_place", lambda self, card, file: tmp_path / "network.onnx")
    with pytest.raises(ModelNotInstalled, match="is not the file that limner-erase was made for"):
        limner_erase.load(Placement("cpu", "fp32", "onnxruntime", "a test", 1), Store(tmp_path))


@pytest.mark.parametrize("engine", ["openvino"])
@pytest.mark.parametrize("precision", limner_erase.CARD.precisions)
def test_engines_and_precisions_agree_in_the_holes(engine: str, precision: str, store: Store) -> None:
    held_out = examples(HELD_OUT, 200)
    path = store.path(limner_erase.CARD, "network.onnx")
    exact, found = fills(path, "fp32", "onnxruntime", held_out), fills(path, precision, engine, held_out)
    assert difference(found, exact, held_out) <= (1e-4 if precision == "fp32" else LARGEST_DIFFERENCE)


@pytest.mark.parametrize("size", [(1, 2), (16, 16), (37, 61), (256, 192)])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_every_size_is_filled_and_what_the_hole_held_is_not_looked_at(
    engine: str, size: tuple[int, int], opened: Callable[[str, str], Filler]
) -> None:
    height, width = size
    random = np.random.default_rng(3)
    pixels = random.integers(0, 256, (height, width, 3), np.uint8)
    hole = np.zeros((height, width), np.bool_)
    hole[height // 3 : height // 3 + max(height // 3, 1), width // 2 : width // 2 + max(width // 3, 1)] = True
    other = np.where(hole[:, :, None], 255 - pixels, pixels)
    filler = opened(engine, "fp32")
    one, same = (filler.fill([Part(each, hole, Options())], never)[0] for each in (pixels, other))
    assert one.shape == pixels.shape
    assert np.array_equal(one[hole], same[hole])


def test_parts_are_filled_alike_together_and_alone(opened: Callable[[str, str], Filler]) -> None:
    filler = opened("openvino", "fp32")
    together = filler.fill(PARTS[:4], never)
    for each, filled in zip(PARTS[:4], together, strict=True):
        (alone,) = filler.fill([each], never)
        assert np.abs(alone.astype(int) - filled).max() <= 1


def test_its_fills_are_nearer_to_the_truth_than_the_classic_ones(
    store: Store, opened: Callable[[str, str], Filler]
) -> None:
    native = Placement("cpu", "native", "opencv", "a test")
    fillers = {
        "limner-erase": opened("openvino", "fp32"),
        **{name: MODELS[name].load(native, store) for name in ("telea", "navier-stokes")},
    }
    psnr: dict[str, list[float]] = {name: [] for name in fillers}
    ssim: dict[str, list[float]] = {name: [] for name in fillers}
    for case in cases(quick=False):
        for name, filler in fillers.items():
            found = score(case, served(case, filler, name), 0.0)
            psnr[name].append(found.psnr)
            ssim[name].append(found.ssim)
    ours, others = fmean(psnr.pop("limner-erase")), {name: fmean(values) for name, values in psnr.items()}
    assert ours >= max(others.values()) + GAIN_DB, f"{ours:.2f} dB against {others}"
    similar, others = fmean(ssim.pop("limner-erase")), {name: fmean(values) for name, values in ssim.items()}
    assert similar > max(others.values()), f"{similar:.3f} against {others}"


def served(case: Case, filler: Filler, name: str) -> NDArray[np.uint8]:
    """Return the photograph with its hole filled as the server does it."""
    mask = np.where(case.hole, np.uint8(255), np.uint8(0))
    window = MODELS[name].window(Options())
    job = Job(seed=0, previews=False, deadline=None, publish=lambda field, message: None)
    filled = inpaint(Picture(case.picture), mask, plan(mask, Strategy.AUTO, window), filler, window, Options(), job)
    return np.asarray(filled.pixels, np.uint8)
