"""LaMa's network gives what the original gives with the same weights, in torch and as an ONNX file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from limner.core.placement import Placement
from limner.engine.session import Session, open_session
from limner.export.exports import EXPORTS
from limner.export.networks.lama import Lama, LamaFill, dft_of
from limner.export.onnx_file import write_onnx
from limner.inpaint.filler import Options, Part
from limner.inpaint.network import ImageMaskFiller
from tests.inpaint.golden.lama_weights import lama_weights
from tests.inpaint.golden.make_lama import SHAPES, STRIDE
from tests.inpaint.golden.weights import holes, pictures

GOLDEN = Path(__file__).parent / "golden"
NAMES = [line.split() for line in (GOLDEN / "lama.names.txt").read_text().splitlines()]
PARAMETERS = {name: tuple(int(side) for shape in rest for side in shape.split("x")) for name, *rest in NAMES}
INFERRED = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray[np.float32]]:
    with np.load(GOLDEN / "lama.npz") as outputs:
        return dict(outputs)


@pytest.fixture(scope="module")
def lama() -> Lama:
    network = Lama().eval()
    weights = {name: torch.from_numpy(values) for name, values in lama_weights(PARAMETERS).items()}
    network.load_state_dict(weights, strict=True)
    return network


@pytest.fixture(scope="module")
def onnx_file(lama: Lama, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    (export,) = EXPORTS["lama"]
    path = tmp_path_factory.mktemp("lama") / export.onnx
    write_onnx(export.wrap(lama), export.inputs(), export.outputs, path, dynamic=export.dynamic)
    yield path
    path.unlink()  # 200 MB


@pytest.fixture(scope="module")
def opened(onnx_file: Path) -> Callable[[str, str], Session]:
    """`opened("openvino", "bf16")`: the file, compiled once for each engine and precision, which takes seconds."""

    @functools.cache
    def opened(engine: str, precision: str) -> Session:
        return open_session(onnx_file, Placement("cpu", precision, engine, "a test"), thread_count=2)

    return opened


@pytest.fixture(scope="module")
def session(opened: Callable[[str, str], Session]) -> Session:
    return opened("onnxruntime", "fp32")


def scene(name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return pictures(*SHAPES[name]), holes(*SHAPES[name])


def test_parameters_are_those_of_big_lama(lama: Lama) -> None:
    assert {name: tuple(values.shape) for name, values in lama.state_dict().items()} == PARAMETERS
    assert all(name.startswith("generator.model.") for name in PARAMETERS)
    learnt = [shape for name, shape in PARAMETERS.items() if not name.endswith(INFERRED)]
    assert sum(int(np.prod(shape)) for shape in learnt) == 50_975_875  # the 51.0 M of the paper's big-lama


def test_goldens_spread_over_the_range(golden: dict[str, NDArray[np.float32]]) -> None:
    assert set(golden) == set(SHAPES)
    for outputs in golden.values():
        assert 0.2 < outputs.std() < 0.35
        assert ((outputs > 0.02) & (outputs < 0.98)).mean() > 0.9


@pytest.mark.parametrize("name", SHAPES)
def test_torch_equals_the_original(name: str, lama: Lama, golden: dict[str, NDArray[np.float32]]) -> None:
    image, mask = scene(name)
    with torch.no_grad():
        filled = LamaFill(lama)(torch.from_numpy(image), torch.from_numpy(mask)).numpy()
    assert np.abs(filled[:, :, ::STRIDE, ::STRIDE] - golden[name]).max() < 1e-4


@pytest.mark.parametrize("name", SHAPES)
def test_the_onnx_file_equals_the_original(name: str, session: Session, golden: dict[str, NDArray[np.float32]]) -> None:
    """None of the sizes, and not the batch either, is what the file was recorded with."""
    image, mask = scene(name)
    (filled,) = session.run({"image": image, "mask": mask})
    assert filled.shape == image.shape
    assert np.abs(filled[:, :, ::STRIDE, ::STRIDE] - golden[name]).max() < 1e-3


ENGINES = [("onnxruntime", "fp32", 1), ("openvino", "fp32", 1), ("openvino", "bf16", 6)]
"""Engine, precision, and by how many of 255 levels a part may differ when it is filled with others: engines divide the
work otherwise, and so round otherwise."""


@pytest.mark.parametrize(("engine", "precision", "levels"), ENGINES)
def test_parts_are_filled_alike_together_and_alone(
    engine: str, precision: str, levels: int, opened: Callable[[str, str], Session]
) -> None:
    filler = ImageMaskFiller(opened(engine, precision), multiple=8)
    image, mask = pictures(3, 37, 60), holes(3, 37, 60)
    pixels = np.rint(image.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    parts = [Part(each, hole[0] > 0, Options()) for each, hole in zip(pixels, mask, strict=True)]
    together = filler.fill(parts, lambda share: None)
    alone = [filler.fill([part], lambda share: None)[0] for part in parts]
    for one, other in zip(together, alone, strict=True):
        difference = np.abs(one.astype(int) - other)
        assert difference.max() <= levels
        assert difference.mean() < levels / 6


def test_what_is_in_the_hole_does_not_matter(session: Session) -> None:
    image, mask = scene("batch")
    one, other = (
        session.run({"image": np.where(mask > 0, value, image).astype(np.float32), "mask": mask})[0]
        for value in (0.2, 1.0)
    )
    assert (one == other).all()


def test_openvino_in_bf16_stays_as_near_at_any_size(
    opened: Callable[[str, str], Session], golden: dict[str, NDArray[np.float32]]
) -> None:
    """Waves that were computed in bf16, not looked up, would be thrice as far off."""
    image, mask = scene("odd")
    (filled,) = opened("openvino", "bf16").run({"image": image, "mask": mask})
    difference = np.abs(filled[:, :, ::STRIDE, ::STRIDE] - golden["odd"])
    assert difference.mean() < 0.004
    assert difference.max() < 0.03


@pytest.mark.parametrize(("height", "width"), [(13, 21), (8, 8), (2, 3), (1, 1), (5, 4)])
def test_products_with_waves_are_the_fourier_transform(height: int, width: int) -> None:
    picture = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, height, width), np.float32))
    dft, half = dft_of(picture), width // 2 + 1
    parts = picture @ dft.columns
    spectrum = dft.rows @ torch.cat([parts[..., :half], parts[..., half:]], 2)
    expected = torch.fft.rfft2(picture, norm="ortho")
    assert torch.allclose(spectrum[:, :, :height], expected.real, atol=1e-5)
    assert torch.allclose(spectrum[:, :, height:], expected.imag, atol=1e-5)
    # Any numbers, not a real picture's spectrum: a convolution makes such, and the halves that should mirror each other
    # then disagree.
    changed = torch.complex(*torch.randn(2, 2, 3, height, half, generator=torch.Generator().manual_seed(0)))
    rows = dft.rows.T @ torch.cat([changed.real, changed.imag], 2)
    back = rows[:, :, :height] @ dft.real + rows[:, :, height:] @ dft.imaginary
    assert torch.allclose(back, torch.fft.irfft2(changed, (height, width), norm="ortho"), atol=1e-5)
