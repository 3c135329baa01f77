"""LoRAs for the transformer and the text encoders of SD3, as diffusers, peft, kohya's sd-scripts, OneTrainer and
ComfyUI save them. Knows no model: whether layers fit one shows when they are attached."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from limner.core.errors import BadArgument
from limner.diffusion.lora.lora import Lora, LowRank
from limner.diffusion.lora.names import Layer, Part, layers_of

_DOWN = re.compile(r"(.+?)\.(?:lora_down|lora_A|lora\.down|lora_linear_layer\.down)(?:\.\w+)?\.weight")
_UP = re.compile(r"(.+?)\.(?:lora_up|lora_B|lora\.up|lora_linear_layer\.up)(?:\.\w+)?\.weight")
_ALPHA = re.compile(r"(.+)\.alpha")
_OTHERS = {
    "DoRA": re.compile(r"\.(dora_scale|lora_magnitude_vector)"),
    "LoHa": re.compile(r"\.hada_"),
    "LoKr": re.compile(r"\.lokr_"),
    "OFT": re.compile(r"\.b?oft_"),
}
"""Adapters of other kinds by their keys. Read as plain LoRAs, they would be something that nobody trained."""

_UNETS = re.compile(r"lora_unet_(down_blocks|up_blocks|mid_block|input_blocks|middle_block|output_blocks)|unet\.")
_SHOWN = 5  # keys that an error names


def read_lora(path: Path, name: str | None = None) -> Lora:
    """Return what a .safetensors file holds, under `name`, or the file's own.

    A file `adapter_model.safetensors`, as peft saves it, is read with the `adapter_config.json` beside it. Raises
    BadArgument for damaged files, names of layers that are not known, and adapters of other kinds, such as DoRA.
    """
    name = path.stem if name is None else name
    content = path.read_bytes()  # not mapped: the file may be written anew while the LoRA is in use
    config = path.parent / "adapter_config.json"
    try:
        tensors = load(content)
        if path.name == "adapter_model.safetensors" and config.is_file():
            metadata = json.loads(config.read_text())
        else:
            metadata = json.loads(_header(content).get("lora_adapter_metadata", "{}"))
    except (SafetensorError, KeyError, ValueError) as error:
        raise _bad(
            name, f"is no whole safetensors file, or its configuration no JSON ({error}); get it again"
        ) from error
    return lora_of(tensors, name, metadata)


def lora_of(tensors: Mapping[str, torch.Tensor], name: str, metadata: Mapping[str, Any] | None = None) -> Lora:
    """Return the LoRA that tensors are, by their keys. `metadata` is peft's configuration: `lora_alpha`, or, as
    diffusers writes it, `transformer.lora_alpha`. Raises as `read_lora`."""
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, Mapping):
        raise _bad(name, "has a configuration that is no object of JSON; get it again")
    _refuse_other_kinds(sorted(tensors), name, metadata)
    downs, ups, alphas = (_by_layer(tensors, pattern) for pattern in (_DOWN, _UP, _ALPHA))
    components: dict[str, dict[str, LowRank]] = {}
    used: set[str] = set()
    for layer in sorted(downs.keys() & ups.keys()):
        down, up = downs[layer], ups[layer]
        if not _is_linear(down, up):
            raise _bad(name, f"has a layer {layer} of {_shape(down)} and {_shape(up)}, which is no linear one")
        for place in layers_of(layer, inputs=down.shape[1], outputs=up.shape[0]):
            try:
                scale = _scale(alphas.get(layer), metadata, place, len(down))
            except (AttributeError, TypeError, ValueError, RuntimeError, re.error) as error:
                raise _bad(name, f"has a configuration that says nothing of {layer}: {error}") from error
            layers = components.setdefault(place.component, {})
            if place.path in layers:
                raise _bad(
                    name, f"changes {place.component}.{place.path} twice, under two names; {layer} is one of them"
                )
            layers[place.path] = LowRank(down, _part(up, place.part), scale)
            used.add(layer)
    unknown = [key for key in sorted(tensors) if _layer(key) not in used]
    if unknown:
        raise _bad(
            name,
            f"has {len(unknown)} of its {len(tensors)} keys that Limner does not know, or one half of them: "
            f"{_some(unknown)}; take one for SD3 models, trained with diffusers, peft, sd-scripts or OneTrainer",
        )
    if not components:
        raise _bad(name, "holds nothing; get it again")
    return Lora(name, components)


def _refuse_other_kinds(keys: Sequence[str], name: str, metadata: Mapping[str, Any]) -> None:
    for kind, pattern in _OTHERS.items():
        found = [key for key in keys if pattern.search(key)]
        if found:
            raise _bad(name, f"is a {kind}, and Limner applies plain LoRAs alone: {_some(found)}")
    if any(key.endswith("use_dora") and value for key, value in metadata.items()):
        raise _bad(name, "is a DoRA, says its configuration, and Limner applies plain LoRAs alone")
    found = [key for key in keys if _UNETS.match(key)]
    if found:
        raise _bad(name, f"was made for SD 1.5 or SDXL, and LoRAs are for SD3 models: {_some(found)}")


def _by_layer(tensors: Mapping[str, torch.Tensor], pattern: re.Pattern[str]) -> dict[str, torch.Tensor]:
    return {found[1]: tensor for key, tensor in tensors.items() if (found := pattern.fullmatch(key))}


def _layer(key: str) -> str:
    found = next((found for pattern in (_DOWN, _UP, _ALPHA) if (found := pattern.fullmatch(key))), None)
    return found[1] if found else ""


def _is_linear(down: torch.Tensor, up: torch.Tensor) -> bool:
    floats = down.is_floating_point() and up.is_floating_point()
    return floats and down.ndim == up.ndim == 2 and down.shape[0] == up.shape[1] > 0


def _scale(alpha: torch.Tensor | None, metadata: Mapping[str, Any], place: Layer, rank: int) -> float:
    """Return alpha by rank: of the file, or as peft finds them in a configuration, which names layers by the ends of
    their paths. What says nothing was saved with both of them equal."""

    def option(name: str) -> Any:
        return metadata.get(f"{place.component}.{name}", metadata.get(name))

    if alpha is not None:
        return float(alpha) / rank
    chosen = option("lora_alpha")
    for pattern, value in (option("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", place.path):
            chosen = value
            break
    if chosen is None:
        return 1.0
    return float(chosen) / (math.sqrt(rank) if option("use_rslora") else rank)


def _part(up: torch.Tensor, part: Part) -> torch.Tensor:
    third = len(up) // 3
    match part:
        case "all":
            return up
        case "first third":
            return up[:third]
        case "second third":
            return up[third : 2 * third]
        case "last third":
            return up[2 * third :]
        case "halves swapped":
            return up.roll(len(up) // 2, 0)


def _header(content: bytes) -> dict[str, str]:
    """Return a safetensors file's own metadata."""
    size = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    return metadata


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{', '.join(keys[:_SHOWN])}{more}"


def _shape(tensor: torch.Tensor) -> str:
    return f"{'×'.join(map(str, tensor.shape))} {str(tensor.dtype).removeprefix('torch.')}"


def _bad(name: str, message: str) -> BadArgument:
    return BadArgument(f"LoRA {name!r} {message}", field="options.loras", metadata={"lora": name})
