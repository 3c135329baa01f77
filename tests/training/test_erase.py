"""The recipe of limner-erase, on pictures made here: seconds, no photographs from outside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from limner.core.placement import Placement
from limner.engine.session import open_session
from training.erase import train as training
from training.erase.export import difference, export, halve
from training.erase.holes import draw_hole, draw_holes
from training.erase.network import ErasingLama, smooth_fill
from training.erase.pictures import Pictures, scales
from training.erase.train import Batch, draw, psnr, schedule, score, squared_error, step


@pytest.fixture
def photograph() -> NDArray[np.uint8]:
    """Slanted stripes with soft edges: what a smooth fill can't continue."""
    y, x = np.mgrid[:400, :480]
    wave = 128 + 100 * np.tanh(3 * np.sin((x + 0.6 * y) / 9))
    return np.stack([wave, 255 - wave, wave / 2], 2).astype(np.uint8)


def batch_of(photograph: NDArray[np.uint8], count: int = 4, side: int = 32) -> Batch:
    return draw(Pictures([photograph]), count, side, np.random.default_rng(0))


def small() -> ErasingLama:
    torch.manual_seed(0)
    return ErasingLama(width=8, wide=32, blocks=1)


def trained_a_little() -> ErasingLama:
    """A network whose corrections can be seen, with statistics of batch norms that aren't those of the start."""
    network = small()
    torch.nn.init.normal_(network.corrector.last.weight, std=0.1)
    network.train()
    network(torch.rand(4, 3, 32, 32), torch.ones(4, 1, 32, 32) * (torch.rand(4, 1, 32, 32) > 0.6))
    return network.eval()


# ---- holes and pictures --------------------------------------------------------------------------------------------


def test_holes_have_something_to_fill_and_leave_most_of_the_picture() -> None:
    random = np.random.default_rng(0)
    parts = [draw_hole(64, random).mean() for _ in range(300)]
    assert min(parts) > 0
    assert max(parts) < 0.4


def test_each_part_of_a_picture_has_its_hole() -> None:
    mask = draw_holes(96, 2, np.random.default_rng(0))
    assert all(mask[y : y + 48, x : x + 48].any() for y in (0, 48) for x in (0, 48))


def test_a_seed_draws_the_same_batch_again(photograph: NDArray[np.uint8]) -> None:
    first, second = batch_of(photograph), batch_of(photograph)
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.mask, second.mask)


def test_crops_come_from_every_scale_down_to_the_shortest(photograph: NDArray[np.uint8]) -> None:
    sides = [max(scale.shape[:2]) for scale in scales(photograph)]
    assert sides[0] == 480
    assert 320 <= sides[-1] < 320 * 1.35
    assert sides == sorted(sides, reverse=True)


def test_a_photograph_that_is_too_small_is_enlarged() -> None:
    tiny = np.random.default_rng(0).integers(0, 255, (40, 330, 3)).astype(np.uint8)
    assert Pictures([tiny]).draw(64, np.random.default_rng(0)).shape == (64, 64, 3)


# ---- the network ---------------------------------------------------------------------------------------------------


def test_a_smooth_fill_keeps_what_is_known_and_goes_on_with_a_ramp() -> None:
    ramp = torch.linspace(0.2, 0.8, 64).expand(1, 3, 64, 64).contiguous()
    mask = torch.zeros(1, 1, 64, 64)
    mask[:, :, 20:44, 20:44] = 1
    filled = smooth_fill(torch.where(mask > 0, torch.zeros(()), ramp), mask)
    assert torch.equal(filled * (1 - mask), ramp * (1 - mask))
    assert (filled - ramp).abs().max() < 0.03


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_with_nothing_known_or_nothing_to_fill_the_result_is_finite(value: float) -> None:
    filled = trained_a_little()(torch.full((1, 3, 32, 40), 0.5), torch.full((1, 1, 32, 40), value))
    assert torch.isfinite(filled).all()


def test_an_untrained_network_is_about_the_smooth_fill(photograph: NDArray[np.uint8]) -> None:
    batch = batch_of(photograph)
    apart = (small().eval()(*batch) - smooth_fill(*batch)).abs()
    assert apart.max() < 0.05


def test_the_network_looks_at_nothing_in_the_hole_and_changes_nothing_outside(photograph: NDArray[np.uint8]) -> None:
    image, mask = batch_of(photograph)
    network = trained_a_little()
    filled = network(image, mask)
    assert torch.equal(network(torch.where(mask > 0, torch.rand_like(image), image), mask), filled)
    assert torch.equal(filled * (1 - mask), image * (1 - mask))
    assert (filled - smooth_fill(image, mask)).abs().max() > 0.05


def test_a_fill_does_not_depend_on_what_it_is_filled_together_with(photograph: NDArray[np.uint8]) -> None:
    image, mask = batch_of(photograph)
    network = trained_a_little()
    torch.testing.assert_close(network(image, mask)[1:2], network(image[1:2], mask[1:2]), atol=1e-5, rtol=0)


# ---- training ------------------------------------------------------------------------------------------------------


def test_errors_are_those_of_the_hole() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[:, :, 2:4, 2:4] = 1
    batch = Batch(torch.zeros(1, 3, 8, 8), mask)
    filled = mask.expand(1, 3, 8, 8) * 0.1 + (1 - mask) * 0.9
    assert squared_error(filled, batch).item() == pytest.approx(0.01)
    assert psnr(filled, batch).item() == pytest.approx(20, abs=0.01)


def test_the_rate_rises_and_falls() -> None:
    assert schedule(0, 0.0) < 0.01
    assert schedule(10_000, 0.0) == pytest.approx(1)
    assert schedule(10_000, 0.5) == pytest.approx(0.515)
    assert schedule(10_000, 1.0) == pytest.approx(training.ENDS_AT)


def test_a_few_steps_on_one_batch_beat_the_smooth_fill(photograph: NDArray[np.uint8]) -> None:
    batch = batch_of(photograph)
    network = small()
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    first, *_, last = [step(network, optimiser, batch) for _ in range(40)]
    assert abs(first) < 0.05
    assert last < -0.3


def test_a_run_saves_resumes_and_keeps_the_best(
    photograph: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "ErasingLama", small)
    pictures, held_out = Pictures([photograph]), batch_of(photograph)
    for _ in range(2):
        training.train(pictures, held_out, tmp_path, 0.02, torch.device("cpu"), side=32, batch=2)
    begun, resumed = (line for line in capsys.readouterr().out.splitlines() if "parameters" in line)
    assert begun.startswith("begins at step 0")
    assert not resumed.startswith("resumed at step 0,")
    assert resumed.startswith("resumed at step")
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    network = small()
    network.load_state_dict(best["network"])
    assert score(network.eval(), held_out) == pytest.approx(best["psnr"], abs=1e-4)


def test_what_was_best_is_scored_again_since_what_is_held_out_may_change(
    photograph: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "ErasingLama", small)
    pictures, easy = Pictures([photograph]), batch_of(np.full_like(photograph, 128))
    training.train(pictures, easy, tmp_path, 0.01, torch.device("cpu"), side=32, batch=2)
    unreachable = torch.load(tmp_path / "best.pt", weights_only=True)["psnr"]
    training.train(pictures, batch_of(photograph), tmp_path, 0.03, torch.device("cpu"), side=32, batch=2)
    assert torch.load(tmp_path / "best.pt", weights_only=True)["psnr"] < unreachable


# ---- the file ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[ErasingLama, Path]:
    network, path = trained_a_little(), tmp_path_factory.mktemp("erase") / "network.onnx"
    export(network, path)
    return network, path


def test_the_file_does_what_the_network_does_at_any_size(exported: tuple[ErasingLama, Path]) -> None:
    assert difference(*exported) < 0.01


def test_the_file_keeps_its_weights_in_half_precision(exported: tuple[ErasingLama, Path]) -> None:
    _, path = exported
    kept = {value.data_type for value in onnx.load(path).graph.initializer if np.prod(value.dims) >= 256}
    assert kept == {onnx.TensorProto.FLOAT16}


def test_openvino_fills_the_same(exported: tuple[ErasingLama, Path], photograph: NDArray[np.uint8]) -> None:
    network, path = exported
    image, mask = batch_of(photograph, 2)
    session = open_session(path, Placement("cpu", "fp32", "openvino", "a test"), thread_count=1)
    filled = session.run({"image": image.numpy(), "mask": mask.numpy()})[0]
    with torch.no_grad():
        assert np.abs(filled - network(image, mask).numpy()).max() < 0.01


def test_a_file_that_is_too_large_to_ship_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.erase.export.MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="1000 may ship"):
        export(small(), tmp_path / "network.onnx")


def test_halving_twice_changes_nothing_more(exported: tuple[ErasingLama, Path], tmp_path: Path) -> None:
    _, path = exported
    copy = tmp_path / "network.onnx"
    copy.write_bytes(path.read_bytes())
    halve(copy)
    assert len(onnx.load(copy).graph.node) == len(onnx.load(path).graph.node)
