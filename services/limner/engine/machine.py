"""What this machine has that a network can run on: CPU instructions, CUDA devices, installed engines.

Knows no model. What cannot be found out counts as absent: a wrong guess would cost a crash, a missed one only speed.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

BF16_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}
"""The flags of /proc/cpuinfo that mean matrices are multiplied in bf16 by the hardware, best first."""

INT8_FLAGS = {"amx_int8": "AMX", "avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI"}
"""Those that mean this for int8. Without one of them int8 is hardly faster than fp32."""


@dataclass(frozen=True)
class Machine:
    """Machine(engines={"onnxruntime", "openvino"}, cpu_flags={"avx2", "avx512_bf16"}, cuda_device_count=0)"""

    engines: frozenset[str]  # `onnxruntime`, `openvino`: the ones that can be imported
    cpu_flags: frozenset[str] = frozenset()
    cuda_device_count: int = 0  # as the driver counts them, after CUDA_VISIBLE_DEVICES
    onnxruntime_has_cuda: bool = False  # onnxruntime-gpu rather than onnxruntime

    @property
    def bf16_unit(self) -> str:
        """What multiplies bf16 in this CPU, for people; empty if nothing does."""
        return next((name for flag, name in BF16_FLAGS.items() if flag in self.cpu_flags), "")

    @property
    def int8_unit(self) -> str:
        """What multiplies int8 in this CPU, for people; empty if nothing does."""
        return next((name for flag, name in INT8_FLAGS.items() if flag in self.cpu_flags), "")

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices networks can run on, fastest first."""
        cuda = tuple(f"cuda:{index}" for index in range(self.cuda_device_count)) if self.onnxruntime_has_cuda else ()
        return (*cuda, "cpu")


@functools.cache
def this_machine() -> Machine:
    """Look once. onnxruntime is imported only where there is a CUDA device for it."""
    engines = frozenset(name for name in ("onnxruntime", "openvino") if _is_installed(name))
    cuda_device_count = count_cuda_devices()
    has_cuda = False
    if cuda_device_count and "onnxruntime" in engines:
        import onnxruntime

        has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return Machine(engines, read_cpu_flags(), cuda_device_count, has_cuda)


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # without an origin it is a folder that an uninstall left


def read_cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the instruction sets Linux names (x86 `flags`); nothing on other systems."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2] for line in lines if line.partition(":")[0].strip() == "flags")
    return frozenset(next(flags, "").split())


def count_cuda_devices() -> int:
    """Ask NVIDIA's driver; 0 without one."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def free_on_cuda(device: str) -> int | None:
    """Ask NVIDIA's driver for the free memory of `cuda:N` in bytes; None if it doesn't say. Makes no context there.

    The management library counts all of the machine's devices, the driver only those of CUDA_VISIBLE_DEVICES, so the
    device is looked up by its identity."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        management = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return None
    identity = (ctypes.c_ubyte * 16)()
    ordinal, handle, memory = ctypes.c_int(), ctypes.c_void_p(), (ctypes.c_ulonglong * 3)()  # total, free, used
    if (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(ordinal), int(device.removeprefix("cuda:")))
        or driver.cuDeviceGetUuid(ctypes.byref(identity), ordinal)
        or management.nvmlInit_v2()
        or management.nvmlDeviceGetHandleByUUID(
            f"GPU-{uuid.UUID(bytes=bytes(identity))}".encode(), ctypes.byref(handle)
        )
        or management.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    ):
        return None
    return int(memory[1])
