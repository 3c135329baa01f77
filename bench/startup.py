"""How long people wait before anything happens: `limner --help`, and all services healthy."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from bench.figures import Figures
from limner.client.local import LocalServers


def measure(*, quick: bool) -> Figures:
    """Return medians in seconds; targets: 0.4 s for the help, 5 s for all services."""
    turns = 3 if quick else 7
    command = str(Path(sys.executable).with_name("limner"))
    helps = sorted(
        _seconds(lambda: subprocess.run([command, "--help"], check=True, capture_output=True)) for _ in range(turns)
    )
    ups = sorted(_up() for _ in range(turns))
    return {
        "help_s": round(helps[turns // 2], 3),
        "target_help_s": 0.4,
        "up_s": round(ups[turns // 2], 2),
        "up_worst_s": round(ups[-1], 2),
        "target_up_s": 5,
    }


def _seconds(work: object) -> float:
    began = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - began


def _up() -> float:
    began = time.perf_counter()
    with LocalServers():
        return time.perf_counter() - began
