"""Decides on which device, in which precision and by which engine a model runs, and says why.

Pure: everything it knows of the machine is in the `Machine` it is given.
"""

from __future__ import annotations

from limner.core.card import ModelCard
from limner.core.errors import BadArgument, ModelNotInstalled
from limner.core.placement import Placement
from limner.engine.machine import Machine

PRECISIONS = ("auto", "fp32", "fp16", "bf16", "int8")
INSTALL_AN_ENGINE = "pip install 'limner[openvino]' or 'limner[cpu]'"


def check(machine: Machine, device: str, precision: str) -> None:
    """Raise BadArgument if `device` or `precision` of the configuration can't be had here. For a server's start."""
    if device not in ("auto", *machine.devices):
        raise BadArgument(
            f"device {device!r} can't be used, this machine offers {', '.join(machine.devices)}: "
            f"{_device_mend(machine, device)}",
            field="device",
        )
    if precision not in PRECISIONS:
        raise BadArgument(f"precision {precision!r} is unknown; give one of {', '.join(PRECISIONS)}", field="precision")
    if precision == "bf16" and _resolve(device, machine) == "cpu" and _why_no_bf16(machine):
        raise BadArgument(
            f"bf16 can't be had here: {_why_no_bf16(machine)}; set precision to auto or fp32", field="precision"
        )


def place(
    card: ModelCard, machine: Machine, *, device: str = "auto", precision: str = "auto", thread_count: int = 0
) -> Placement:
    """Return where `card`'s model runs.

    Algorithms (precision `native`) run on the CPU whatever was asked for. Networks follow `device` and `precision`, or
    raise BadArgument with the mend where the model or the machine can't, ModelNotInstalled without any engine.
    """
    if card.precisions == ("native",):
        return Placement("cpu", "native", card.engine, "a classic algorithm: runs on the CPU", thread_count)
    if not machine.engines:
        raise ModelNotInstalled(f"{card.name} needs ONNX Runtime or OpenVINO: {INSTALL_AN_ENGINE}")
    check(machine, device, precision)
    if precision != "auto" and precision not in card.precisions:
        raise BadArgument(
            f"{card.name} runs in {', '.join(card.precisions)}, not in {precision}; set one of them, or auto",
            field="precision",
        )
    asked = "auto" if device == "auto" else "asked for"
    chosen = _resolve(device, machine)
    if chosen.startswith("cuda"):
        return _on_cuda(card, chosen, asked, precision, thread_count)
    return _on_cpu(card, machine, precision, thread_count)


def _on_cuda(card: ModelCard, device: str, asked: str, precision: str, thread_count: int) -> Placement:
    if precision not in ("auto", "fp32"):
        raise BadArgument(
            f"{card.name} is stored in fp32 and ONNX Runtime runs it so on {device}; set precision to auto or fp32",
            field="precision",
        )
    return Placement(
        device, "fp32", "onnxruntime", f"{asked}: a CUDA device and onnxruntime-gpu are here", thread_count
    )


def _on_cpu(card: ModelCard, machine: Machine, precision: str, thread_count: int) -> Placement:
    if precision == "bf16":
        return Placement(
            "cpu", "bf16", "openvino", "asked for; OpenVINO is the engine that runs bf16 on a CPU", thread_count
        )
    if precision not in ("auto", "fp32"):
        raise BadArgument(f"{precision} isn't run on the CPU; set precision to auto, fp32 or bf16", field="precision")
    why_no_bf16 = (
        "the model is not known to keep its quality in bf16" if "bf16" not in card.precisions else _why_no_bf16(machine)
    )
    if precision == "auto" and not why_no_bf16:
        return Placement(
            "cpu", "bf16", "openvino", f"auto: the CPU has {machine.bf16_unit}, and OpenVINO uses it", thread_count
        )
    if "fp32" not in card.precisions:
        raise BadArgument(
            f"{card.name} runs in {', '.join(card.precisions)}, which this machine can't", field="precision"
        )
    why = "fp32 was asked for" if precision == "fp32" else f"auto: fp32, because {why_no_bf16}"
    if "openvino" in machine.engines:
        return Placement("cpu", "fp32", "openvino", f"{why}; OpenVINO is the faster engine on CPUs", thread_count)
    return Placement("cpu", "fp32", "onnxruntime", f"{why}; OpenVINO is not installed", thread_count)


def _resolve(device: str, machine: Machine) -> str:
    return machine.devices[0] if device == "auto" else device


def _why_no_bf16(machine: Machine) -> str:
    """What is missing for bf16 on the CPU; empty if nothing is."""
    if not machine.bf16_unit:
        return "the CPU has neither AMX nor AVX512-BF16"
    if "openvino" not in machine.engines:
        return "OpenVINO is not installed (pip install 'limner[openvino]')"
    return ""


def _device_mend(machine: Machine, device: str) -> str:
    if device == "cuda":
        return "name the device cuda:0"
    if not device.startswith("cuda:"):
        return "set device to auto or one of these"
    if not machine.cuda_device_count:
        return "NVIDIA's driver finds no GPU: install the driver, or give the container one"
    if not machine.onnxruntime_has_cuda:
        return "install ONNX Runtime for CUDA: pip uninstall onnxruntime && pip install 'limner[cuda]'"
    return "set device to auto or one of these"
