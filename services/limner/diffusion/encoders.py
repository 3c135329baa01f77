"""Where the text encoders and tokenizers of an SD3 model are: in its folder, in its single file, or beside that one.

A folder of text encoders holds `clip_l.safetensors`, `clip_g.safetensors` and, if long prompts matter,
`t5xxl….safetensors` as Stability AI publishes them, and the folders `tokenizer`, `tokenizer_2` and `tokenizer_3` of any
diffusers folder of the family; or all of it is a diffusers folder. Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from limner.core.errors import ModelNotInstalled
from limner.diffusion.sources import Place, Tensor, read_header, weight_files

FILES = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
"""Each encoder's published file, without its ending; T5's has further letters behind it."""

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", "text_encoder_3": "tokenizer_3"}

HUB_TOKENIZERS = {
    "text_encoder": "openai/clip-vit-large-patch14",
    "text_encoder_2": "openai/clip-vit-large-patch14",
    "text_encoder_3": "google/t5-v1_1-xxl",
}
"""Repositories with the same vocabularies, which need no account."""


@dataclass(frozen=True)
class Encoder:
    """One text encoder and its tokenizer."""

    name: str  # `text_encoder`, `text_encoder_2`, `text_encoder_3`
    path: Path  # a folder with a configuration and weights, or a safetensors file in the published names
    prefix: str  # of its tensors in that file
    tokenizer: Path  # a folder

    @property
    def files(self) -> list[Path]:
        """Its weights."""
        return [self.path] if self.path.is_file() else weight_files(self.path)

    @property
    def header(self) -> dict[str, Tensor]:
        """Its tensors, without the prefix."""
        found = {key: tensor for file in self.files for key, tensor in read_header(file).items()}
        return {key.removeprefix(self.prefix): found[key] for key in found if key.startswith(self.prefix)}


def find_encoders(place: Place, folder: str = "", *, cache: str = "", t5: bool = True) -> dict[str, Encoder]:
    """Return the text encoders by their names; without T5's where there is none, or it is not wanted.

    `folder` is where those of single files are; if empty, `text_encoders` beside the file, as in the published
    repositories. Raises ModelNotInstalled if one of the CLIPs is missing, or a tokenizer."""
    if not place.is_file:
        names = [name for name in FILES if name in place.parts(t5=t5)]
        return {name: Encoder(name, place.path / name, "", place.path / TOKENIZERS[name]) for name in names}
    root = Path(folder).expanduser() if folder else place.path.parent / "text_encoders"
    found = {}
    for name in FILES:
        if name == "text_encoder_3" and not t5:
            continue
        if (at := _weights(place, root, name)) is not None:
            found[name] = Encoder(name, *at, find_vocabulary(place.name, root, name, cache))
        elif name != "text_encoder_3":
            raise ModelNotInstalled(
                f"{place.name} is not installed: {place.path.name} holds no text encoders, and {root} lacks "
                f"{FILES[name]}.safetensors; name the folder with clip_l.safetensors and clip_g.safetensors in "
                "[diffusion] text_encoders",
                metadata={"model": place.name},
            )
    return found


def find_vocabulary(name: str, root: Path, encoder: str, cache: str = "") -> Path:
    """Return the folder of a text encoder's tokenizer for a model that has none of its own: in `root`, or in the hub's
    cache. Raises ModelNotInstalled, with how to mend it."""
    if (root / TOKENIZERS[encoder]).is_dir():
        return root / TOKENIZERS[encoder]
    from huggingface_hub import constants, try_to_load_from_cache

    hub = HUB_TOKENIZERS[encoder]
    found = try_to_load_from_cache(hub, "tokenizer_config.json", cache_dir=cache or constants.HF_HUB_CACHE)
    if isinstance(found, str):
        return Path(found).parent
    raise ModelNotInstalled(
        f"{name} is not installed: there is no {root / TOKENIZERS[encoder]}, and {hub} is not in the cache of the "
        f"Hugging Face hub; copy the tokenizers' folders of any pipeline of its family to {root}, or fetch that "
        f"repository's: hf download {hub} --include '*.json' '*.txt' '*.model'",
        metadata={"model": name},
    )


def _weights(place: Place, root: Path, name: str) -> tuple[Path, str] | None:
    prefix = f"text_encoders.{FILES[name]}.transformer."
    if any(key.startswith(prefix) for key in place.header):
        return place.path, prefix
    if (root / name / "config.json").is_file() and weight_files(root / name):
        return root / name, ""
    if (exact := root / f"{FILES[name]}.safetensors").is_file():
        return exact, ""
    if name == "text_encoder_3":  # t5xxl_fp16 rather than t5xxl_fp8_e4m3fn
        others = sorted(root.glob(f"{FILES[name]}*.safetensors"), key=lambda path: ("fp8" in path.name, path.name))
        return (others[0], "") if others else None
    return None
