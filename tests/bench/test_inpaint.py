"""What the inpainting benchmark counts and compares, where a slip would only make figures better."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from bench import pictures
from bench.figures import rows_table
from bench.inpaint import AUTO, FULL, SIDE, Sight, counted, difference, sight
from bench.networks import difference as output_difference
from bench.one_network import Run


class Plain(nn.Module):
    """One convolution over image and mask."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        filled: Tensor = self.convolution(torch.cat([image, mask], 1))
        return filled


def small_sight() -> Sight:
    mask = torch.zeros(1, 1, 6, 8)
    mask[..., 2:4, 3:5] = 1
    return Sight(torch.rand(1, 3, 6, 8), mask, slice(10, 16), slice(20, 28))


@pytest.mark.parametrize(("side", "strategy"), [(64, AUTO), (80, AUTO), (160, AUTO), (80, FULL)])
def test_what_torch_sees_is_the_picture_with_its_hole_and_thrice_as_wide(side: int, strategy: int) -> None:
    image = pictures.held_out(SIDE)
    seen = sight(image, side, strategy)  # type: ignore[arg-type]
    assert (seen.image[0].permute(1, 2, 0).numpy() * 255 == image[seen.rows, seen.columns]).all()
    assert seen.mask.sum() == side * side
    assert min(seen.mask.shape[2:]) >= (SIDE if strategy == FULL else 3 * side)


def test_a_multiplication_and_an_addition_are_two_operations() -> None:
    filled, operations = counted(Plain(), small_sight())
    assert filled.shape == (1, 3, 6, 8)
    assert operations == 2 * (6 * 8) * (4 * 3 * 3) * 3


def test_the_difference_is_that_of_the_hole_in_levels() -> None:
    seen = small_sight()
    picture = np.full((30, 40, 3), 99, np.uint8)  # wrong everywhere, but near in the hole
    picture[12:14, 23:25] = [100, 101, 99]
    filled = torch.full((1, 3, 6, 8), 100 / 255)
    assert difference(filled, seen, pictures.png(picture)) == pytest.approx(2 / 3)


def test_outputs_are_compared_in_the_hole_and_as_far_as_they_are_shown() -> None:
    expected = np.zeros((1, 3, 2, 2), np.float32)
    drawn = expected + np.array([[1.5, 7], [0.5, 9]], np.float32)
    mask = np.array([[1, 0], [1, 0]], np.float32)[None, None]
    assert output_difference({"0": drawn}, {"0": expected}, mask) == pytest.approx(0.75)
    assert output_difference({"0": drawn}, {"0": expected}, None) == pytest.approx(4.5)


def test_a_run_is_a_process_of_its_own_with_its_outputs_and_memory(tmp_path: Path) -> None:
    shape = [1, 2]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "twice")]
    graph = helper.make_graph([helper.make_node("Add", ["image", "image"], ["twice"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "n.onnx")
    np.savez(tmp_path / "in.npz", image=np.array([[1, 2]], np.float32), unused=np.zeros(1))
    paths = {name: str(tmp_path / name) for name in ("n.onnx", "in.npz", "out.npz")}
    run = Run("any", 0, "", paths["n.onnx"], paths["in.npz"], paths["out.npz"], "onnxruntime", "fp32")
    ours = np.ones(700 << 20, np.uint8)
    figures = run.start()
    del ours
    assert figures["ms"] >= 0
    assert 10 < figures["peak_mib"] < 700
    with np.load(paths["out.npz"]) as outputs:
        assert outputs["0"].tolist() == [[2, 4]]


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", image=np.zeros(1))
    (tmp_path / "n.onnx").write_bytes(b"no network")
    run = Run("any", 0, "", str(tmp_path / "n.onnx"), str(tmp_path / "in.npz"), "", "onnxruntime", "fp32")
    assert "no ONNX file" in run.start()["error"]


def test_rows_of_a_table_may_lack_columns() -> None:
    assert rows_table([{"a": 1}, {"b": 2}]).splitlines()[2:] == ["| 1 |  |", "|  | 2 |"]
