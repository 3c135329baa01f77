"""MAT against the original code's outputs on the same weights; golden/README.md says how those were made.

A picture takes some seconds, so each is drawn once: by torch while it is recorded for the export, and by ONNX Runtime
two others at once, of another number and with another hole. All have other values under the hole than the original had.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from limner.core.placement import Placement
from limner.engine.session import open_session
from limner.export.exports import EXPORTS
from limner.export.networks.mat import Mat, usual_latent
from limner.export.networks.mat_attention import PartialConvolution
from limner.export.networks.mat_layers import Convolution, Linear, Modulated
from limner.export.onnx_file import write_onnx
from tests.inpaint.golden import mat_weights
from tests.inpaint.golden.mat_weights import Case

GOLDEN = Path(__file__).parent / "golden"
STRIDE = 3


@pytest.fixture(scope="module")
def network() -> Mat:
    """Ours with the weights that the original had."""
    torch.set_num_threads(2)
    network = Mat().eval().requires_grad_(False)
    state = network.state_dict()
    weights = mat_weights.mat_weights({name: tuple(values.shape) for name, values in state.items()})
    network.load_state_dict({**state, **{name: torch.from_numpy(values) for name, values in weights.items()}})
    return network


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return mat_weights.cases()


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray[np.float32]]:
    with np.load(GOLDEN / "mat.npz") as outputs:
        return dict(outputs)


def spoiled(case: Case) -> NDArray[np.float32]:
    """The case's pictures with rubbish under the holes."""
    return np.where(case.mask > 0, np.float32(0.77), case.image)


def assert_near(filled: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """What is served, 0 to 1, against what the original draws, -1 to 1."""
    np.testing.assert_allclose(2 * filled[:, :, ::STRIDE, ::STRIDE] - 1, expected, rtol=0, atol=1e-4)


def test_parameters_are_the_published_ones(network: Mat) -> None:
    shapes = {name: "x".join(map(str, values.shape)) for name, values in network.state_dict().items()}
    lines = (GOLDEN / "mat.names.txt").read_text().splitlines()
    assert shapes == {name: shape for name, _, shape in (line.partition(" ") for line in lines)}
    assert sum(values.numel() for values in network.parameters()) == 61_562_507


def test_torch_and_the_exported_file_equal_the_original(
    network: Mat, cases: dict[str, Case], golden: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    (export,) = EXPORTS["mat"]
    wrapped, drawn, path = export.wrap(network), list[torch.Tensor](), tmp_path / export.onnx
    wrapped.register_forward_hook(lambda module, inputs, output: drawn.append(output.detach()))
    box = {"image": torch.from_numpy(spoiled(cases["box"])), "mask": torch.from_numpy(cases["box"].mask)}
    write_onnx(wrapped, box, export.outputs, path, dynamic=export.dynamic)
    assert len(drawn) == 1
    assert_near(drawn[0].numpy(), golden["box"])

    graph = onnx.load(path).graph
    kernels = {node.input[1] for node in graph.node if node.op_type in ("Conv", "ConvTranspose")}
    assert kernels <= {constant.name for constant in graph.initializer}  # nothing computes them, so int8 can hold them

    both = cases["irregular"], cases["box"]  # of the first, the picture that was drawn with the usual latent
    inputs = {
        "image": np.concatenate([spoiled(case)[:1] for case in both]),
        "mask": np.concatenate([case.mask[:1] for case in both]),
    }
    (filled,) = open_session(path, Placement("cpu", "fp32", "onnxruntime", "a test")).run(inputs)
    assert_near(filled, np.concatenate([golden["irregular"][:1], golden["box"]]))


def test_each_picture_has_its_own_style() -> None:
    """A modulated convolution is one whose kernel is weighed and made of length one, for each picture."""
    torch.manual_seed(0)
    layer = Modulated(5, 4, 3, 7).requires_grad_(False)
    x, style = torch.randn(2, 5, 6, 6), torch.randn(2, 7)
    for found, picture, weights in zip(layer(x, style), x, layer.affine(style), strict=True):
        kernel = layer.weight[0] * weights[:, None, None]
        kernel = kernel / kernel.square().sum((1, 2, 3), keepdim=True).sqrt()
        expected = torch.nn.functional.conv2d(picture[None], kernel, padding=1)[0] * 2**0.5  # what activations need
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_the_original_draws_at_random_is_always_the_same(network: Mat) -> None:
    np.testing.assert_array_equal(usual_latent(), mat_weights.usual_latent())
    draws, expected = dict(network.named_buffers()), mat_weights.kept()
    np.testing.assert_array_equal(draws["synthesis.first_stage._kept"].flatten(1).T, expected[256, 180])
    np.testing.assert_array_equal(draws["synthesis._kept"], expected[512, 16, 16])


def test_the_golden_depends_on_what_it_should(cases: dict[str, Case], golden: dict[str, NDArray[np.float32]]) -> None:
    for name, outputs in golden.items():
        hole = np.broadcast_to(cases[name].mask[:, :, ::STRIDE, ::STRIDE] > 0, outputs.shape)
        picture = 2 * cases[name].image[:, :, ::STRIDE, ::STRIDE] - 1
        assert np.abs(outputs - picture)[hole].mean() > 0.3  # it is not the picture that was hidden
        assert 0.3 < outputs[hole].std() < 3  # alive


def test_partial_convolutions_make_up_for_what_is_unknown() -> None:
    torch.manual_seed(0)
    layer, x = PartialConvolution(2, 3).requires_grad_(False), torch.randn(1, 2, 6, 6)
    known = torch.zeros(1, 1, 6, 6)
    known[..., :2] = 1
    found, now_known = layer(x, known)
    plain = layer.conv(x)
    assert now_known is not None
    torch.testing.assert_close(now_known[0, 0, 0], torch.tensor([1.0, 1, 1, 0, 0, 0]))
    torch.testing.assert_close(found[..., 2, :4], plain[..., 2, :4] * torch.tensor([9 / 6, 9 / 6, 9 / 3, 0]))
    torch.testing.assert_close(found[..., 0, 0], plain[..., 0, 0] * 9 / 4)  # beyond the rim nothing is known


@pytest.mark.parametrize("rate", [1.0, 0.01])
def test_layers_keep_variance(rate: float) -> None:
    """Weights are stored large, and are divided by the root of their number."""
    torch.manual_seed(0)
    with torch.inference_mode():
        assert Linear(400, 300, rate=rate)(torch.randn(50, 400)).std() == pytest.approx(1, abs=0.05)
        squares = Convolution(30, 40)(torch.randn(1, 30, 16, 16))[..., 2:-2, 2:-2].square()
    assert squares.mean() == pytest.approx((1 + 0.2**2) / 2 * 2, abs=0.15)
