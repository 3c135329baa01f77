"""What the device of a diffusion server has, as far as plans ask. Knows no model; torch only where it is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hardware:
    """Hardware("cuda:0", free_bytes=24 << 30, cpu_free_bytes=64 << 30, bf16="the device's matrix units")
    Hardware("cpu", free_bytes=16 << 30, cpu_free_bytes=16 << 30)     # no bf16: fp32"""

    device: str  # `cpu`, `cuda:N`, `mps`
    free_bytes: int  # of the device's memory, as much as models may take
    cpu_free_bytes: int  # of main memory; on `cpu` and `mps` it is the same memory
    bf16: str = ""  # what makes bf16 fast there, for people; empty: nothing does
    fp8: bool = False  # whether it multiplies 8-bit floats
    nf4: bool = False  # whether 4-bit weights are worth it there
