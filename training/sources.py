"""Where the pictures come from that models learn from: `python -m training.sources [--out DIR]` fetches them.

Wallpapers are packages of Debian 12, drawings and their names are packages of npm, each of one version and one SHA-256.
These systems' own programs fetch them, `apt-get` and `npm`. An archive that was put in place by hand, in `deb/`
or `npm/` under DIR, does as well.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OUT = Path("out/training")


@dataclass(frozen=True)
class Source:
    """A package: `archive` is the file's name as its system calls it, `sha256` what that file must have."""

    name: str
    version: str
    system: Literal["debian", "npm"]
    archive: str
    sha256: str
    contains: str


class CannotFetch(Exception):
    """A package can't be had, or is not the one that it should be. Says what to do."""


SOURCES = (
    Source(
        "mate-backgrounds",
        "1.26.0-1",
        "debian",
        "mate-backgrounds_1.26.0-1_all.deb",
        "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
        "wallpapers of MATE",
    ),
    Source(
        "plasma-workspace-wallpapers",
        "4:5.27.5-2",
        "debian",
        "plasma-workspace-wallpapers_4%3a5.27.5-2_all.deb",
        "32cd18b71c8c938a18b3b351f217c02ac590e323caa3cf322fbb875ce8892f8b",
        "wallpapers of KDE Plasma",
    ),
    Source(
        "ukui-wallpapers",
        "20.04.3-1.1",
        "debian",
        "ukui-wallpapers_20.04.3-1.1_all.deb",
        "6d49be70152e6d603163458e177e501deb0be8f2916389ccbfcf59b0d7fc0262",
        "wallpapers of Ubuntu Kylin",
    ),
    Source(
        "lomiri-wallpapers-16.04",
        "20.04.0-2",
        "debian",
        "lomiri-wallpapers-16.04_20.04.0-2_all.deb",
        "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
        "wallpapers of Lomiri of 2018, photographs by its users",
    ),
    Source(
        "lomiri-wallpapers-20.04",
        "20.04.0-2",
        "debian",
        "lomiri-wallpapers-20.04_20.04.0-2_all.deb",
        "d44e89b8473aafe64a5b678f014862dc31335aaaf18665c544d985d854f1a709",
        "wallpapers of Lomiri",
    ),
    Source(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "npm",
        "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "Microsoft's Fluent emoji in 3D, 256×256 with alpha",
    ),
    Source(
        "emojibase-data",
        "17.0.0",
        "npm",
        "emojibase-data-17.0.0.tgz",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
        "names and keywords of emoji",
    ),
)


def main(arguments: list[str] | None = None) -> None:
    """Fetch and unpack every package that isn't there."""
    parser = argparse.ArgumentParser(prog="python -m training.sources", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="where all of it goes (default: %(default)s)")
    out = parser.parse_args(arguments).out
    for source in SOURCES:
        print(f"{source.name} {source.version}: {unpacked(out, source.name)}", flush=True)


def unpacked(root: Path, name: str) -> Path:
    """Return the folder with a package's files, fetched and unpacked if need be.

    For Debian's packages these are as on a system (`usr/share/…`), for npm's as in a package (`package.json`, …).
    KeyError for a name that is not in SOURCES, CannotFetch if it can't be had.
    """
    source = {source.name: source for source in SOURCES}[name]
    files = root / "raw" / name if source.system == "debian" else root / "npm" / _stem(source) / "package"
    if not files.is_dir():
        _unpack(source, archive(root, source), files)
    return files


def archive(root: Path, source: Source) -> Path:
    """Return a package's archive, fetched if it isn't there. CannotFetch if its digest is another than it should be."""
    path = root / ("deb" if source.system == "debian" else "npm") / source.archive
    if not path.exists():
        _fetch(source, path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != source.sha256:
        raise CannotFetch(f"{path} is not {source.name} {source.version}: its SHA-256 is another. Delete it.")
    return path


def _fetch(source: Source, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = {
        "debian": ["apt-get", "download", f"{source.name}={source.version}"],
        "npm": ["npm", "pack", "--silent", f"{source.name}@{source.version}"],
    }[source.system]
    by_hand = f"Or put the archive at {path} by hand."
    if shutil.which(command[0]) is None:
        raise CannotFetch(f"{source.name} needs {command[0]}, which isn't installed. {by_hand}")
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True)
    if done.returncode or not path.exists():
        raise CannotFetch(f"`{' '.join(command)}` failed: {done.stderr.strip()[-500:]} {by_hand}")


def _unpack(source: Source, packed: Path, files: Path) -> None:
    """Unpack beside the place, then move: a folder that is there is a whole one."""
    beside = files.with_name(f"{files.name}.unpacking")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    if source.system == "debian":
        subprocess.run(["dpkg-deb", "--extract", packed, beside], check=True)
        beside.rename(files)
    else:
        with tarfile.open(packed) as tar:
            tar.extractall(beside, filter="data")
        (beside / "package").rename(files)
        beside.rmdir()


def _stem(source: Source) -> str:
    return source.archive.removesuffix(".tgz")


if __name__ == "__main__":
    main()
