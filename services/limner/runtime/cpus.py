"""How many CPUs this process may use: what its container allows, not what the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path


def cpu_count(root: Path = Path("/")) -> int:
    """Return the CPUs this process may use, at least 1: its affinity, and no more than its cgroup's quota rounded up.

    `root` is where `proc` and `sys` are looked for.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(root)
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def _cgroup_quota(root: Path) -> float | None:
    """Return the CPUs that the tightest cgroup above this process allows, or None if none sets a limit."""
    quotas = [quota for directory in cgroups(root, "cpu") if (quota := _quota(directory)) is not None]
    return min(quotas, default=None)


def cgroups(root: Path, controller: str) -> list[Path]:
    """Return the directories of this process's cgroup and of those above it, in version 2's and version 1's places.

    `controller` is `cpu` or `memory`, which version 1 keeps apart.
    """
    directories = []
    for base, name in ((root / "sys/fs/cgroup", ""), (root / "sys/fs/cgroup" / controller, controller)):
        path = _own_cgroup(root, name)
        directories += [base / part for part in (path, *path.parents)]
    return directories


def _own_cgroup(root: Path, controller: str) -> Path:
    """Return this process's cgroup for a controller, relative to where cgroups are mounted."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return Path()
    for line in lines:  # `0::/path` in version 2, `4:cpu,cpuacct:/path` in version 1
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return Path(path.lstrip("/"))
    return Path()


def _quota(directory: Path) -> float | None:
    """Return the CPUs that one cgroup allows, or None."""
    try:
        if (directory / "cpu.max").exists():
            quota, period = (directory / "cpu.max").read_text().split()
        else:
            quota = (directory / "cpu.cfs_quota_us").read_text()
            period = (directory / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # no such file, or `max`
        return None
