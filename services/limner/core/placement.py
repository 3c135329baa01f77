"""Where a model runs, in what precision, by which engine, and why. Knows no engine: it only names them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """A decision with its reason.

    Placement("cpu", "native", "opencv", "a classic algorithm: runs on the CPU")
    Placement("cpu", "bf16", "openvino", "auto: the CPU has AVX512-BF16")
    """

    device: str  # `cpu`, `cuda:N`, `mps`
    precision: str  # `fp32`, `fp16`, `bf16`, `int8`; `native` for algorithms that work on the picture's own integers
    engine: str  # `onnxruntime`, `openvino`, `torch`, `opencv`, `numpy`
    reason: str  # for people
    thread_count: int = 0  # CPU threads of one run; 0: as many as the process may use
