"""Writes down what ships: the sha256 and the size of every file of weights in `services/limner/weights`.

    python -m training.manifest    # after the weights of a model were replaced; the exports do it themselves

Models are only loaded from files that are those of the manifest.
"""

from __future__ import annotations

import json
from pathlib import Path

from limner.engine.store import digest

WEIGHTS = Path(__file__).parents[1] / "services" / "limner" / "weights"


def write_manifest(weights: Path = WEIGHTS) -> Path:
    """Write `manifest.json` anew from the files in the models' folders, and return its path."""
    files = sorted(path for folder in weights.iterdir() if folder.is_dir() for path in folder.rglob("*"))
    entries = {
        path.relative_to(weights).as_posix(): {"digest": digest(path), "size_bytes": path.stat().st_size}
        for path in files
        if path.is_file() and "__pycache__" not in path.parts
    }
    manifest = weights / "manifest.json"
    manifest.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    return manifest


def main() -> None:
    manifest = write_manifest()
    for path, entry in json.loads(manifest.read_text(encoding="utf-8")).items():
        print(f"{entry['digest']}  {entry['size_bytes']:>10,}  {path}")


if __name__ == "__main__":
    main()
