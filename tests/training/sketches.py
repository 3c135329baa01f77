"""Small networks of limner-sketch's kind, and a few latents to learn from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from training.sketch import text
from training.sketch.network import SIZES as SIZES_FILE
from training.sketch.network import TOKENIZER, Sizes, Sketch, best_file

SIZES = Sizes(width=64, layers=2, text_width=64, vocabulary=400)
CAPTIONS = [["a red apple", "red apple"], ["a blue car"], ["a green tree on a white background"], ["a cat"]]


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of a few captions."""
    return text.tokenizer_of([caption for each in CAPTIONS for caption in each], SIZES.vocabulary)


def sketch(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Sketch:
    """A network in which every part has a say: what begins at zero is random."""
    torch.manual_seed(seed)
    network = Sketch(SIZES, tokenizer).eval().requires_grad_(False)
    for parameter in network.transformer.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def write_latents(folder: Path, copies: int = 8) -> Path:
    """Write what `training.sketch.latents` writes: each of four pictures `copies` times, the last ones held out."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = np.random.default_rng(0).standard_normal((len(CAPTIONS), 16, 1, 1)) * np.ones((1, 1, 16, 16))
    count = copies * len(CAPTIONS)
    np.save(folder / "latents.npy", np.tile(pictures, (copies, 1, 1, 1)).astype(np.float16))
    (folder / "captions.json").write_text(json.dumps(CAPTIONS * copies))
    held_out = list(range(count - len(CAPTIONS), count))
    (folder / "split.json").write_text(json.dumps({"train": list(range(held_out[0])), "held_out": held_out}))
    return folder


def write_run(folder: Path, network: Sketch, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write what a run leaves behind of its best average."""
    tokenizer.save_pretrained(folder / TOKENIZER)
    (folder / SIZES_FILE).write_text(json.dumps(asdict(SIZES)))
    torch.save(network.state_dict(), best_file(folder))
