"""Packages, with archives that are made here."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from training import sources
from training.sources import CannotFetch, Source, archive, unpacked

NAME = "pictures"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """An npm package."""
    package = tmp_path / "made" / "package"
    package.mkdir(parents=True)
    (package / "a.txt").write_text("a picture")
    path = tmp_path / "made" / "pictures-1.0.0.tgz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(package, "package")
    return path


@pytest.fixture
def source(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    sha256 = hashlib.sha256(packed.read_bytes()).hexdigest()
    source = Source(NAME, "1.0.0", "npm", packed.name, sha256, "pictures")
    monkeypatch.setattr(sources, "SOURCES", (source,))
    return source


@pytest.fixture
def commands(packed: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is run instead of npm: a copy."""
    commands: list[list[str]] = []

    def run(command: list[str], cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        shutil.copy(packed, cwd)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(shutil, "which", lambda command: f"/usr/bin/{command}")
    return commands


def test_a_package_is_fetched_once_in_its_version(source: Source, commands: list[list[str]], tmp_path: Path) -> None:
    files = unpacked(tmp_path, NAME)
    assert (files / "a.txt").read_text() == "a picture"
    assert unpacked(tmp_path, NAME) == files
    assert commands == [["npm", "pack", "--silent", "pictures@1.0.0"]]


def test_another_archive_than_the_listed_one_is_refused(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "npm" / source.archive
    path.parent.mkdir()
    path.write_bytes(b"something else")
    with pytest.raises(CannotFetch, match="SHA-256"):
        unpacked(tmp_path, NAME)
    assert not (tmp_path / "npm" / "pictures-1.0.0" / "package").exists()


def test_an_archive_put_in_place_by_hand_needs_no_program(
    source: Source, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda command: None)
    with pytest.raises(CannotFetch, match="npm, which isn't installed") as refused:
        archive(tmp_path, source)
    path = tmp_path / "npm" / source.archive
    assert str(path) in str(refused.value)
    shutil.copy(packed, path)
    assert (unpacked(tmp_path, NAME) / "a.txt").exists()


def test_what_an_interrupted_unpacking_left_is_not_taken_for_the_package(
    source: Source, packed: Path, tmp_path: Path
) -> None:
    left = tmp_path / "npm" / "pictures-1.0.0" / "package.unpacking" / "package" / "half.txt"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    shutil.copy(packed, tmp_path / "npm")
    assert [path.name for path in unpacked(tmp_path, NAME).iterdir()] == ["a.txt"]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="Debian's packages are unpacked by Debian's own program")
def test_packages_of_debian_are_unpacked_as_on_a_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: walls\nVersion: 1\nArchitecture: all\nMaintainer: N <n@example.org>\nDescription: walls\n"
    )
    (tree / "usr").mkdir()
    (tree / "usr" / "a.jpg").write_bytes(b"a picture")
    path = tmp_path / "deb" / "walls_1_all.deb"
    path.parent.mkdir()
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, path], check=True, capture_output=True)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(sources, "SOURCES", (Source("walls", "1", "debian", path.name, sha256, "walls"),))
    assert (unpacked(tmp_path, "walls") / "usr" / "a.jpg").read_bytes() == b"a picture"


def test_every_source_has_a_digest_of_its_own() -> None:
    digests = [source.sha256 for source in sources.SOURCES]
    assert len(set(digests)) == len(digests)
    assert all(len(bytes.fromhex(digest)) == 32 for digest in digests)
