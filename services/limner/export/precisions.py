"""Writes a network that fills holes in int8 and fp16, and measures how far each precision is from fp32.

Knows a network only by its ONNX file: `image` and `mask` in, one output, as `limner.inpaint.network` feeds it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from limner.core.placement import Placement
from limner.engine.session import open_session
from limner.export.photographs import Example


def write_int8(source: Path, target: Path, calibration: Sequence[Example]) -> None:
    """Write `source` with its convolutions in int8, the ranges of what goes through them taken from `calibration`.

    Weights are signed and have a scale for each channel; activations are unsigned, with one for each tensor.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rest = iter(calibration)

        def get_next(self) -> Example | None:
            return next(self._rest, None)

    with _quiet():
        quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "ConvTranspose"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def write_fp16(source: Path, target: Path) -> None:
    """Write `source` with weights and activations in float16, inputs and outputs in float32 as before."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _quiet():
        onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def fills(network: Path, precision: str, engine: str, examples: Sequence[Example]) -> list[NDArray[np.float32]]:
    """Return what `network` puts out for each example on the CPU, (1, 3, height, width), cut to [0, 1]."""
    session = open_session(network, Placement("cpu", precision, engine, "to measure it"))
    return [np.clip(session.run(dict(example))[0], 0, 1) for example in examples]


def difference(
    found: Sequence[NDArray[np.float32]], expected: Sequence[NDArray[np.float32]], examples: Sequence[Example]
) -> float:
    """Return the mean absolute difference in the holes, 0 to 1; NaN if anything in them is."""
    apart = [
        np.abs(one - other)[np.broadcast_to(example["mask"] > 0, one.shape)]
        for one, other, example in zip(found, expected, examples, strict=True)
    ]
    return float(np.concatenate(apart).mean(dtype=np.float64))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the tools' advice on standard error, which is for people who write networks."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
