"""The names of samplers that requests use, by family. Knows no schedule."""

from __future__ import annotations

SD3_SAMPLERS = ("euler", "heun", "dpmpp-2m")
"""What flow-matching models take. Models that were distilled to four steps take `turbo` too."""

LEGACY_SAMPLERS = (
    "DPM++ 2M",
    "DPM++ 2M Karras",
    "DPM++ 2M SDE",
    "DPM++ 2M SDE Karras",
    "DPM++ SDE",
    "DPM++ SDE Karras",
    "DPM2",
    "DPM2 Karras",
    "DPM2 a",
    "DPM2 a Karras",
    "Euler",
    "Euler a",
    "Heun",
    "LMS",
    "LMS Karras",
    "DDIM",
    "PNDM",
    "UniPC",
    "LCM",
)
"""What SD 1.5 and SDXL take: the names that users of other programs know."""


def first(default: str, samplers: tuple[str, ...]) -> tuple[str, ...]:
    """Return the samplers with the default in front, once."""
    return (default, *(name for name in samplers if name != default))
