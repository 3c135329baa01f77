"""What the inpaint server can be told."""

from __future__ import annotations

from dataclasses import dataclass

from limner.runtime.config import ServerConfig


@dataclass(frozen=True)
class InpaintConfig(ServerConfig):
    """[inpaint] of the configuration, and LIMNER_INPAINT_*."""

    port: int = 7401
    default_model: str = "patchmatch"
