"""ZITS' wireframe against the original code's maps and lines on the same weights; golden/README.md says how those were
made."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from skimage.draw import line_aa
from torch import nn

from limner.core.placement import Placement
from limner.engine.session import Check, Session, open_session
from limner.export.exports import EXPORTS
from limner.export.networks.zits_wireframe import SIDE, Wireframe, WireframeMaps, WireframeScores
from limner.export.onnx_file import write_onnx
from limner.inpaint.wireframe import Lines, Wireframes, drawn
from tests.inpaint.golden.weights import holes, pictures
from tests.inpaint.golden.zits_wireframe_weights import UNLIKELY, wireframe_weights

GOLDEN = Path(__file__).parent / "golden"
STRIDE = 7
LIKELY = 0.85


class TorchSession(Session):
    """Torch itself in an engine's place."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def _run(self, inputs: dict[str, NDArray[Any]], check: Check | None) -> list[NDArray[Any]]:
        with torch.no_grad():
            found = self._network(*map(torch.from_numpy, inputs.values()))
        return [values.numpy() for values in (found if isinstance(found, tuple) else (found,))]


class Recorded(Session):
    """Another session, and what it found last."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.found: list[NDArray[Any]] = []

    def _run(self, inputs: dict[str, NDArray[Any]], check: Check | None) -> list[NDArray[Any]]:
        self.found = self._session.run(inputs, check)
        return self.found


class Fixed(Session):
    """A network that finds the same in every picture."""

    def __init__(self, *found: NDArray[np.float32]) -> None:
        self._found = found

    def _run(self, inputs: dict[str, NDArray[Any]], check: Check | None) -> list[NDArray[Any]]:
        return list(self._found)


class Remembered(nn.Module):
    """A network that has seen its picture already, and gives its raw maps and features again."""

    def __init__(self, maps: torch.Tensor, features: torch.Tensor) -> None:
        super().__init__()
        self.raw = maps, features

    def forward(self, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.raw


class Run(NamedTuple):
    lines: Lines
    maps: list[NDArray[np.float32]]


@pytest.fixture(scope="module")
def network() -> Wireframe:
    """Ours with the weights that the original had."""
    torch.set_num_threads(2)
    network = Wireframe().eval()
    weights = wireframe_weights({key: tuple(values.shape) for key, values in network.state_dict().items()})
    network.load_state_dict({"tspan": network.tspan, **{k: torch.from_numpy(values) for k, values in weights.items()}})
    return network


@pytest.fixture(scope="module")
def raw(network: Wireframe) -> list[torch.Tensor]:
    """Maps and features of the golden's picture, before the maps' last functions."""
    raw: list[torch.Tensor] = []
    hook = network.register_forward_hook(lambda module, inputs, found: raw.extend(found))
    Wireframes(TorchSession(WireframeMaps(network)), TorchSession(WireframeScores(network))).find(*picture(7))
    hook.remove()
    return raw


@pytest.fixture(scope="module")
def onnx_run(network: Wireframe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What both exported files find in the golden's picture."""
    folder = tmp_path_factory.mktemp("wireframe")
    placement = Placement("cpu", "fp32", "onnxruntime", "a test")
    sessions = []
    for export in EXPORTS["zits"][:2]:
        path = folder / export.onnx
        write_onnx(export.wrap(network), export.inputs(), export.outputs, path, dynamic=export.dynamic)
        sessions.append(open_session(path, placement))
    maps, scores = Recorded(sessions[0]), sessions[1]
    lines = Wireframes(maps, scores).find(*picture(200))
    return Run(lines, maps.found)


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray[Any]]:
    with np.load(GOLDEN / "zits_wireframe.npz") as outputs:
        return dict(outputs)


def picture(under_hole: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The golden's own picture and hole, with a grey under the hole."""
    hole = holes(1, SIDE, SIDE)[0, 0] > 0
    pixels = np.rint(pictures(1, SIDE, SIDE)[0].transpose(1, 2, 0) * 255).astype(np.uint8)
    return np.where(hole[:, :, None], np.uint8(under_hole), pixels), hole


def thinned(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    return maps[:, :, ::STRIDE, ::STRIDE]


def as_served(raw: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The original's maps, (1, 9, height, width), after their last functions."""
    share = 1 / (1 + np.exp(-raw))
    junction = 1 / (1 + np.exp(raw[:, 5:6] - raw[:, 6:7]))
    return [share[:, :5], junction, share[:, 7:] - 0.5]


def likely(lines: Lines) -> Lines:
    return Lines(lines.ends[lines.scores > LIKELY], lines.scores[lines.scores > LIKELY])


def check_lines(found: Lines, original: Lines, tolerance: float) -> None:
    """The same lines in the same order, within a thousandth of a pixel.

    A few may lack: on other processors an end just between two junctions may go to the other one.
    """
    distance, index = cKDTree(original.ends * SIDE).query(found.ends * SIDE, p=np.inf)
    same = distance < 1e-3
    assert same.sum() >= max(len(found.scores), len(original.scores)) - 2
    assert (np.diff(index[same]) > 0).all()
    np.testing.assert_allclose(found.scores[same], original.scores[index[same]], rtol=0, atol=tolerance)


def test_parameters_are_the_published_ones(network: Wireframe) -> None:
    shapes = {name: "x".join(map(str, values.shape)) for name, values in network.state_dict().items()}
    lines = (GOLDEN / "zits_wireframe.names.txt").read_text().splitlines()
    assert shapes == {name: shape for name, _, shape in (line.partition(" ") for line in lines)}
    assert sum(values.numel() for values in network.parameters()) == 10_330_387


def test_torch_maps_equal_the_original(raw: list[torch.Tensor], golden: dict[str, NDArray[Any]]) -> None:
    maps, features = (values.numpy() for values in raw)
    np.testing.assert_allclose(thinned(maps), golden["maps"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(thinned(features)[:, ::STRIDE], golden["features"], rtol=0, atol=1e-4)


def test_onnx_maps_equal_the_original(onnx_run: Run, golden: dict[str, NDArray[Any]]) -> None:
    *maps, features = (thinned(values) for values in onnx_run.maps)
    for found, original in zip(maps, as_served(golden["maps"]), strict=True):
        np.testing.assert_allclose(found, original, rtol=0, atol=1e-3)
    np.testing.assert_allclose(features[:, ::STRIDE], golden["features"], rtol=0, atol=1e-3)


@pytest.mark.parametrize(("name", "shift"), [("many", 0), ("few", UNLIKELY)])
def test_lines_equal_the_original(
    name: str, shift: float, network: Wireframe, raw: list[torch.Tensor], golden: dict[str, NDArray[Any]]
) -> None:
    maps = raw[0].clone()
    maps[:, 6] += shift
    session = TorchSession(WireframeMaps(Remembered(maps, raw[1])))
    lines = Wireframes(session, TorchSession(WireframeScores(network))).find(*picture(7))
    check_lines(lines, Lines(golden[f"{name}_lines"], golden[f"{name}_scores"]), 1e-4)


def test_onnx_lines_equal_the_original(onnx_run: Run, golden: dict[str, NDArray[Any]]) -> None:
    original = Lines(golden["many_lines"], golden["many_scores"])
    check_lines(onnx_run.lines, original, 1e-3)
    check_lines(likely(onnx_run.lines), likely(original), 1e-3)


def test_the_drawing_equals_the_original(golden: dict[str, NDArray[Any]]) -> None:
    drawing = drawn(Lines(golden["many_lines"], golden["many_scores"]), 256)
    np.testing.assert_array_equal(np.rint(drawing * 255), golden["drawing"])


def test_the_golden_has_many_lines_and_few(golden: dict[str, NDArray[Any]]) -> None:
    assert (golden["many_scores"] > LIKELY).sum() > (golden["few_scores"] > LIKELY).sum() > 40
    assert golden["many_scores"].min() < 0.06  # some were left out for their scores
    assert len(np.unique(golden["many_lines"].reshape(-1, 2), axis=0)) > 250  # the 300 strongest junctions
    assert len(np.unique(golden["few_lines"].reshape(-1, 2), axis=0)) < 200  # those over the least strength


@pytest.mark.parametrize("junctions", [(), ((20, 30),)])
def test_a_picture_without_two_junctions_has_no_lines(junctions: tuple[tuple[int, int], ...]) -> None:
    strengths = np.zeros((1, 1, 128, 128), np.float32)
    for row, column in junctions:
        strengths[0, 0, row, column] = 1
    maps = np.full((1, 5, 128, 128), 0.5, np.float32)
    session = Fixed(maps, strengths, np.zeros((1, 2, 128, 128), np.float32), np.zeros((1, 128, 128, 128), np.float32))
    lines = Wireframes(session, Fixed(np.ones(1, np.float32))).find(*picture(0))
    assert lines.ends.shape == (0, 4)
    assert lines.scores.shape == (0,)
    assert not drawn(lines, 256).any()


def test_a_line_is_found_between_its_junctions_in_pictures_of_any_shape() -> None:
    strengths = np.zeros((1, 1, 128, 128), np.float32)
    strengths[0, 0, [32, 32], [16, 96]] = 0.9, 0.8
    maps = np.full((1, 5, 128, 128), 0.999, np.float32)  # lines whose ends are as far away as can be
    maps[:, 0], maps[:, 3] = 0.75, 0.1  # upright directions: so the lines are level
    session = Fixed(maps, strengths, np.zeros((1, 2, 128, 128), np.float32), np.zeros((1, 128, 128, 128), np.float32))
    pixels = np.zeros((300, 700, 3), np.uint8)
    hole = np.zeros((300, 700), np.bool_)
    lines = Wireframes(session, Fixed(np.full(1, 0.9, np.float32))).find(pixels, hole)
    np.testing.assert_allclose(lines.ends, [[16.5 / 128, 32.5 / 128, 96.5 / 128, 32.5 / 128]])
    canvas = drawn(lines, 256)
    assert (canvas[65, 33:194] == 1).all()
    assert canvas.sum() == 161


def test_lines_are_drawn_as_by_scikit_image() -> None:
    ends = np.random.default_rng(0).uniform(0, 1, (60, 4)).astype(np.float32)
    ends[0] = 0  # a point in the corner
    ends[1] = 0, 0, 0.9999, 0.9999
    for index, line in enumerate(ends):
        canvas = drawn(Lines(line[None], np.ones(1, np.float32)), 64)
        x0, y0, x1, y1 = (line * 64).astype(int)
        rows, columns, values = line_aa(y0, x0, y1, x1)
        expected = np.zeros((64, 64))
        expected[rows, columns] = values
        assert np.abs(canvas * 255 - expected * 255).max() < 1.001, index  # the peer rounds down


def test_lines_may_end_at_the_picture_s_border() -> None:
    canvas = drawn(Lines(np.array([[0.5, 0, 0.5, 1], [1, 0, 1, 1]], np.float32), np.ones(2, np.float32)), 64)
    assert (canvas[:, 32] == 1).all()
    assert canvas.sum() == 64
