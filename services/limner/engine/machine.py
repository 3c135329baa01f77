"""What this machine has that a network can run on: CPU instructions, CUDA devices, installed engines.

Knows no model. What cannot be found out counts as absent: a wrong guess would cost a crash, a missed one only speed.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import platform
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
    compute_capabilities: tuple[tuple[int, int], ...] = ()  # of each CUDA device: (8, 9) is Ada
    torch_has_cuda: bool = False  # torch for CUDA rather than torch for CPUs
    torch_has_mps: bool = False  # torch, and a GPU of Apple's

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

    @property
    def torch_devices(self) -> tuple[str, ...]:
        """The devices torch reaches, fastest first."""
        cuda = tuple(f"cuda:{index}" for index in range(self.cuda_device_count)) if self.torch_has_cuda else ()
        return (*cuda, *(("mps",) if self.torch_has_mps else ()), "cpu")

    def compute_capability(self, device: str) -> tuple[int, int]:
        """Return the compute capability of `cuda:N`; (0, 0) if it isn't known."""
        index = int(device.removeprefix("cuda:"))
        return self.compute_capabilities[index] if index < len(self.compute_capabilities) else (0, 0)


@functools.cache
def this_machine() -> Machine:
    """Look once. onnxruntime is imported only where there is a CUDA device for it."""
    engines = frozenset(name for name in ("onnxruntime", "openvino") if _is_installed(name))
    cuda_device_count = count_cuda_devices()
    has_cuda = False
    if cuda_device_count and "onnxruntime" in engines:
        import onnxruntime

        has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return Machine(
        engines,
        read_cpu_flags(),
        cuda_device_count,
        has_cuda,
        read_compute_capabilities(cuda_device_count),
        torch_has_cuda=_torch_has("libtorch_cuda.so", "torch_cuda.dll"),
        torch_has_mps=sys.platform == "darwin" and platform.machine() == "arm64" and _is_installed("torch"),
    )


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # without an origin it is a folder that an uninstall left


def _torch_has(*libraries: str) -> bool:
    """Say whether the installed torch has one of these libraries. To ask torch itself would take seconds."""
    if not _is_installed("torch"):
        return False
    spec = importlib.util.find_spec("torch")
    folders = spec.submodule_search_locations if spec else None
    return any((Path(folder) / "lib" / library).exists() for folder in folders or () for library in libraries)


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


def read_compute_capabilities(device_count: int) -> tuple[tuple[int, int], ...]:
    """Ask NVIDIA's driver, of which `count_cuda_devices` found so many devices."""
    if not device_count:
        return ()
    driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    return tuple(
        (_attribute(driver, index, 75), _attribute(driver, index, 76))  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...
        for index in range(device_count)
    )


def _attribute(driver: ctypes.CDLL, index: int, attribute: int) -> int:
    """Return a device's attribute; 0 if the driver doesn't say."""
    device, value = ctypes.c_int(), ctypes.c_int(0)
    if driver.cuDeviceGet(ctypes.byref(device), index):
        return 0
    driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return value.value


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
