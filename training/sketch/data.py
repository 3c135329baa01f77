"""What limner-sketch learns from, as training reads it: cached latents and the tokens of their captions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training.sketch import text

NO_CAPTION = 0.1  # part of the pictures that are learned without one, for guidance (Ho and Salimans, 2022)


class Latents:
    """Cached latents and what they can be called. Reads `latents.npy` (n, 16, 16, 16) float16, normalised,
    `captions.json` (n lists of captions) and `split.json` (numbers of `train` and `held_out`)."""

    def __init__(self, folder: Path) -> None:
        self._latents: NDArray[np.float16] = np.load(folder / "latents.npy", mmap_mode="r")
        self.captions: list[list[str]] = json.loads((folder / "captions.json").read_text())
        split = json.loads((folder / "split.json").read_text())
        self.train, self.held_out = (np.array(split[name], np.int64) for name in ("train", "held_out"))

    def __getitem__(self, numbers: NDArray[np.int64]) -> Tensor:
        """Return latents (n, 16, 16, 16) float32."""
        return torch.from_numpy(self._latents[numbers].astype(np.float32))


class Captions:
    """The tokens of all captions, each read once."""

    def __init__(self, captions: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerFast) -> None:
        distinct = {
            caption: number for number, caption in enumerate(dict.fromkeys(c for each in captions for c in each))
        }
        self._ids = text.tokens(tokenizer, list(distinct)).to(torch.int32)
        self._of_picture = [[distinct[caption] for caption in each] for each in captions]
        self._none = text.tokens(tokenizer, [""]).to(torch.int32)[0]

    def draw(self, numbers: NDArray[np.int64], random: np.random.Generator, without: float = NO_CAPTION) -> Tensor:
        """Return the tokens of one caption of each picture, (n, POSITIONS) int64; of none, as often as `without`."""
        chosen = []
        for number in numbers:
            own = self._of_picture[number]
            chosen.append(self._none if random.random() < without else self._ids[own[int(random.integers(len(own)))]])
        return torch.stack(chosen).long()
