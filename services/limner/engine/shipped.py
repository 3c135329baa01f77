"""The weights that come with Limner itself: what is in the package `limner.weights`, and where. Knows no model.

shipped("limner-erase")    # (WeightFile("network.onnx", "package:limner.weights/limner-erase/network.onnx", ...),)
"""

from __future__ import annotations

import functools
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from limner.core.card import ModelCard, WeightFile

PACKAGE = "limner.weights"
MANIFEST = "manifest.json"


def folder_of(name: str) -> Path:
    """Return the folder of a model that ships, whether there is one or not."""
    return _root() / name


def shipped(name: str) -> tuple[WeightFile, ...]:
    """Return all files of a model that ships, by their paths in its folder, with what the manifest says of them. Reads
    no weights. Raises LookupError for a model that the manifest doesn't have."""
    files = tuple(
        WeightFile(path.removeprefix(f"{name}/"), f"package:{PACKAGE}/{path}", entry["digest"], entry["size_bytes"])
        for path, entry in sorted(_manifest().items())
        if path.startswith(f"{name}/")
    )
    if not files:
        raise LookupError(f"{_root() / MANIFEST} has no file of {name}: python -m training.manifest writes it anew")
    return files


def ships(card: ModelCard) -> bool:
    """Say whether the model's weights come with Limner."""
    return any(file.url.startswith(f"package:{PACKAGE}/") for file in card.files)


@functools.cache
def _root() -> Path:
    spec = find_spec(PACKAGE)  # does not import it
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


@functools.cache
def _manifest() -> dict[str, dict[str, Any]]:
    """Return the digest, as `sha256:` and hexadecimal, and the bytes of each file, by its path in the package."""
    found: dict[str, dict[str, Any]] = json.loads((_root() / MANIFEST).read_text(encoding="utf-8"))
    return found
