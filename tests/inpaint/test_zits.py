"""ZITS against the published code's outputs on the same weights; golden/README.md says how those were made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.color import rgb2gray
from skimage.feature import canny as skimage_canny
from torch import nn

from limner.core.placement import Placement
from limner.engine.session import Session, open_session
from limner.export.exports import EXPORTS
from limner.export.networks.zits_edge_line import EdgeLine
from limner.export.networks.zits_inpaint import ZitsInpaint
from limner.export.networks.zits_structure_upsample import StructureUpsample
from limner.export.onnx_file import write_onnx
from limner.inpaint import structure
from limner.inpaint.canny import canny
from limner.inpaint.filler import Options, Part
from limner.inpaint.models.zits import CARD, Zits
from limner.inpaint.wireframe import Lines
from tests.inpaint.golden.weights import holes, pictures
from tests.inpaint.golden.zits_weights import (
    SCORES,
    SEGMENTS,
    drawings,
    logits,
    position_holes,
    scene,
    scratch,
    zits_weights,
)

GOLDEN = Path(__file__).parent / "golden"
STRIDE = 3
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "edge_line": EdgeLine,
    "structure_upsample": StructureUpsample,
    "inpaint": ZitsInpaint,
}
UNUSED = ("attn.mask", "out.0.weight", "out.0.bias", "out.2.weight", "out.2.bias")  # published, and left away
CPU = Placement("cpu", "fp32", "onnxruntime", "a test")

Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def golden() -> Arrays:
    with np.load(GOLDEN / "zits.npz") as outputs:
        return dict(outputs)


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    """Ours with the weights that the originals had."""
    torch.set_num_threads(2)
    built = {title: network().eval() for title, network in NETWORKS.items()}
    for network in built.values():
        weights = zits_weights({name: tuple(values.shape) for name, values in network.state_dict().items()})
        network.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
    return built


class Sessions(dict[str, Session]):
    """The files written of networks, opened; each when it is first asked for."""

    def __init__(self, networks: dict[str, nn.Module], folder: Path) -> None:
        self._networks = networks
        self._folder = folder

    def __missing__(self, title: str) -> Session:
        (export,) = (export for export in EXPORTS["zits"] if export.onnx == f"{title}.onnx")
        path, network = self._folder / export.onnx, export.wrap(self._networks[title])
        write_onnx(network, export.inputs(), export.outputs, path, dynamic=export.dynamic)
        self[title] = open_session(path, CPU)
        path.unlink()
        return self[title]


@pytest.fixture(scope="module")
def sessions(networks: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Sessions:
    return Sessions(networks, tmp_path_factory.mktemp("zits"))


def run_torch(network: nn.Module, inputs: Arrays) -> list[NDArray[Any]]:
    with torch.no_grad():
        outputs = network(**{name: torch.from_numpy(values) for name, values in inputs.items()})
    return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


def thinned(values: NDArray[Any]) -> NDArray[Any]:
    return values[..., ::STRIDE, ::STRIDE]


def near(found: NDArray[Any], expected: NDArray[Any], atol: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def edge_line_inputs() -> Arrays:
    """The golden's own, with rubbish under the holes."""
    mask = holes(2, 256, 256)
    found = {name: drawings(2, 256, 256, seed) for name, seed in (("edge", 1), ("line", 2))}
    inputs = {"image": pictures(2, 256, 256) * 2 - 1, **found}
    return {name: np.where(mask > 0, np.float32(0.77), values) for name, values in inputs.items()} | {"mask": mask}


def inpaint_inputs(count: int, height: int, width: int) -> Arrays:
    mask = holes(count, height, width)
    rel_pos, direct = zip(*(structure.positions(hole[0] > 0) for hole in mask), strict=True)
    return {
        "image": np.where(mask > 0, np.float32(0.77), pictures(count, height, width)),
        "mask": mask,
        "edge": drawings(count, height, width, 1),
        "line": drawings(count, height, width, 2),
        "rel_pos": np.stack(rel_pos),
        "direct": np.stack(direct),
    }


def test_parameters_are_the_published_ones(networks: dict[str, nn.Module]) -> None:
    ours = {
        f"{title} {name} {'x'.join(map(str, values.shape))}".rstrip()
        for title, network in networks.items()
        for name, values in network.state_dict().items()
    }
    published = set((GOLDEN / "zits.names.txt").read_text().splitlines())
    assert ours <= published
    assert {line.split()[1].rpartition("blocks.")[2].lstrip("0123456789.") for line in published - ours} == set(UNUSED)
    assert sum(values.numel() for values in networks["inpaint"].parameters()) == 49_635_529


def test_unused_tensors_of_the_published_files_may_be_there(networks: dict[str, nn.Module]) -> None:
    published = [line.split()[:2] for line in (GOLDEN / "zits.names.txt").read_text().splitlines()]
    for export in EXPORTS["zits"]:
        if (title := export.onnx.removesuffix(".onnx")) in networks:
            ours = set(networks[title].state_dict())
            beyond = [name for network, name in published if network == title and name not in ours]
            for prefix in export.prefixes:
                assert all(f"{prefix}{name}".startswith(export.beside) for name in beyond)
                assert not any(f"{prefix}{name}".startswith(export.beside) for name in ours)


def test_edges_and_lines_equal_the_originals(
    networks: dict[str, nn.Module], sessions: Sessions, golden: Arrays
) -> None:
    inputs = edge_line_inputs()
    for outputs, atol in ((run_torch(networks["edge_line"], inputs), 1e-4), (sessions["edge_line"].run(inputs), 1e-3)):
        near(thinned(outputs[0]), golden["edge_logits"], atol)
        near(thinned(outputs[1]), golden["line_logits"], atol)


def test_doubled_drawings_equal_the_originals(
    networks: dict[str, nn.Module], sessions: Sessions, golden: Arrays
) -> None:
    inputs = {"drawing": drawings(2, 32, 48)}
    near(run_torch(networks["structure_upsample"], inputs)[0], golden["upsampled"], 1e-4)
    near(sessions["structure_upsample"].run(inputs)[0], golden["upsampled"], 1e-3)


def test_fills_equal_the_originals(networks: dict[str, nn.Module], sessions: Sessions, golden: Arrays) -> None:
    square, batch = inpaint_inputs(1, 256, 256), inpaint_inputs(2, 64, 96)
    near(thinned(run_torch(networks["inpaint"], square)[0]), golden["inpaint_1"], 1e-4)
    near(thinned(run_torch(networks["inpaint"], batch)[0]), golden["inpaint_2"], 1e-4)
    near(thinned(sessions["inpaint"].run(batch)[0]), golden["inpaint_2"], 1e-3)  # at 320² it runs in the whole chain


def test_the_golden_depends_on_what_it_should(golden: Arrays) -> None:
    for name, least in (("edge_logits", 1), ("line_logits", 1), ("inpaint_2", 0.03)):
        first, second = golden[name]
        assert np.abs(first - second).mean() > least  # another picture, another output
    assert all(0.1 < channel.std() < 0.45 for channel in golden["inpaint_1"][0])  # alive, and nothing is cut off
    assert np.abs(golden["chain_on"] - golden["chain_off"]).mean() > 0.02  # structure counts


@pytest.mark.parametrize("name", position_holes())
def test_positions_equal_the_originals(name: str, golden: Arrays) -> None:
    rel_pos, direct = structure.positions(position_holes()[name])
    np.testing.assert_array_equal(np.dstack([rel_pos, *direct]), golden[f"positions_{name}"])


def test_a_hole_that_leaves_nothing_known_at_the_small_size_is_at_its_deepest() -> None:
    hole = np.ones((1024, 1024), bool)
    hole[::3, 5] = False
    rel_pos, direct = structure.positions(hole)
    np.testing.assert_array_equal(rel_pos, np.where(hole, 127, 0))
    assert not direct.any()


@pytest.mark.parametrize("seed", range(4))
def test_edges_equal_scikit_images(seed: int) -> None:
    rgb = scene(200, 256, seed)
    if seed == 3:
        rgb = np.random.default_rng(seed).integers(0, 256, rgb.shape, np.uint8)
    for sigma in (3.0, 1.0):
        expected = skimage_canny(rgb2gray(rgb), sigma=sigma)
        assert expected.sum() > 500 or sigma > 1
        np.testing.assert_array_equal(canny(rgb, sigma), expected)


def test_a_plain_picture_has_no_edges() -> None:
    assert not canny(np.full((32, 32, 3), 90, np.uint8), 3.0).any()


def test_structure_is_drawn_on_as_the_original_does(golden: Arrays) -> None:
    mask = scratch(256, 256)[None, None].astype(np.float32)
    found = (drawings(1, 256, 256, 1) > 0.5).astype(np.float32), drawings(1, 256, 256, 2)
    edge, line = structure.drawn_on(*found, logits(1, 256, 3), logits(1, 256, 4), mask)
    np.testing.assert_array_equal(np.packbits(edge > 0), golden["drawn_on_edge"])
    assert set(np.unique(edge)) == {0, 1}
    near(thinned(line), golden["drawn_on_line"], 1e-6)


class FixedLines:
    """Stands in for the wireframe network, which has a test of its own: the golden's lines, whatever the picture."""

    def find(self, *_: object) -> Lines:
        return Lines(SEGMENTS.astype(np.float32), SCORES.astype(np.float32))


@pytest.fixture(scope="module")
def model(sessions: Sessions) -> Zits:
    return Zits(FixedLines(), sessions["edge_line"], sessions["structure_upsample"], sessions["inpaint"])  # type: ignore[arg-type]


def test_the_whole_chain_equals_the_peers_at_a_size_that_is_reflected_and_enlarged(model: Zits, golden: Arrays) -> None:
    pixels, hole = scene(288, 320), scratch(288, 320)
    shares: list[float] = []
    with_structure, without = model.fill(
        [Part(pixels, hole, Options()), Part(pixels, hole, Options(structure=False))], shares.append
    )
    for filled, name in ((with_structure, "chain_on"), (without, "chain_off")):
        expected = np.moveaxis(golden[name][0], 0, 2) * 255
        beyond_rounding = np.abs(filled[::STRIDE, ::STRIDE] - expected) > 0.5 + 0.25
        assert beyond_rounding.mean() < 0.01  # not none: one edge may be as likely as an edge must be, to six digits
    assert shares == sorted(shares)


class Echo:
    """Stands in for the inpainting network: gives back the picture, which this one would not look at in the hole."""

    def run(self, inputs: Arrays, check: object) -> list[NDArray[Any]]:
        return [inputs["image"]]


def test_grey_and_sixteen_bits_come_back_as_they_went_in() -> None:
    model = Zits(None, None, None, Echo())  # type: ignore[arg-type]
    pixels, hole = scene(100, 300), scratch(100, 300)
    for given in (pixels, pixels[:, :, :1]):
        for scale, dtype in ((1, np.uint8), (257, np.uint16)):
            part = Part(given.astype(dtype) * dtype(scale), hole, Options(structure=False))
            (filled,) = model.fill([part], lambda share: None)
            assert (filled.shape, filled.dtype) == (given.shape, dtype)
            assert np.abs(filled / scale - given)[hole].max() < 0.51


def test_a_call_that_is_over_ends_between_networks(model: Zits) -> None:
    class Over(Exception):
        pass

    def progress(share: float) -> None:
        raise Over

    with pytest.raises(Over):
        model.fill([Part(scene(256, 256), scratch(256, 256), Options())], progress)


def test_the_card_names_what_is_exported_of_what() -> None:
    assert tuple(export.onnx for export in EXPORTS["zits"]) == CARD.exports
    assert {export.file for export in EXPORTS["zits"]} == {file.name for file in CARD.files}
