"""Figures of merit from samples, and how they are printed."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

Figures = Mapping[str, float | int | str | bool]


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the sample below which `percent` of all lie, interpolated."""
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def median_ms(samples: Sequence[float]) -> float:
    """Return the median of seconds in milliseconds."""
    return round(statistics.median(samples) * 1000, 2)


def p95_ms(samples: Sequence[float]) -> float:
    """Return the 95th percentile of seconds in milliseconds."""
    return round(percentile(samples, 95) * 1000, 2)


def table(title: str, figures: Figures) -> str:
    """Return one benchmark's figures as lines of text."""
    width = max(len(key) for key in figures)
    return "\n".join([title, *(f"  {key:<{width}}  {value}" for key, value in figures.items())])


def rows_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as a table in Markdown. Columns are all keys, in the order in which they come; absent values are
    empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, ["---"] * len(columns), *([str(row.get(key, "")) for key in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def cpu_name() -> str:
    """Return what the CPU calls itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
