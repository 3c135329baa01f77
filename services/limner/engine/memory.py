"""How much memory there is and how much of it this process has, in bytes. Knows no model.

On Linux everything is read from /proc and the cgroups; elsewhere what can't be found out is 0, or None, and whoever
asks does without.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from limner.engine.machine import free_on_cuda
from limner.runtime.cpus import cgroups

T = TypeVar("T")

SAMPLE_EVERY_S = 0.005  # where the system doesn't keep the peak


def in_use(device: str = "cpu", root: Path = Path("/")) -> int:
    """Return the memory that this process has now: its resident set, or of a CUDA device what isn't free, less than
    nothing, as only differences of it mean something. Other devices have no memory of their own."""
    if device.startswith("cuda"):
        return -(free_on_cuda(device) or 0)
    return _field(root / "proc/self/status", "VmRSS") or 0


def free(device: str = "cpu", root: Path = Path("/")) -> int | None:
    """Return what this process could still get: of the CPU's memory what the machine has available without swapping,
    and no more than the tightest cgroup above the process, or the process's own limit, leaves. None if nobody says.

    `root` is where `proc` and `sys` are looked for."""
    if device.startswith("cuda"):
        return free_on_cuda(device)
    found = [_field(root / "proc/meminfo", "MemAvailable"), _left_by_limit(root)]
    found += [_left(directory) for directory in cgroups(root, "memory")]
    return min((each for each in found if each is not None), default=None)


def trim() -> None:
    """Give what was freed back to the system. Without it, glibc keeps a good part for later."""
    if (malloc_trim := _malloc_trim()) is not None:
        malloc_trim(0)


def collect() -> None:
    """Free what nobody refers to any more, and give it back to the system."""
    gc.collect()
    trim()


def peak_of(function: Callable[[], T], device: str = "cpu") -> tuple[T, int]:
    """Call `function` and return its result and the most memory that this process had meanwhile, as `in_use`.

    On CUDA the engine keeps what it once had, so what it has afterwards is the most."""
    if device.startswith("cuda"):
        return function(), in_use(device)
    if _reset_peak():
        result = function()
        return result, _field(Path("/proc/self/status"), "VmHWM") or 0
    with _Sampler() as sampler:
        result = function()
    return result, sampler.peak


class _Sampler:
    """Looks at the memory in use all the time, on a thread of its own."""

    def __init__(self) -> None:
        self.peak = in_use()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="limner-memory", daemon=True)

    def __enter__(self) -> _Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_EVERY_S):
            self.peak = max(self.peak, in_use())


def _reset_peak() -> bool:
    """Let the peak begin anew at what is in use now; False where the system doesn't do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _field(path: Path, name: str) -> int | None:
    """Return a line's figure, which is in KiB: `VmRSS:    1234 kB`."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    figures = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return next((int(figure) << 10 for figure in figures), None)


def _left(directory: Path) -> int | None:
    """Return what one cgroup leaves, or None if it sets no limit. Cached files count as left, as they go when needed;
    of those in active use not as many as are mapped, which may be the libraries that run."""
    for limit_name, usage_name, inactive, active, mapped in (
        ("memory.max", "memory.current", "inactive_file", "active_file", "file_mapped"),
        (
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
            "total_active_file",
            "total_mapped_file",
        ),
    ):
        try:
            limit = int((directory / limit_name).read_text())
            usage = int((directory / usage_name).read_text())
            lines = (directory / "memory.stat").read_text().splitlines()
        except (OSError, ValueError):  # no such file, or `max`
            continue
        found = {name: int(value) for name, value in (line.split() for line in lines)}
        cached = found.get(inactive, 0) + max(found.get(active, 0) - found.get(mapped, 0), 0)
        return max(limit - usage + cached, 0)
    return None


def _left_by_limit(root: Path) -> int | None:
    """Return what the limit on this process's addresses (`ulimit -v`) leaves, or None if there is none."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    size = _field(root / "proc/self/status", "VmSize")
    return None if limit == resource.RLIM_INFINITY or size is None else max(limit - size, 0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library; Windows
        return None
