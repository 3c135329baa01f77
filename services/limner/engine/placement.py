"""Decides on which device, in which precision and by which engine a model runs, and says why.

Pure: everything it knows of the machine is in the `Machine` and the free memory that it is given, everything it knows
of the weights in the card and in what the importer measured of each precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from limner.core.card import ModelCard
from limner.core.errors import BadArgument, ModelNotInstalled
from limner.core.placement import Placement
from limner.engine.machine import Machine

PRECISIONS = ("auto", "fp32", "fp16", "bf16", "int8")
INSTALL_CUDA = "install ONNX Runtime for CUDA: pip uninstall onnxruntime && pip install 'limner[cuda]'"
INSTALL_AN_ENGINE = "pip install 'limner[openvino]' or 'limner[cpu]'"

LARGEST_DIFFERENCE = 1 / 255
"""The most that a precision may differ from fp32, as a mean over the filled area: one level of 8 bits."""

MEMORY_SHARE = {"fp32": 1.0, "bf16": 0.75, "fp16": 0.5, "int8": 0.5}
"""What a loaded model, or a call, takes in each precision, in proportion to fp32. LaMa in OpenVINO: bf16 0.8 loaded and
0.5 a call; a rule of thumb until the model was loaded and measured."""

USUAL_PIXELS = 512 * 512  # of the call that must fit beside the model

_NONE: Mapping[str, float] = MappingProxyType({})


def check(machine: Machine, device: str, precision: str) -> None:
    """Raise BadArgument if `device` or `precision` of the configuration can't be had here. For a server's start."""
    if device not in ("auto", *machine.devices):
        raise BadArgument(
            f"device {device!r} can't be used, this machine offers {', '.join(machine.devices)}: "
            f"{device_mend(machine, device, is_reached=machine.onnxruntime_has_cuda, install=INSTALL_CUDA)}",
            field="device",
        )
    if precision not in PRECISIONS:
        raise BadArgument(f"precision {precision!r} is unknown; give one of {', '.join(PRECISIONS)}", field="precision")
    chosen = resolve(device, machine)
    if precision != "auto" and (why := _why_not_here(precision, chosen, machine)):
        others = "auto or fp32" if chosen == "cpu" else "auto, fp32 or fp16"
        raise BadArgument(f"{precision} can't be had here: {why}; set precision to {others}", field="precision")


def resolve(device: str, machine: Machine) -> str:
    """Return the device that networks run on: the fastest one for `auto`."""
    return machine.devices[0] if device == "auto" else device


def place(
    card: ModelCard,
    machine: Machine,
    *,
    device: str = "auto",
    precision: str = "auto",
    thread_count: int = 0,
    differences: Mapping[str, float] = _NONE,
    available_bytes: int | None = None,
) -> Placement:
    """Return where `card`'s model runs.

    `differences` is `Store.differences(card)`; `available_bytes` is the device's free memory, None if it isn't known.
    Algorithms (precision `native`) run on the CPU whatever was asked for. Networks follow `device` and `precision`, or
    raise BadArgument with the mend where the model or the machine can't, ModelNotInstalled without any engine.
    """
    if card.precisions == ("native",):
        return Placement("cpu", "native", card.engine, "a classic algorithm: runs on the CPU", thread_count)
    if not machine.engines:
        raise ModelNotInstalled(f"{card.name} needs ONNX Runtime or OpenVINO: {INSTALL_AN_ENGINE}")
    check(machine, device, precision)
    chosen = resolve(device, machine)
    absent = {name: _why_not(name, card, chosen, machine, differences) for name in PRECISIONS[1:]}
    if precision == "auto":
        precision, reason = _choose(card, chosen, machine, absent, differences, available_bytes)
    elif why := absent[precision]:
        runs = [name for name, reason in absent.items() if not reason]
        raise BadArgument(
            f"{card.name} runs in {', '.join(runs) or 'nothing this machine has'}, not in {precision}: {why}; "
            "set the server's precision to one of them, or to auto"
        )
    else:
        reason = f"{precision} was asked for"
    if chosen != "cpu":
        asked = "auto" if device == "auto" else "asked for"
        where = f"{asked}: a CUDA device and onnxruntime-gpu are here"
        return Placement(chosen, precision, "onnxruntime", f"{where}; {reason}", thread_count)
    if precision == "bf16":
        return Placement(
            "cpu", "bf16", "openvino", f"{reason}; OpenVINO is the engine that runs bf16 on a CPU", thread_count
        )
    if "openvino" in machine.engines:
        return Placement("cpu", precision, "openvino", f"{reason}; OpenVINO is the faster engine on CPUs", thread_count)
    return Placement("cpu", precision, "onnxruntime", f"{reason}; OpenVINO is not installed", thread_count)


def memory_needed(card: ModelCard, precision: str, pixels: int) -> int:
    """Return what the card says that the loaded model and one call of so many pixels take."""
    return round((card.memory_estimate_bytes + card.memory_per_pixel_bytes * pixels) * MEMORY_SHARE.get(precision, 0))


def _choose(
    card: ModelCard,
    device: str,
    machine: Machine,
    absent: Mapping[str, str],
    differences: Mapping[str, float],
    available_bytes: int | None,
) -> tuple[str, str]:
    """Return the precision for `auto` and why: the fastest one, or a smaller one if that doesn't fit."""
    order = ["fp16", "fp32"] if device != "cpu" else ["bf16", "int8", "fp32"]
    offered = [name for name in order if not absent[name]]
    if not offered:
        raise BadArgument(
            f"{card.name} runs in {', '.join(card.precisions)}, which this machine can't: "
            f"{'; '.join(absent[name] for name in order)}"
        )
    slow = {"int8"} if device == "cpu" and not machine.int8_unit else set()
    best = next((name for name in offered if name not in slow), offered[0])
    faster = order[: order.index(best)]
    passed_over = [absent[name] for name in faster if absent[name] and name in card.precisions]
    passed_over += ["the CPU has no VNNI, which makes int8 fast" for name in faster if name in offered]
    passed_over = passed_over or [absent[name] for name in faster[:1]]
    reason = f"auto: {best}, because {' and '.join(_merits(best, device, machine, differences) or passed_over)}"
    doubts = passed_over if best != "fp32" else []
    if best == "bf16" and card.exports and best not in differences:  # made where the CPU has none, or left out
        doubts = [*doubts, "how far it is from fp32 was not measured"]
    if doubts:
        reason += f" ({' and '.join(doubts)})"
    smaller = [name for name in offered if MEMORY_SHARE[name] < MEMORY_SHARE[best]]
    if available_bytes is None or (needed := memory_needed(card, best, USUAL_PIXELS)) <= available_bytes or not smaller:
        return best, reason
    fitting = (name for name in smaller if memory_needed(card, name, USUAL_PIXELS) <= available_bytes)
    taken = next(fitting, smaller[-1])
    free = f"{available_bytes >> 20} MiB are free"
    return taken, f"auto: {taken}, because {best} would need about {needed >> 20} MiB and {free}"


def _merits(precision: str, device: str, machine: Machine, differences: Mapping[str, float]) -> list[str]:
    """Return what speaks for a precision other than fp32."""
    unit = {"bf16": machine.bf16_unit, "int8": machine.int8_unit}.get(precision, "") if device == "cpu" else ""
    merits = [f"the CPU has {unit}"] if unit else []
    if precision in differences and precision != "fp32":
        merits.append(f"it differs from fp32 by {_levels(differences[precision])} of 255 levels")
    return merits


def _why_not(precision: str, card: ModelCard, device: str, machine: Machine, differences: Mapping[str, float]) -> str:
    """Return why `card`'s model can't run so; empty if it can."""
    if precision not in card.precisions:
        return f"the model is not known to keep its quality in {precision}"
    if why := _why_not_here(precision, device, machine):
        return why
    if precision in ("fp16", "int8") and precision not in differences:
        return f"no {precision} file was made of it"
    if (difference := differences.get(precision, 0.0)) > LARGEST_DIFFERENCE:
        return f"{precision} differs from fp32 by {_levels(difference)} of 255 levels, more than the 1 that is accepted"
    return ""


def _why_not_here(precision: str, device: str, machine: Machine) -> str:
    """Return what keeps any network from running so on the device; empty if nothing does."""
    if device != "cpu":
        return "" if precision in ("fp32", "fp16") else f"ONNX Runtime doesn't run {precision} on {device}"
    if precision == "fp16":
        return "no engine gains by fp16 on a CPU"
    if precision != "bf16":
        return ""
    if not machine.bf16_unit:
        return "the CPU has neither AMX nor AVX512-BF16"
    if "openvino" not in machine.engines:
        return "OpenVINO is not installed (pip install 'limner[openvino]')"
    return ""


def _levels(difference: float) -> str:
    return f"{difference * 255:.2g}"


def device_mend(machine: Machine, device: str, *, is_reached: bool, install: str) -> str:
    """Return what to do about a device that can't be had. `is_reached` says whether the engine here knows CUDA at all,
    `install` how to get one that does."""
    if device == "cuda":
        return "name the device cuda:0"
    if device.startswith("cuda:") and not machine.cuda_device_count:
        return "NVIDIA's driver finds no GPU: install the driver, or give the container one"
    if device.startswith("cuda:") and not is_reached:
        return install
    return "set device to auto or one of these"
