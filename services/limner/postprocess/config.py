"""What the postprocess server can be told."""

from __future__ import annotations

from dataclasses import dataclass

from limner.runtime.config import ServerConfig, within


@dataclass(frozen=True)
class PostprocessConfig(ServerConfig):
    """[postprocess] of the configuration, and LIMNER_POSTPROCESS_*."""

    port: int = 7403
    default_model: str = "realesrgan-animevideov3"  # while it isn't installed: lanczos
    max_output_pixels: int = 128_000_000  # of an enlarged picture; more is refused before work
    tile_memory_bytes: int = 512 << 20  # what a network may take for one tile; smaller tiles take less, and longer

    def __post_init__(self) -> None:
        super().__post_init__()
        within("max_output_pixels", self.max_output_pixels, 1, 1 << 31)
        within("tile_memory_bytes", self.tile_memory_bytes, 1 << 20, 1 << 40)
