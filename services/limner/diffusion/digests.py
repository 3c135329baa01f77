"""The sha256 of weight files, kept from one start to the next: hashing gigabytes takes a while. Knows no model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path

from limner.engine.store import digest

SHA256 = re.compile(r"[0-9a-f]{64}")


class Digests:
    """Digests(Path("/srv/models/digests.json")); a file that can't be written is done without."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(path.read_text())
            self._known = {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}

    def known(self, file: Path) -> str:
        """Return a file's sha256 in lower-case hexadecimal if it is known without reading it; empty otherwise. The
        hub's cache calls its files by it."""
        real = file.resolve()
        if SHA256.fullmatch(real.name) and real.parent.name == "blobs":
            return real.name
        return self._known.get(_identity(real), "")

    def of(self, files: Sequence[Path], *, read: bool = False) -> str:
        """Return the sha256 of a file; of several that of theirs, one after the other. Empty if one isn't known; with
        `read` it is hashed then."""
        found = []
        for file in files:
            if not (sha256 := self.known(file)) and read:
                sha256 = digest(file).removeprefix("sha256:")
                self._keep(_identity(file.resolve()), sha256)
            if not sha256:
                return ""
            found.append(sha256)
        return combined(found)

    def _keep(self, identity: str, sha256: str) -> None:
        with self._lock:
            self._known[identity] = sha256
            part = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
            with contextlib.suppress(OSError):
                part.parent.mkdir(parents=True, exist_ok=True)
                part.write_text(json.dumps(self._known, indent=2))
                part.replace(self._path)


def combined(digests: Sequence[str]) -> str:
    """Return what is told as the digest of several files, of their sha256 with or without `sha256:` before it."""
    sha256s = [digest.removeprefix("sha256:") for digest in digests]
    return sha256s[0] if len(sha256s) == 1 else hashlib.sha256("".join(sha256s).encode()).hexdigest()


def _identity(file: Path) -> str:
    """Return what changes when the file does: a file that was replaced must not keep its digest."""
    status = file.stat()
    return f"{file}:{status.st_size}:{status.st_mtime_ns}"
