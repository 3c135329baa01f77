"""Embeddings kept by content, within a budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from limner.core.picture import Picture
from limner.segment.cache import EmbeddingCache, picture_id


@dataclass(frozen=True)
class Kept:
    size_bytes: int


def test_an_embedding_is_found_again() -> None:
    cache, kept = EmbeddingCache(100), Kept(10)
    cache.put("grabcut", "a", kept)
    assert cache.get("grabcut", "a") is kept
    assert cache.get("grabcut", "b") is None


def test_models_do_not_share_embeddings() -> None:
    cache = EmbeddingCache(100)
    cache.put("one", "a", Kept(10))
    assert cache.get("other", "a") is None


def test_the_longest_unused_goes_when_the_budget_is_spent() -> None:
    cache = EmbeddingCache(100)
    for name in ("a", "b"):
        cache.put("grabcut", name, Kept(40))
    cache.get("grabcut", "a")
    cache.put("grabcut", "c", Kept(40))
    assert cache.get("grabcut", "b") is None
    assert cache.get("grabcut", "a") is not None
    assert cache.size_bytes == 80


def test_what_is_larger_than_the_budget_is_not_kept_and_drives_nothing_out() -> None:
    cache = EmbeddingCache(100)
    cache.put("grabcut", "a", Kept(40))
    cache.put("grabcut", "huge", Kept(101))
    assert cache.get("grabcut", "huge") is None
    assert cache.get("grabcut", "a") is not None


def test_a_budget_of_nothing_keeps_nothing() -> None:
    cache = EmbeddingCache(0)
    cache.put("grabcut", "a", Kept(1))
    assert cache.get("grabcut", "a") is None


def test_the_id_is_of_pixels_and_shape_alone() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    same = Picture(pixels.copy(), icc_profile=b"profile", source_format="jpeg")
    assert picture_id(Picture(pixels)) == picture_id(same)
    assert picture_id(Picture(pixels)) != picture_id(Picture(pixels.reshape(4, 2, 3)))
    assert picture_id(Picture(pixels)) != picture_id(Picture(pixels.astype(np.uint16)))
    assert picture_id(Picture(pixels)) != picture_id(Picture(pixels[::-1]))
    assert len(picture_id(Picture(pixels))) == 64
