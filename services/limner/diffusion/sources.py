"""Where a diffusion model's files are on this machine, what is missing of them, and what they say that they are.

    place = find("sd3.5-medium", "stabilityai/stable-diffusion-3.5-medium", cache="")
    place.family, place.weights

A model is a diffusers folder, a single .safetensors file, or a repository on the Hugging Face hub, which is a diffusers
folder in its cache. Only safetensors are read: pickles are programs. Knows headers and configurations, no weights and
no torch.
"""

from __future__ import annotations

import functools
import json
import math
import re
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from limner.core.errors import ModelNotInstalled
from limner.diffusion.variant import Family
from limner.engine.fetch import StoreError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
LARGEST_HEADER = 100 << 20  # bytes; what safetensors itself accepts
SINGLE_FILE_PREFIX = "model.diffusion_model."

NETWORKS: dict[Family, tuple[str, ...]] = {
    "sd3": ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae"),
    "sdxl": ("unet", "text_encoder", "text_encoder_2", "vae"),
    "sd1": ("unet", "text_encoder", "vae"),
}
"""The folders of a pipeline that hold weights."""

OTHERS: dict[Family, tuple[str, ...]] = {
    "sd3": ("scheduler", "tokenizer", "tokenizer_2", "tokenizer_3"),
    "sdxl": ("scheduler", "tokenizer", "tokenizer_2"),
    "sd1": ("scheduler", "tokenizer"),
}
"""Those that hold configurations and vocabularies."""

T5_PARTS = ("text_encoder_3", "tokenizer_3")
PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")


@dataclass(frozen=True)
class Tensor:
    """What a safetensors header says of a tensor."""

    dtype: str  # as safetensors writes it: `F16`, `BF16`, `F32`, `F8_E4M3`
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Place:
    """A model that is here: a folder as diffusers writes it, or a single file."""

    name: str  # of the model, for messages
    path: Path
    family: Family

    @property
    def is_file(self) -> bool:
        """Whether it is a single file; its text encoders may be elsewhere."""
        return self.path.is_file()

    @cached_property
    def header(self) -> dict[str, Tensor]:
        """The tensors of a single file."""
        return read_header(self.path)

    def config(self, part: str) -> dict[str, Any]:
        """Return a part's configuration; empty if there is none."""
        for file in ("config.json", "scheduler_config.json"):
            if (path := self.path / part / file).is_file():
                return read_json(path)
        return {}

    def parts(self, *, t5: bool = True) -> list[str]:
        """Return the parts of the pipeline that hold weights; without T5's if it is not wanted."""
        index = read_json(self.path / "model_index.json")
        return [part for part in NETWORKS[self.family] if _is_used(index, part) and (t5 or part not in T5_PARTS)]

    def weights(self, *, t5: bool = True) -> dict[str, tuple[Path, ...]]:
        """Return the files of each part that holds weights; of a single file, itself as its only part."""
        if self.is_file:
            return {"": (self.path,)}
        return {part: tuple(weight_files(self.path / part)) for part in self.parts(t5=t5)}


def is_hub_id(where: str) -> bool:
    """Say whether this is `owner/name` rather than a path that exists."""
    return bool(HUB_ID.fullmatch(where)) and not Path(where).expanduser().exists()


def find(
    name: str,
    where: str,
    *,
    cache: str = "",
    t5: bool = True,
    mend: str = "put that there, or correct [diffusion.sources]",
) -> Place:
    """Return the model's place, with every file there that it takes. Raises ModelNotInstalled with what is missing and
    the mend, also where there is something that is no model of ours, or pickles. `mend` is that of a folder or file."""
    if is_hub_id(where):
        path = hub_folder(where, cache)
        mend = (
            f"`limner models pull {name}` fetches it, as does the server with offline = false; where the network is "
            f"closed, fetch {where} elsewhere and name its folder in [diffusion.sources]"
        )
        if path is None:
            raise _absent(name, f"{where} is not in the cache of the Hugging Face hub", mend)
    else:
        path = Path(where).expanduser()
        if not path.exists():
            raise _absent(name, f"there is no {path}", mend)
    if path.is_file():
        return Place(name, path, _family_of_file(name, path))
    return _folder(name, path, mend, t5)


def hub_folder(hub: str, cache: str = "") -> Path | None:
    """Return the newest snapshot of a repository in the hub's cache, complete or not; None if there is none. Asks
    nobody."""
    from huggingface_hub import constants, try_to_load_from_cache

    root = cache or constants.HF_HUB_CACHE
    found = try_to_load_from_cache(hub, "model_index.json", cache_dir=root)
    return Path(found).parent if isinstance(found, str) else None


def fetch(hub: str, *, cache: str = "", t5: bool = True) -> Path:
    """Bring what a model takes of a hub repository into the cache: configurations, vocabularies and safetensors, each
    weight once. What is there is not fetched again, and what broke off goes on. Returns the snapshot's folder.

    Raises StoreError that says how to mend it: a licence that the account hasn't accepted, no token, no connection, no
    such repository, a full disk."""
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        index = Path(hf_hub_download(hub, "model_index.json", cache_dir=cache or None))
        family = _family_of_index(hub, read_json(index))
        parts = [part for part in (*NETWORKS[family], *OTHERS[family]) if t5 or part not in T5_PARTS]
        kinds = ("*.json", "*.txt", "*.model", "*.safetensors")
        wanted = ["model_index.json", *(f"{part}/{kind}" for part in parts for kind in kinds)]
        # Beside the weights there often are the same ones in 16 bits, or without their running average.
        beside = ["*.fp16.safetensors", "*.fp16-*.safetensors", "*.fp16.json", "*.non_ema.*"]
        return Path(snapshot_download(hub, allow_patterns=wanted, ignore_patterns=beside, cache_dir=cache or None))
    except Exception as error:
        if (explained := _explained(hub, error)) is None:
            raise
        raise StoreError(explained) from error


def weight_files(folder: Path) -> list[Path]:
    """Return a part's safetensors, in order of their names: those of an index, or the only file. Empty if they are not
    all there."""
    for index in sorted(folder.glob("*.safetensors.index.json"), key=_variants_last):
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        if shards and all((folder / shard).is_file() for shard in shards):
            return [folder / shard for shard in shards]
    single = (path for path in folder.glob("*.safetensors") if not re.search(r"-\d{5}-of-\d{5}", path.name))
    return sorted(single, key=_variants_last)[:1]


def tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """Return what the headers of these files say."""
    found: dict[str, Tensor] = {}
    for file in files:
        found |= read_header(file)
    return found


def is_whole(path: Path) -> bool:
    """Say whether a safetensors file is as long as its header says."""
    try:
        header, length = _header(path)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        return bool(path.stat().st_size == 8 + length + end)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error):
        return False


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name. Raises ModelNotInstalled if it is none."""
    try:
        status = path.stat()
        return dict(_tensors(path, status.st_size, status.st_mtime_ns))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelNotInstalled(
            f"{path} is no safetensors file, or is cut off; only safetensors are read, as checkpoints of other formats "
            "are programs: take the .safetensors file of the same model, and fetch it anew if it is that"
        ) from error


@functools.lru_cache(maxsize=32)
def _tensors(path: Path, size: int, mtime_ns: int) -> Mapping[str, Tensor]:
    """Return a header's tensors. Of large models it takes milliseconds, and it is asked for in every request."""
    return {key: Tensor(entry["dtype"], tuple(entry["shape"])) for key, entry in _header(path)[0].items()}


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return a header's entries by tensor, and its length in bytes."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(LARGEST_HEADER, path.stat().st_size):
            raise ValueError(length)
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, length


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file says. Raises ModelNotInstalled if it can't be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelNotInstalled(f"{path} can't be read as JSON: {error}; fetch the model anew") from error
    return found if isinstance(found, dict) else {}


def family_of(header: Collection[str]) -> Family | None:
    """Return the family of a single file by its tensors' names; None if it is no checkpoint of ours."""
    if any(f"{prefix}joint_blocks.0.x_block.attn.qkv.weight" in header for prefix in (SINGLE_FILE_PREFIX, "")):
        return "sd3"
    if f"{SINGLE_FILE_PREFIX}input_blocks.0.0.weight" in header:
        return "sdxl" if f"{SINGLE_FILE_PREFIX}label_emb.0.0.weight" in header else "sd1"
    return None


def _folder(name: str, path: Path, mend: str, t5: bool) -> Place:
    if not (path / "model_index.json").is_file():
        raise _absent(
            name,
            f"{path} is no diffusers folder, as it has no model_index.json",
            "name the folder that has one, or a single .safetensors file",
        )
    index = read_json(path / "model_index.json")
    place = Place(name, path, _family_of_index(name, index))
    missing = []
    for part in place.parts(t5=t5):
        if not (path / part / "config.json").is_file():
            missing.append(f"{part}/config.json")
        elif not weight_files(path / part):
            if any(next((path / part).glob(pattern), None) for pattern in PICKLES):
                raise _absent(
                    name,
                    f"{path / part} has its weights as pickles alone, which are programs and are not read",
                    "take a copy with safetensors, or write one: "
                    "DiffusionPipeline.from_pretrained(…).save_pretrained(…, safe_serialization=True)",
                )
            missing.append(f"{part}/*.safetensors")
    others = [part for part in OTHERS[place.family] if _is_used(index, part) and (t5 or part not in T5_PARTS)]
    missing += [part for part in others if not (path / part).is_dir()]
    if missing:
        if all(part.partition("/")[0] in T5_PARTS for part in missing):
            mend += ", or set t5 = false, which reads 77 tokens of a prompt"
        raise _absent(name, f"{path} lacks {', '.join(missing)}", mend)
    return place


def _is_used(index: Mapping[str, Any], part: str) -> bool:
    entry = index.get(part)
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None


def _family_of_index(name: str, index: Mapping[str, Any]) -> Family:
    kind = str(index.get("_class_name", ""))
    if kind.startswith("StableDiffusion3"):
        return "sd3"
    if kind.startswith("StableDiffusionXL"):
        return "sdxl"
    if kind.startswith("StableDiffusion"):
        return "sd1"
    raise _absent(
        name,
        f"its folder is that of a {kind or 'pipeline without a name'}",
        "pipelines of Stable Diffusion 3, XL and 1 can be used",
    )


def _family_of_file(name: str, path: Path) -> Family:
    if (found := family_of(read_header(path))) is None:
        raise _absent(
            name,
            f"{path} has the tensors of no checkpoint that is known here",
            "single files of Stable Diffusion 3, 3.5, XL and 1 can be used, as they were published",
        )
    return found


def _variants_last(path: Path) -> tuple[bool, str]:
    """Order files so that `model.safetensors` comes before `model.fp16.safetensors`."""
    return path.name.removesuffix(".index.json").count(".") > 1, path.name


def _absent(name: str, what: str, mend: str) -> ModelNotInstalled:
    return ModelNotInstalled(f"{name} is not installed: {what}; {mend}", metadata={"model": name})


def _explained(hub: str, error: Exception) -> str | None:
    """Say what went wrong with the hub, and how to mend it; None for what is no fault of the hub or the disk."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{hub}"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{hub} is given to those alone who accepted its licence: do so at {page} with your account, and set "
            "HF_TOKEN to a token of that account (https://huggingface.co/settings/tokens), or run `hf auth login`"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the hub shows no {hub}: it was renamed, or is private; look at {page}, and set HF_TOKEN if it is private"
        )
    if isinstance(error, errors.HfHubHTTPError) and getattr(error.response, "status_code", None) == 401:
        return (
            "the hub takes no such token: set HF_TOKEN, or what `hf auth login` kept, to a valid one "
            "(https://huggingface.co/settings/tokens), or to none for models that are given to all"
        )
    if isinstance(error, errors.LocalEntryNotFoundError | ConnectionError | TimeoutError):
        return f"{hub} could not be fetched, as the hub can't be reached: {_first_line(error)}; pull again to go on"
    if isinstance(error, errors.HfHubHTTPError | errors.EntryNotFoundError):
        return f"{hub} could not be fetched: {_first_line(error)}; pull again to go on"
    if isinstance(error, OSError):
        return f"{hub} could not be fetched: {error.strerror or _first_line(error)}; make room, or set hub_cache"
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
