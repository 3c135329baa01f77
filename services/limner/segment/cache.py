"""Embeddings by the content of their picture, within a budget of bytes, the longest unused thrown away first.

Nothing depends on what is in it but time. Knows no model.
"""

from __future__ import annotations

import hashlib
import threading

from cachetools import LRUCache

from limner.core.picture import Picture
from limner.segment.adapter import Embedding


def picture_id(picture: Picture) -> str:
    """Return sha256 over the upright picture's shape, depth and pixels, lower-case hexadecimal."""
    digest = hashlib.sha256(f"{picture.width} {picture.height} {picture.channels} {picture.bit_depth} ".encode())
    digest.update(picture.pixels.data)
    return digest.hexdigest()


class EmbeddingCache:
    """EmbeddingCache(512 << 20); safe from any thread. An embedding larger than the whole budget is not kept."""

    def __init__(self, budget_bytes: int) -> None:
        self._lock = threading.Lock()
        self._held: LRUCache[tuple[str, str], Embedding] = LRUCache(budget_bytes, lambda each: each.size_bytes)

    def get(self, model: str, picture: str) -> Embedding | None:
        """Return the model's embedding of the picture of that id, if it is still here."""
        with self._lock:
            found: Embedding | None = self._held.get((model, picture))
            return found

    def put(self, model: str, picture: str, embedding: Embedding) -> None:
        """Keep an embedding, at the cost of those unused for longest."""
        with self._lock:
            if embedding.size_bytes <= self._held.maxsize:
                self._held[model, picture] = embedding

    @property
    def size_bytes(self) -> int:
        """How much is held."""
        with self._lock:
            return int(self._held.currsize)
