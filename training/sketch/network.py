"""What is trained of limner-sketch here: text encoders and transformer. The autoencoder is `training.sketch.vae`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from training.sketch import text, transformer

SIZES, TOKENIZER = "sizes.json", "tokenizer"  # files in the folder of a run


@dataclass(frozen=True)
class Sizes:
    """What a network is made of."""

    width: int = 256
    layers: int = 6
    text_width: int = text.WIDTH
    vocabulary: int = text.VOCABULARY


class Sketch(nn.Module):
    """The parts that learn together."""

    def __init__(self, sizes: Sizes, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.text_encoder = text.encoder(tokenizer, sizes.text_width)
        self.text_encoder_2 = text.encoder(tokenizer, sizes.text_width)
        self.transformer = transformer.network(sizes.width, sizes.layers, 2 * sizes.text_width)

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return text and pooled text of tokens (n, POSITIONS), as `text.read`."""
        return text.read((self.text_encoder, self.text_encoder_2), ids)


def prepare(folder: Path, captions: Sequence[Sequence[str]], sizes: Sizes) -> tuple[Sizes, PreTrainedTokenizerFast]:
    """Return sizes and tokenizer of the run in `folder`; one that begins writes its own there."""
    if not (folder / SIZES).exists():
        distinct = sorted({caption for each in captions for caption in each})
        text.tokenizer_of(distinct, sizes.vocabulary).save_pretrained(folder / TOKENIZER)
        (folder / SIZES).write_text(json.dumps(asdict(sizes)))
    return _prepared(folder)


def _prepared(folder: Path) -> tuple[Sizes, PreTrainedTokenizerFast]:
    sizes = Sizes(**json.loads((folder / SIZES).read_text()))
    return sizes, PreTrainedTokenizerFast.from_pretrained(folder / TOKENIZER)


def best_file(folder: Path) -> Path:
    """Return where the best average of the run in `folder` is kept."""
    return folder / "best.pt"


def best(folder: Path) -> tuple[Sketch, PreTrainedTokenizerFast]:
    """Return the best average of the run in `folder`, and its tokenizer."""
    sizes, tokenizer = _prepared(folder)
    sketch = Sketch(sizes, tokenizer).eval().requires_grad_(False)
    sketch.load_state_dict(torch.load(best_file(folder), map_location="cpu", weights_only=True))
    return sketch, tokenizer
