"""What the segment server can be told."""

from __future__ import annotations

from dataclasses import dataclass

from limner.runtime.config import ServerConfig


@dataclass(frozen=True)
class SegmentConfig(ServerConfig):
    """[segment] of the configuration, and LIMNER_SEGMENT_*."""

    port: int = 7402
    default_model: str = "grabcut"  # for clicks and boxes
    default_background_model: str = "saliency-grabcut"  # for RemoveBackground
    embedding_cache_bytes: int = 512 << 20  # what pictures leave in memory for the next click on them; 0: nothing
