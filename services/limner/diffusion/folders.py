"""Networks and tokenizers out of folders as diffusers and transformers write them. Asks no network for anything, and
knows neither families nor which models there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import diffusers
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from limner.core.errors import ModelNotInstalled
from limner.diffusion.sources import weight_files

FAULTS = ("missing_keys", "unexpected_keys", "mismatched_keys")
"""What both libraries tell of weights that don't fit, and would fill up with noise."""

WEIGHTS_VARIANT = re.compile(r"\.(\w+)\.safetensors$")
"""`model.fp16.safetensors` is the variant `fp16`."""

transformers.logging.disable_progress_bar()  # they would write to the server's log
diffusers.utils.logging.disable_progress_bar()


def read_network(kind: Any, path: Path, **options: Any) -> Any:
    """Return a network of the class `kind`, of whichever variant of its weights is there, the plain one first; only
    safetensors are read. `options` are `from_pretrained`'s. Raises ModelNotInstalled for weights that are missing or
    don't fit the configuration."""
    variant = next((match[1] for file in weight_files(path) if (match := WEIGHTS_VARIANT.search(file.name))), None)
    try:
        model, found = kind.from_pretrained(
            path, variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelNotInstalled(
            f"{path} can't be loaded as {kind.__name__}: {_short(error)}; fetch the model anew, or take one of the "
            "published architecture"
        ) from error
    if faults := {kind: sorted(map(str, found[kind])) for kind in FAULTS if found[kind]}:
        told = ", ".join(f"{len(keys)} {kind.replace('_', ' ')}, such as {keys[0]}" for kind, keys in faults.items())
        raise ModelNotInstalled(f"{path} does not fit its configuration: {told}; fetch the model anew")
    return model


def read_tokenizer(path: Path, **options: Any) -> PreTrainedTokenizerBase:
    """Return a tokenizer. `options` are `from_pretrained`'s. Raises ModelNotInstalled if there is none."""
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, **options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelNotInstalled(
            f"{path} holds no tokenizer that can be read: {_short(error)}; fetch the model anew"
        ) from error


def _short(error: Exception) -> str:
    lines = " ".join(str(error).split())
    return lines if len(lines) < 300 else f"{lines[:300]}…"
