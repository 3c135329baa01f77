"""Reads the tensors out of a checkpoint, whatever its format, and runs nothing that is in it.

Four formats, told apart by their first bytes: zip files of torch (state dicts, Lightning's checkpoints, whole modules),
TorchScript archives, torch's older files that are no zip, and safetensors. Knows no network.

Pickles are programs. The one in a zip is read by an unpickler of our own, to which tensors and plain containers are
real; whatever else it names becomes an inert object that swallows what it is given, and is never looked up. The code in
a TorchScript archive isn't opened. For the older files torch's own `weights_only` does the same, and is stricter.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from limner.engine.fetch import StoreError

_ZIP = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, pickled
_MOST_PLACES = 200_000  # that are looked through for tensors; a real checkpoint has some thousands
_DEEPEST = 50
_WRAPPERS = ("state_dict", "generator", "model")
"""Under which names LaMa's and ZITS' training code save a state dict among other things; the first there counts."""

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class BadCheckpoint(StoreError):
    """The file is no checkpoint, a damaged one, or not this network's. The message says which."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by the names that its state dict has, on the CPU, in the file's own types.

    Raises BadCheckpoint, and OSError if the file can't be read.
    """
    with path.open("rb") as file:
        start = file.read(len(_LEGACY))
        file.seek(0)
        try:
            if start.startswith(_ZIP):
                found = _read_zip(file)
            elif start == _LEGACY:
                found = _read_legacy(file)
            elif start[8:9] == b"{":
                found = _read_safetensors(path)
            else:
                raise BadCheckpoint("it is no checkpoint: neither torch's nor safetensors")
        except BadCheckpoint as error:
            raise BadCheckpoint(f"{path.name}: {error}") from error.__cause__
    if not found:
        raise BadCheckpoint(f"{path.name}: there are no tensors in it")
    return found


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise BadCheckpoint(f"it is a damaged safetensors file ({error})") from error


def _read_legacy(file: BinaryIO) -> dict[str, Tensor]:
    try:
        root = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BadCheckpoint(
            "it is damaged, or holds other things than tensors, and none of these are run; save its state dict anew, "
            "by torch.save or as safetensors"
        ) from error
    except Exception as error:  # whatever torch's reader stumbles over
        raise BadCheckpoint(f"it is cut off or damaged ({error})") from error
    return {name: tensor for name, tensor in _named(_unwrapped(root)).items() if isinstance(tensor, Tensor)}


def _read_zip(file: BinaryIO) -> dict[str, Tensor]:
    try:
        with zipfile.ZipFile(file) as archive:
            return _read_archive(archive, file.seek(0, io.SEEK_END))
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
        raise BadCheckpoint(f"the archive is cut off or damaged ({error})") from error


def _read_archive(archive: zipfile.ZipFile, size_bytes: int) -> dict[str, Tensor]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise BadCheckpoint("it is a zip file, but no checkpoint of torch: no data.pkl in it")
    root = roots[0]
    ours = {name.removeprefix(root): entry for name, entry in entries.items() if name.startswith(root)}
    read = [entry for name, entry in ours.items() if name in ("data.pkl", "byteorder") or name.startswith("data/")]
    if sum(entry.file_size for entry in read) > size_bytes:  # torch compresses none of these
        raise BadCheckpoint(f"it claims to hold more than its {size_bytes} bytes can")
    if "byteorder" in ours and archive.read(ours["byteorder"]) != b"little":
        raise BadCheckpoint("its numbers are in big-endian order, which isn't read")
    try:
        # As the values come out of a pickle, anything may be wrong with them.
        value = _Unpickler(io.BytesIO(archive.read(ours["data.pkl"])), encoding="utf-8").load()
    except BadCheckpoint:
        raise
    except Exception as error:
        raise BadCheckpoint(f"its data.pkl is damaged ({error})") from error
    is_script = "constants.pkl" in ours  # then attributes' names are parameters' names, all of them
    named = _named(value if is_script else _unwrapped(value))
    return dict(_realise(named, archive, ours))


@dataclass(frozen=True)
class _Storage:
    dtype: object
    key: object
    count: object


@dataclass(frozen=True)
class _Stored:
    """A tensor as its pickle describes it. Nothing of it was checked."""

    storage: object
    offset: object
    size: object
    stride: object


def _realise(
    named: dict[str, object], archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]
) -> Iterator[tuple[str, Tensor]]:
    read: dict[tuple[str, torch.dtype], Tensor] = {}
    for name, stored in named.items():
        if not isinstance(stored, _Stored):
            continue
        storage = stored.storage
        if not isinstance(storage, _Storage):
            raise BadCheckpoint(f"{name} has no values")
        dtype, key = storage.dtype, storage.key
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise BadCheckpoint(f"{name} is of a kind of tensor that isn't read")
        if (key, dtype) not in read:
            read[key, dtype] = _read_storage(name, dtype, storage.count, archive, entries.get(f"data/{key}"))
        try:
            yield name, torch.as_strided(read[key, dtype], *cast(Any, (stored.size, stored.stride, stored.offset)))
        except (RuntimeError, TypeError, ValueError) as error:
            raise BadCheckpoint(f"{name} does not fit into what is stored of it ({stored.size})") from error


def _read_storage(
    name: str, dtype: torch.dtype, count: object, archive: zipfile.ZipFile, entry: zipfile.ZipInfo | None
) -> Tensor:
    if entry is None:
        raise BadCheckpoint(f"the values of {name} are not in it")
    if not isinstance(count, int) or count * dtype.itemsize != entry.file_size:
        raise BadCheckpoint(f"{name} claims {count} values of {dtype}, {entry.file_size} bytes are there")
    if not count:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(archive.read(entry)), dtype=dtype)


class _Inert:
    """What stands for a class or function that isn't known here: any use of it is swallowed."""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        made = object.__new__(cls)
        made.__dict__["state"] = {}
        return made

    def __init__(self, *_: object, **__: object) -> None: ...

    def __call__(self, *_: object, **__: object) -> _Inert:
        return _Inert()

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__["state"].update(state)

    def __setitem__(self, key: object, value: object) -> None:
        self.__dict__["state"][key] = value

    def append(self, _: object) -> None: ...

    def extend(self, _: Iterable[object]) -> None: ...


class _Mapping(dict[Any, Any]):
    """An OrderedDict without what is hung onto it."""

    def __setstate__(self, _: object) -> None: ...


class _Unpickler(pickle.Unpickler):
    """Makes tensors' descriptions, plain containers, and inert objects. Imports nothing."""

    def find_class(self, module: str, name: str, /) -> Any:
        # A pickle can set attributes of what it is given: functions are made anew, and `__setstate__` guards classes.
        match module, name:
            case "torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2":
                return lambda storage, offset, size, stride, *_: _Stored(storage, offset, size, stride)
            case "torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state":
                return lambda data, *_: data
            case "torch._tensor", "_rebuild_from_type_v2":
                return lambda rebuild, kind, arguments, state: rebuild(*arguments)
            case "collections", "OrderedDict":
                return _Mapping
            case "torch", "Size":
                return tuple
            case "torch", storage if storage in _STORAGES:
                return _STORAGES[storage]
        return _Inert

    def persistent_load(self, pid: Any, /) -> object:
        if isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage":
            return _Storage(dtype=pid[1], key=pid[2], count=pid[4])
        return _Inert()


def _unwrapped(value: object) -> object:
    """Return the state dict itself, out of what training code saves with it."""
    while isinstance(value, dict):
        inner = next((value[name] for name in _WRAPPERS if any(_children(value.get(name)))), None)
        if inner is None:
            break
        value = inner
    return value


def _children(value: object) -> Iterator[tuple[str, object]]:
    """Yield what a dict, or an object's state, holds by name. A module's three dicts count as the module itself."""
    held = value.__dict__["state"] if isinstance(value, _Inert) else value
    if isinstance(held, dict):
        for name, inner in held.items():
            if name in ("_parameters", "_buffers", "_modules"):
                yield from _children(inner)
            else:
                yield str(name), inner


def _named(root: object) -> dict[str, object]:
    """Return every value in nested dicts and objects by the path that leads to it, such as `model.1.weight`."""
    found: dict[str, object] = {}

    def look(value: object, path: str, depth: int) -> None:
        for name, inner in _children(value):
            found[f"{path}{name}"] = inner
            if depth > _DEEPEST or len(found) > _MOST_PLACES:
                raise BadCheckpoint("it is nested deeper, or holds more, than any network")
            look(inner, f"{path}{name}.", depth + 1)

    look(root, "", 0)
    return found
