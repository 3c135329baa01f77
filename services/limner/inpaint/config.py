"""What the inpaint server can be told."""

from __future__ import annotations

from dataclasses import dataclass

from limner.runtime.config import ServerConfig, within


@dataclass(frozen=True)
class InpaintConfig(ServerConfig):
    """[inpaint] of the configuration, and LIMNER_INPAINT_*."""

    port: int = 7401
    default_model: str = "lama"  # while it isn't installed: patchmatch, which needs no weights
    max_batch: int = 0  # parts that a model fills at once, of one call or several; 0: the model's own number; 1: one

    def __post_init__(self) -> None:
        super().__post_init__()
        within("max_batch", self.max_batch, 0, 64)
