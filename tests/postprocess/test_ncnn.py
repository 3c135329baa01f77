"""Networks in ncnn's format: equal to ncnn's own runtime where they are whole, refused by name where they aren't."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from limner.postprocess.ncnn import NcnnError, parse_param, to_onnx

GOLDEN = Path(__file__).parent / "golden" / "realesrgan_ncnn.npz"
TOLERANCE = 1e-5  # of [0, 1]; 3e-6 is the most that was seen. One step of 16 bits is 1.5e-5
GOLDEN_SIDES = {"animevideov3-x4": 24, "x4plus": 16}
NETWORKS = {  # name in the golden file: file in the package, side of the picture it gets
    "animevideov3-x2": ("REALESRGAN_ANIMAVIDEOV3_UP2X", 48),
    "animevideov3-x3": ("REALESRGAN_ANIMAVIDEOV3_UP3X", 48),
    "animevideov3-x4": ("REALESRGAN_ANIMAVIDEOV3_UP4X", 48),
    "x4plus-anime": ("REALESRGAN_X4PLUSANIME_UP4X", 24),
    "x4plus": ("REALESRGAN_X4PLUS_UP4X", 16),
}


def planes(photograph: np.ndarray, side: int) -> np.ndarray:
    """Return (3, side, 64 or side) float32 RGB in [0, 1]."""
    width = 64 if side == 48 else side
    return np.ascontiguousarray(photograph[:side, :width].transpose(2, 0, 1), np.float32) / 255


def by_onnx(param: str, weights: bytes, planes: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(to_onnx(param, weights).SerializeToString())
    (output,) = session.run(None, {session.get_inputs()[0].name: planes[None]})
    return output[0]


def by_ncnn(stem: Path, planes: np.ndarray) -> np.ndarray:
    ncnn = pytest.importorskip("ncnn", reason="ncnn's own runtime is not installed")
    net = ncnn.Net()
    for option in ("fp16_storage", "fp16_arithmetic", "fp16_packed", "bf16_storage", "bf16_packed", "vulkan_compute"):
        if hasattr(net.opt, f"use_{option}"):  # older and newer ncnn have not quite the same
            setattr(net.opt, f"use_{option}", False)
    net.opt.num_threads = 2
    assert net.load_param(f"{stem}.param") == 0
    assert net.load_model(f"{stem}.bin") == 0
    extractor = net.create_extractor()
    extractor.input("data", ncnn.Mat(planes))
    code, output = extractor.extract("output")
    assert code == 0
    return np.array(output)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_give_what_ncnn_gives(name: str, weights: Path, photograph: np.ndarray) -> None:
    stem, side = NETWORKS[name]
    given = planes(photograph, side)
    ours = by_onnx((weights / f"{stem}.param").read_text(), (weights / f"{stem}.bin").read_bytes(), given)
    theirs = by_ncnn(weights / stem, given)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < TOLERANCE


@pytest.mark.parametrize("name", GOLDEN_SIDES)
def test_networks_give_what_ncnn_gave_when_the_golden_file_was_made(
    name: str, weights: Path, photograph: np.ndarray
) -> None:
    stem, _ = NETWORKS[name]
    golden = np.load(GOLDEN)
    given = planes(photograph, GOLDEN_SIDES[name])
    assert np.array_equal(golden["photograph"], photograph)
    ours = by_onnx((weights / f"{stem}.param").read_text(), (weights / f"{stem}.bin").read_bytes(), given)
    assert np.abs(ours - golden[name].astype(np.float32) / 2**15).max() < TOLERANCE + 2**-16


# A tiny network: 1 convolution of 1 × 1 from 3 channels to 12 with a leaky slope, shuffled to twice the size.
PARAM = """7767517
3 3
Input data 0 1 data
Convolution mix 1 1 data mixed 0=12 1=1 5=1 6=36 9=2 -23310=1,0.5
PixelShuffle shuffle 1 1 mixed output 0=2
"""


def tiny_weights(tag: int = 0, dtype: str = "<f4") -> tuple[bytes, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    weight = generator.normal(size=(12, 3)).astype(dtype)
    bias = generator.normal(size=12).astype("<f4")
    return struct.pack("<I", tag) + weight.tobytes() + bias.tobytes(), weight.astype(np.float32), bias


@pytest.mark.parametrize(("tag", "dtype"), [(0, "<f4"), (0x01306B47, "<f2")])
def test_a_tiny_network_computes_what_its_formula_says(tag: int, dtype: str) -> None:
    data, weight, bias = tiny_weights(tag, dtype)
    image = np.random.default_rng(0).random((3, 2, 5), np.float32)
    mixed = np.einsum("oc,chw->ohw", weight, image) + bias[:, None, None]
    mixed = np.where(mixed > 0, mixed, 0.5 * mixed)
    expected = mixed.reshape(3, 2, 2, 2, 5).transpose(0, 3, 1, 4, 2).reshape(3, 4, 10)
    assert np.allclose(by_onnx(PARAM, data, image), expected, atol=1e-5)


def test_the_same_files_give_the_same_bytes() -> None:
    data = tiny_weights()[0]
    assert to_onnx(PARAM, data).SerializeToString() == to_onnx(PARAM, data).SerializeToString()


def test_the_slopes_and_odd_fp16_weights_are_padded_to_four_bytes() -> None:
    """One fp16 weight takes two bytes of four; what follows must be read from the right place."""
    param = "7767517\n2 2\nInput data 0 1 data\nConvolution c 1 1 data output 0=1 1=1 5=1 6=1\n"
    data = struct.pack("<Ie2xf", 0x01306B47, 2.0, 0.25)
    assert by_onnx(param, data, np.ones((1, 1, 1), np.float32)).item() == 2.25


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ("", "no ncnn network"),
        ("PK\x03\x04", "no ncnn network"),
        (PARAM.replace("\n3 3", "\n4 4"), "says 4 layers, 3 follow"),
        (PARAM.replace("PixelShuffle", "Softmax"), "line 5, Softmax 'shuffle': layers of this type are not supported"),
        (PARAM.replace("1 1 mixed output 0=2", "1 1"), "line 5: can't be read as a layer"),
        (PARAM.replace("9=2", "9=x"), "line 4: can't be read as a layer"),
        (PARAM.replace("-23310=1,0.5", "-23310=2,0.5"), "line 4: can't be read as a layer"),
        (PARAM.replace("9=2", "9=6"), "activation 6 is not supported"),
        (PARAM.replace("9=2", "19=1 9=2"), "parameters [19] are not supported"),
        (PARAM.replace("1 1 mixed output", "1 1 mixd output"), "input 'mixd' is made by no layer before it"),
        (PARAM.replace("6=36", "6=35"), "35 weights don't fit 12 outputs"),
        (PARAM.replace("0=2\n", "0=0\n"), "a factor of 0 is impossible"),
        (PARAM.replace("1=1 5", "1=1 4=-233 5"), "automatic padding"),
    ],
)
def test_a_bad_param_file_says_what_and_where(param: str, message: str) -> None:
    with pytest.raises(NcnnError) as caught:
        to_onnx(param, tiny_weights()[0])
    assert message in str(caught.value)


def test_every_truncation_of_the_weights_is_refused_with_layer_and_byte() -> None:
    data = tiny_weights()[0]
    for length in range(len(data)):
        with pytest.raises(NcnnError, match=r"line 4, Convolution 'mix': the weights are cut off: \d+ bytes .* byte"):
            to_onnx(PARAM, data[:length])


def test_weights_that_are_too_many_are_refused() -> None:
    with pytest.raises(NcnnError, match="have 200 bytes, the layers use 196: the two files don't belong together"):
        to_onnx(PARAM, tiny_weights()[0] + b"\0\0\0\0")


def test_an_unknown_tag_is_refused_by_its_number() -> None:
    with pytest.raises(NcnnError, match="byte 0 of the weights has tag 0x000D4B38"):
        to_onnx(PARAM, tiny_weights(0x000D4B38)[0])


def test_a_truncated_real_file_names_the_layer(weights: Path) -> None:
    stem = weights / "REALESRGAN_ANIMAVIDEOV3_UP4X"
    with pytest.raises(NcnnError, match=r"Convolution 'Conv_\d+': the weights are cut off"):
        to_onnx(Path(f"{stem}.param").read_text(), Path(f"{stem}.bin").read_bytes()[:500_000])


def test_arrays_and_numbers_of_a_layer_are_read_by_their_kind() -> None:
    (layer,) = parse_param("7767517\n1 1\nEltwise sum 2 1 a b c 0=1 -23301=2,2.000000e-01,1.0\n")
    assert (layer.inputs, layer.outputs) == (("a", "b"), ("c",))
    assert layer.values == {0: 1, 1: (0.2, 1.0)}
