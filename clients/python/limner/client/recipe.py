"""What a picture was made from: kept in its PNG file, read from there, and made again.

The file's text `limner` holds it as JSON: version, operation, model, model_digest, seed (of this picture), and
parameters (texts by the names of the options, as in Finished). Its text `parameters` says the most of it once more, in
the form that many other programs show.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor

from limner.client import png
from limner.v1 import diffusion_pb2, progress_pb2

KEYWORD = "limner"
COMMON_KEYWORD = "parameters"


@dataclass(frozen=True)
class Recipe:
    """What one picture was made from."""

    version: str  # of the client that wrote it
    operation: str  # `generate`, `edit`, `outpaint`
    model: str
    model_digest: str  # sha256 of the model's weights; empty if unknown
    seed: int  # of this picture: alone, it gives it again
    parameters: Mapping[str, str]  # by the names of the options


def recipe_of(operation: str, finished: progress_pb2.Finished, seed: int) -> Recipe:
    """The recipe of a picture by the end of the step that made it."""
    return Recipe(
        version=importlib.metadata.version("limner-client"),
        operation=operation,
        model=finished.model,
        model_digest=finished.model_digest,
        seed=seed,
        parameters={name: finished.parameters[name] for name in sorted(finished.parameters, key=_place)},
    )


def _place(name: str) -> tuple[int, str]:
    """The prompt comes first, then the options in the contract's order, then all else by name: messages have none."""
    field = diffusion_pb2.GenerateOptions.DESCRIPTOR.fields_by_name.get(name)
    return (0 if name == "prompt" else field.number if field is not None else 1000), name


def store(data: bytes, recipe: Recipe) -> bytes:
    """A PNG file with its recipe; files of other formats come back as they are."""
    texts = {KEYWORD: json.dumps(asdict(recipe), ensure_ascii=False), COMMON_KEYWORD: _common(recipe)}
    try:
        return png.with_texts(data, texts)
    except ValueError:
        return data


def read(texts: Mapping[str, str]) -> Recipe | None:
    """The recipe among a file's texts; None if there is none that can be read."""
    try:
        found = json.loads(texts[KEYWORD])
        return Recipe(
            version=str(found["version"]),
            operation=str(found["operation"]),
            model=str(found["model"]),
            model_digest=str(found["model_digest"]),
            seed=int(found["seed"]),
            parameters={str(name): str(value) for name, value in found["parameters"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def options_of(recipe: Recipe) -> diffusion_pb2.GenerateOptions:
    """The options that make one picture like this again. Raises ValueError for values that are none."""
    texts = {**recipe.parameters, "model": recipe.model}
    try:
        written = {
            field.name: _as_json(field, texts[field.name])
            for field in diffusion_pb2.GenerateOptions.DESCRIPTOR.fields
            if texts.get(field.name)
        }
        options = json_format.ParseDict(written, diffusion_pb2.GenerateOptions())
    except (json_format.ParseError, ValueError) as error:
        raise ValueError(f"its parameters can't be read: {error}") from None
    options.seed = recipe.seed
    options.ClearField("image_count")
    return options


def _as_json(field: FieldDescriptor, text: str) -> Any:
    """A parameter's text as protobuf's JSON mapping reads it, which takes numbers as texts too."""
    if field.is_repeated or field.type == FieldDescriptor.TYPE_MESSAGE:
        return json.loads(text)
    return text == "true" if field.type == FieldDescriptor.TYPE_BOOL else text


def _common(recipe: Recipe) -> str:
    """Prompt, negative prompt, and a line of settings, under the names that other programs know."""
    known = {
        "Steps": recipe.parameters.get("step_count"),
        "Sampler": recipe.parameters.get("sampler"),
        "CFG scale": recipe.parameters.get("guidance_scale"),
        "Seed": str(recipe.seed),
        "Size": "x".join(filter(None, (recipe.parameters.get("width_px"), recipe.parameters.get("height_px")))),
        "Model": recipe.model,
        "Denoising strength": recipe.parameters.get("strength"),
        "Version": f"Limner {recipe.version}",
    }
    negative = recipe.parameters.get("negative_prompt")
    lines = [
        recipe.parameters.get("prompt", ""),
        *([f"Negative prompt: {negative}"] if negative else []),
        ", ".join(f"{name}: {value}" for name, value in known.items() if value),
    ]
    return "\n".join(lines)
