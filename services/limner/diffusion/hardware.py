"""What the device of a diffusion server has, as far as plans ask. Knows no model; torch only where it is measured."""

from __future__ import annotations

import functools
import sys
import time
from dataclasses import dataclass

from limner.core.errors import BadArgument
from limner.engine import memory
from limner.engine.machine import Machine
from limner.engine.placement import device_mend

INSTALL_CUDA = "install torch for CUDA, see https://pytorch.org/get-started/locally"
BF16_CAPABILITY = (8, 0)  # of CUDA devices; Ampere, 2020
FP8_CAPABILITY = (8, 9)  # Ada, 2022
WORTH_IT = 1.1  # times as fast as fp32 must bf16 be on a CPU
PROBE = (512, 1536)  # rows and columns of what is multiplied, half of a picture of 512 pixels in SD3.5 Medium


@dataclass(frozen=True)
class Hardware:
    """Hardware("cuda:0", free_bytes=24 << 30, cpu_free_bytes=64 << 30, bf16="the device multiplies it")
    Hardware("cpu", free_bytes=16 << 30, cpu_free_bytes=16 << 30)     # no bf16: fp32"""

    device: str  # `cpu`, `cuda:N`, `mps`
    free_bytes: int  # of the device's memory, as much as models may take
    cpu_free_bytes: int  # of main memory; on `cpu` and `mps` it is the same memory
    bf16: str = ""  # what makes bf16 fast there, for people; empty: nothing does
    cpu_bf16: str = ""  # the same of the CPU, which may run the text encoders
    fp8: bool = False  # whether it multiplies 8-bit floats
    doubt: str = ""  # for people: what of this is assumed, or why bf16 isn't fast


def hardware(
    machine: Machine, device: str = "auto", *, memory_bytes: int | None = None, measure: bool = False
) -> Hardware:
    """Return what `device` has; `auto` is the fastest one that torch reaches.

    `memory_bytes` stands for the device's free memory: for plans of what would be. Then a CUDA device needn't be here,
    and is taken for one of 2020, which has bf16 and no fp8. With `measure`, a CPU that has bf16 has it only if it is
    found to be faster than fp32: that imports torch and takes a moment, once. Raises BadArgument for a device that
    isn't here.
    """
    devices = machine.torch_devices
    chosen = devices[0] if device == "auto" else device
    assumed = chosen not in devices and chosen.startswith("cuda") and memory_bytes is not None
    if chosen not in devices and not assumed:
        mend = device_mend(machine, chosen, is_reached=machine.torch_has_cuda, install=INSTALL_CUDA)
        raise BadArgument(
            f"device {chosen!r} can't be used, torch reaches {', '.join(devices)} here: {mend}",
            field="device",
        )
    main_memory = _free("cpu")
    cpu_bf16, doubt = _cpu_bf16(machine, measure)
    if not chosen.startswith("cuda"):
        free = main_memory if memory_bytes is None else memory_bytes
        if chosen == "mps":
            return Hardware(chosen, free, free)
        return Hardware(chosen, free, free, bf16=cpu_bf16, cpu_bf16=cpu_bf16, doubt=doubt)
    capability = BF16_CAPABILITY if assumed else machine.compute_capability(chosen)
    has_bf16 = capability >= BF16_CAPABILITY
    return Hardware(
        chosen,
        free_bytes=_free(chosen) if memory_bytes is None else memory_bytes,
        cpu_free_bytes=main_memory,
        bf16="the device multiplies it" if has_bf16 else "",
        cpu_bf16=cpu_bf16,
        fp8=capability >= FP8_CAPABILITY,
        doubt="there is no such device here: taken for one of 2020"
        if assumed
        else ""
        if has_bf16
        else "the device doesn't multiply bf16",
    )


@functools.cache
def bf16_speedup() -> float:
    """Return how many times as fast as in fp32 this CPU multiplies matrices in bf16, by torch with its threads."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        rows, columns = PROBE
        values, weight = torch.ones(rows, columns, dtype=dtype), torch.ones(columns, columns, dtype=dtype)
        took = []
        for _ in range(4):  # the first one prepares
            began = time.perf_counter()
            torch.nn.functional.linear(values, weight)
            took.append(time.perf_counter() - began)
        return min(took)

    with torch.inference_mode():
        return seconds(torch.float32) / seconds(torch.bfloat16)


def _cpu_bf16(machine: Machine, measure: bool) -> tuple[str, str]:
    """Return what makes bf16 fast on the CPU, or why nothing does."""
    if not machine.bf16_unit:
        return "", "the CPU has neither AMX nor AVX512-BF16"
    if not measure:
        return f"the CPU has {machine.bf16_unit}", ""
    speedup = bf16_speedup()
    if speedup < WORTH_IT:
        return "", f"bf16 is {speedup:.1f} times as fast here, in spite of {machine.bf16_unit}"
    return f"the CPU has {machine.bf16_unit} and is {speedup:.1f} times as fast with it", ""


def _free(device: str) -> int:
    free = memory.free(device)
    return sys.maxsize if free is None else free
