"""The photographs: `python -m training.photographs [--out DIR]` prepares them and writes training/ATTRIBUTION.md.

photographs.toml lists them. Each is kept as an array whose longer side is at most 2000 pixels (averaged over areas, so
that neither noise nor JPEG's blocks are learnt), which a training run maps into memory and cuts crops from.

Not to be learnt from, ever: what a model is judged by, which are assets/, the photographs of
services/limner/export/photographs and those of scikit-image. They aren't in the list.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.sources import OUT, SOURCES, unpacked

LONGER_SIDE = 2000
LIST = Path(__file__).with_name("photographs.toml")
ATTRIBUTION = Path(__file__).with_name("ATTRIBUTION.md")

Kind = Literal["photograph", "artwork"]
Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class Photograph:
    """A picture, whose it is and under which licence. `path` is that in its package, `shows` what a caption says.

    `kind` is "artwork" for paintings and rendered scenes without writing, for edges that photographs lack. `split` is
    "heldout" for those that choose the best checkpoint.
    """

    name: str
    title: str
    author: str
    licence: str
    package: str
    path: str
    sha256: str
    kind: Kind
    split: Split
    shows: str


def main(arguments: list[str] | None = None) -> None:
    """Prepare every photograph, and write down whose they are."""
    parser = argparse.ArgumentParser(prog="python -m training.photographs", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="where the packages are or go (default: %(default)s)")
    out = parser.parse_args(arguments).out
    for photograph in photographs():
        print(prepare(out, photograph), flush=True)
    ATTRIBUTION.write_text(attribution(), encoding="utf-8")


def photographs(split: Split | None = None, kind: Kind | None = None) -> list[Photograph]:
    """Return the list, or those of a split or a kind, in the list's order."""
    listed = [Photograph(**entry) for entry in tomllib.loads(LIST.read_text(encoding="utf-8"))["picture"]]
    return [one for one in listed if split in (None, one.split) and kind in (None, one.kind)]


def load(root: Path, split: Split | None, kind: Kind | None = None) -> list[NDArray[np.uint8]]:
    """Return the pixels of `photographs(split, kind)`: (height, width, 3) RGB uint8, mapped from files, read only.

    What isn't prepared is prepared first. `root` is the folder of training/sources.py.
    """
    return [np.load(prepare(root, photograph), mmap_mode="r") for photograph in photographs(split, kind)]


def prepare(root: Path, photograph: Photograph) -> Path:
    """Return the file of a photograph's array, written if it isn't there.

    ValueError if the package holds another picture than the list's.
    """
    path = root / "photographs" / f"{photograph.name}-{photograph.sha256[:8]}-{LONGER_SIDE}.npy"
    if not path.exists():
        original = unpacked(root, photograph.package) / photograph.path
        if hashlib.sha256(original.read_bytes()).hexdigest() != photograph.sha256:
            raise ValueError(f"{original} is another picture than {LIST.name} lists: their SHA-256 differ")
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.stem}.{os.getpid()}.npy")
        np.save(beside, pixels(original))
        beside.replace(path)
    return path


def pixels(path: Path) -> NDArray[np.uint8]:
    """Read a picture as (height, width, 3) RGB uint8, reduced so that its longer side is at most LONGER_SIDE."""
    with Image.open(path) as picture:
        whole = picture.convert("RGB")
    if max(whole.size) > LONGER_SIDE:
        scale = LONGER_SIDE / max(whole.size)
        whole = whole.resize((round(whole.width * scale), round(whole.height * scale)), Image.Resampling.BOX)
    return np.asarray(whole)


# ---- whose they are ------------------------------------------------------------------------------------------------

HEAD = """# Whose pictures Limner's models learnt from

Written by `python -m training.photographs`; don't edit it. Every work keeps its own licence, which is not that of
Limner's code; none of them is part of the repository or of a wheel. The originals are in the packages named.

"""

DRAWINGS = """
## Drawings

| what | authors | licence | package |
|---|---|---|---|
| Fluent emoji in 3D, from which `limner-sketch` learnt | Microsoft Corporation | MIT | `@lobehub/fluent-emoji-3d` |
| names and keywords of emoji, from which its captions are made | Miles Johnson | MIT | `emojibase-data` |
"""


def attribution() -> str:
    """Return the text of ATTRIBUTION.md."""
    packages = "".join(
        f"| `{source.name}` | {source.version} | {source.system} | {source.contains} | `{source.sha256}` |\n"
        for source in SOURCES
    )
    pictures = "".join(
        f"| {one.title} | {one.author} | {one.licence} | `{one.package}` | `{one.path}` | {one.kind} | {one.split} "
        f"| `{one.sha256}` |\n"
        for one in photographs()
    )
    return (
        f"{HEAD}## Packages\n\n| package | version | of | contains | SHA-256 of the archive |\n|---|---|---|---|---|\n"
        f"{packages}\n## Photographs and artworks\n\n"
        "`heldout` ones were not learnt from: they choose the best checkpoint. KDE's wallpapers name their licence\n"
        "in their metadata, which is the one given here; their package says GPL-2.0-or-later for all of them.\n\n"
        "| title | author | licence | package | file | kind | use | SHA-256 |\n|---|---|---|---|---|---|---|---|\n"
        f"{pictures}{DRAWINGS}"
    )


if __name__ == "__main__":
    main()
