"""MI-GAN against the original code's outputs on the same weights; golden/README.md says how those were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from limner.core.placement import Placement
from limner.engine.networks import open_network
from limner.engine.store import Store
from limner.export.exports import EXPORTS
from limner.export.networks.migan import SIZE, Migan, MiganFill, activation
from limner.export.onnx_file import write_onnx
from limner.inpaint.filler import Options, Part
from limner.inpaint.models import migan
from tests.inpaint.golden.migan_weights import migan_weights
from tests.inpaint.golden.weights import holes, pictures

GOLDEN = Path(__file__).parent / "golden"
BATCHES = {"native": 1, "batch": 2}
STRIDE = 5


@pytest.fixture(scope="module")
def network() -> Migan:
    """Ours with the weights that the original had."""
    torch.set_num_threads(2)
    network = Migan().eval()
    state = network.state_dict()
    smoothing = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64
    for name, values in state.items():  # the constants of the original
        if name.endswith("filter.weight"):
            values[:] = torch.from_numpy(smoothing) * (4 if ".upsample." in name else 1)
        elif name.endswith("filter_const"):
            values[:, :, ::2, ::2] = 1
    weights = migan_weights({name: tuple(values.shape) for name, values in state.items()})
    network.load_state_dict({**state, **{name: torch.from_numpy(values) for name, values in weights.items()}})
    return network


@pytest.fixture(scope="module")
def store(network: Migan, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A model store with our network, exported."""
    store = Store(tmp_path_factory.mktemp("store"))
    (export,) = EXPORTS["migan"]
    path = store.folder(migan.CARD) / "being made"
    path.parent.mkdir()
    write_onnx(export.wrap(network), export.inputs(), export.outputs, path, dynamic=export.dynamic)
    store.keep(migan.CARD, {export.onnx: path}, {})
    return store


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray[np.float32]]:
    with np.load(GOLDEN / "migan.npz") as outputs:
        return dict(outputs)


def in_unit_range(drawn: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the original draws, about -1 to 1, as what is served."""
    return drawn / 2 + 0.5


def thinned(filled: NDArray[np.float32]) -> NDArray[np.float32]:
    return filled[:, :, ::STRIDE, ::STRIDE]


def inputs_of(count: int) -> dict[str, NDArray[np.float32]]:
    """The golden's own pictures and holes, with rubbish under the holes."""
    mask = holes(count, SIZE, SIZE)
    return {"image": np.where(mask > 0, np.float32(0.77), pictures(count, SIZE, SIZE)), "mask": mask}


def test_parameters_are_the_published_ones(network: Migan) -> None:
    shapes = {name: "x".join(map(str, values.shape)) for name, values in network.state_dict().items()}
    lines = (GOLDEN / "migan.names.txt").read_text().splitlines()
    assert shapes == {name: shape for name, _, shape in (line.partition(" ") for line in lines)}
    assert sum(values.numel() for values in network.parameters()) == 5_973_366


@pytest.mark.parametrize("name", BATCHES)
def test_torch_equals_the_original(name: str, network: Migan, golden: dict[str, NDArray[np.float32]]) -> None:
    inputs = {key: torch.from_numpy(values) for key, values in inputs_of(BATCHES[name]).items()}
    with torch.no_grad():
        filled = MiganFill(network)(**inputs).numpy()
    np.testing.assert_allclose(thinned(filled), in_unit_range(golden[name]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_exported_file_equals_the_original(
    engine: str, store: Store, golden: dict[str, NDArray[np.float32]]
) -> None:
    session = open_network(store, migan.CARD, migan.NETWORK, Placement("cpu", "fp32", engine, "a test"))
    for name, count in BATCHES.items():
        (filled,) = session.run(inputs_of(count))
        np.testing.assert_allclose(thinned(filled), in_unit_range(golden[name]), rtol=0, atol=1e-3)


def test_a_small_part_is_filled_as_the_network_fills_it_in_its_own_size(store: Store) -> None:
    placement = Placement("cpu", "fp32", "openvino", "a test")
    image, mask = (inputs_of(1)[name] for name in ("image", "mask"))
    width, height = 400, 380  # the rest of the 512 is the reflection
    pixels = np.rint(image[0, :, :height, :width].transpose(1, 2, 0) * 255).astype(np.uint8)
    hole = mask[0, 0, :height, :width] > 0
    (filled,) = migan.load(placement, store).fill([Part(pixels, hole, Options())], lambda share: None)

    beyond = (0, SIZE - height), (0, SIZE - width)
    padded = np.pad(pixels / np.float32(255), (*beyond, (0, 0)), mode="symmetric").transpose(2, 0, 1)
    whole_hole = np.pad(hole, beyond, mode="symmetric").astype(np.float32)
    session = open_network(store, migan.CARD, migan.NETWORK, placement)
    (expected,) = session.run({"image": padded[None], "mask": whole_hole[None, None]})
    levels = (expected[0, :, :height, :width].clip(0, 1) * 255).transpose(1, 2, 0)
    assert np.abs(filled[hole] - levels[hole]).max() <= 0.51
    assert levels[hole].std() > 20  # it isn't all black or white


def test_the_golden_depends_on_what_it_should(golden: dict[str, NDArray[Any]]) -> None:
    first, second = golden["batch"]
    assert np.abs(first - second).mean() > 0.1  # another picture, another output
    assert all(0.5 < channel.std() < 3 for channel in first)  # alive, and nothing is cut off


def test_activations_keep_within_their_clamp() -> None:
    values = torch.tensor([-2000.0, -10.0, 10.0, 1000.0])
    expected = torch.tensor([-256.0, -2 * 2**0.5, 10 * 2**0.5, 256.0])
    torch.testing.assert_close(activation(values), expected)
