"""A folder of LoRAs. They are read when they are first used, and again when their files have changed. Knows no model,
and no torch before one is read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from limner.core.errors import UnknownModel
from limner.diffusion.parameters import LoraUse

if TYPE_CHECKING:
    from limner.diffusion.lora.lora import Lora, ScaledLora

_IN_FOLDERS = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""What diffusers and peft call their files: there the folder's name tells them apart."""


Version = tuple[int, int, int] | None  # of a file: inode, size and time; None: gone


@dataclass(frozen=True)
class _Kept:
    lora: Lora
    version: Version


class LoraStore:
    """LoRAs by name: `style` is `style.safetensors`, or a folder `style` as diffusers or peft save it.

    May be used by several threads. The folder is looked at in every call: files may come, change and go at any time.
    It keeps those that were used last, as many as fit `byte_limit`; whoever holds one can go on using it.
    """

    def __init__(self, folder: Path, *, byte_limit: int = 2 << 30) -> None:
        self._folder = folder
        self._byte_limit = byte_limit
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._keeping = threading.Lock()
        self._reading = threading.Lock()

    def names(self) -> list[str]:
        """Return the names that there are, sorted."""
        return sorted(self._paths())

    def path(self, name: str) -> Path:
        """Return a LoRA's file. Raises UnknownModel, which lists the names."""
        paths = self._paths()
        if name not in paths:  # looked up, never joined to a path: names cannot lead out of the folder
            raise UnknownModel(name, available=paths, kind="LoRA")
        return paths[name]

    def get(self, name: str) -> Lora:
        """Return a LoRA, which is read if it isn't kept. Raises UnknownModel, and BadArgument as `read_lora`."""
        with self._reading:
            path = self.path(name)
            version = _version(path)
            with self._keeping:
                kept = self._kept.get(name)
                if kept is not None and kept.version == version:
                    self._kept.move_to_end(name)
                    return kept.lora
            from limner.diffusion.lora.file import read_lora  # torch: not before a model needs it

            try:
                lora = read_lora(path, name)
            except FileNotFoundError as error:  # gone since it was listed
                raise UnknownModel(name, available=self._paths(), kind="LoRA") from error
            self._keep(name, _Kept(lora, version))
            return lora

    def uses(self, loras: Sequence[LoraUse]) -> tuple[ScaledLora, ...]:
        """Return what a request names, with the scales it gives. Raises as `get`."""
        if not loras:
            return ()
        from limner.diffusion.lora.lora import ScaledLora

        return tuple(ScaledLora(self.get(each.name), each.scale) for each in loras)

    def load(self, name: str) -> None:
        """Read a LoRA, so that its first use need not. Raises as `get`."""
        self.get(name)

    def unload(self, name: str) -> None:
        """Let go of a LoRA. Requests that use it go on; the next that names it reads it again."""
        with self._keeping:
            self._kept.pop(name, None)

    def is_loaded(self, name: str) -> bool:
        """Whether a LoRA is kept, as its file is now."""
        with self._keeping:
            kept = self._kept.get(name)
        path = self._paths().get(name)
        return kept is not None and path is not None and kept.version == _version(path)

    def _keep(self, name: str, kept: _Kept) -> None:
        with self._keeping:
            self._kept[name] = kept
            self._kept.move_to_end(name)
            while len(self._kept) > 1 and sum(each.lora.byte_count for each in self._kept.values()) > self._byte_limit:
                self._kept.popitem(last=False)

    def _paths(self) -> dict[str, Path]:
        if not self._folder.is_dir():
            return {}
        paths: dict[str, Path] = {}
        for entry in self._folder.iterdir():
            if entry.name.startswith("."):
                continue  # half a copy, or a file system's own
            if entry.suffix == ".safetensors" and entry.is_file():
                paths[entry.stem] = entry
            elif entry.is_dir():
                found = next((entry / name for name in _IN_FOLDERS if (entry / name).is_file()), None)
                if found:
                    paths.setdefault(entry.name, found)
        return paths


def _version(path: Path) -> Version:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
