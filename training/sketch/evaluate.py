"""Measures limner-sketch: `python -m training.sketch.evaluate [--folder DIR] [--out DIR]`, with the classifier.

Draws 200 names of emoji (always the same) with diffusers' own pipeline, and asks the classifier, which learnt from the
real pictures, what they show; it is right if one of its five likeliest emoji has that name. Then draws pairs of colour
and thing that were never drawn for training, asks the same, and which colour it is. Written in DIR/sketch are
`evaluation.json`, and to look at `evaluation.png` (what was drawn, the real one beside it) and `unseen.png`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from torch import nn

from limner.diffusion.models.limner_sketch import VARIANT
from training.device import CHOICES, device_of
from training.manifest import WEIGHTS
from training.sketch.classifier import load, ranked
from training.sketch.emoji import COLOURS, SIDE, Emoji, Pixels, Scenes, captions, colour_of, held_out, read
from training.sketch.sample import grid, save
from training.sources import OUT

PROMPTS = 200
UNSEEN = 48
SHOWN = 48  # of the prompts, in the grid
BATCH = 16
# Groups of emojibase whose names say what one would see: animals, food, places, activities, things; then faces.
THINGS, FACES = (3, 4, 5, 6, 7), (0,)

Draw = Callable[[Sequence[str]], Pixels]  # prompts to (n, h, w, 3) uint8


@dataclass(frozen=True)
class Prompt:
    """What is asked for, and the codes of the emoji that would be right."""

    text: str
    right: frozenset[str]
    colour: str | None = None


def prompts(emoji: Sequence[Emoji], count: int = PROMPTS) -> list[Prompt]:
    """Choose names of emoji, always the same: nine of ten of things, the rest of faces."""
    random = np.random.default_rng(0)
    chosen: list[Prompt] = []
    for groups, some in ((THINGS, count - count // 10), (FACES, count // 10)):
        listed = [one for one in emoji if one.group in groups]
        for index in sorted(random.permutation(len(listed))[:some]):
            name = listed[index].names[0]
            right = frozenset(one.code for one in emoji if name in one.names)
            chosen.append(Prompt(captions(listed[index])[0], right))
    return chosen


def unseen(emoji: Sequence[Emoji], count: int = UNSEEN) -> list[Prompt]:
    """Choose pairs of colour and thing that were held out of training, always the same."""
    pairs = [
        Prompt(captions(one, colour)[0], frozenset(other.code for other in emoji if other.noun == one.noun), colour)
        for one in emoji
        for colour in COLOURS
        if one.coloured and colour != one.colour and held_out(one.noun, colour, emoji)
    ]
    pairs = list({pair.text: pair for pair in pairs}.values())
    return [pairs[index] for index in sorted(np.random.default_rng(0).permutation(len(pairs))[:count])]


def judged(network: nn.Module, codes: Sequence[str], asked: Sequence[Prompt], drawn: Pixels) -> list[int | None]:
    """Return for each picture the place of the right emoji among the classifier's five likeliest, 0 first, or None."""
    places: list[int | None] = []
    for prompt, best in zip(asked, ranked(network, drawn), strict=True):
        places.append(next((place for place, index in enumerate(best) if codes[index] in prompt.right), None))
    return places


def shown_colour(picture: Pixels) -> str | None:
    """Name the colour of what stands before the background of a picture (h, w, 3), which its corners have.

    That is its dominant colour, or "black" or "white" if it has next to no colour; None if nothing stands there, or it
    is of several colours, or grey.
    """
    corners = np.stack([picture[0, 0], picture[0, -1], picture[-1, 0], picture[-1, -1]]).astype(float)
    apart = np.abs(picture - np.median(corners, axis=0)).max(axis=2)
    alpha = np.where(apart > 24, 255, 0).astype(np.uint8)
    if (seen := colour_of(np.concatenate([picture, alpha[..., None]], axis=2))) is not None or not alpha.any():
        return seen
    shown = picture[alpha > 0].astype(int)
    if np.median(np.ptp(shown, axis=1)) > 40 or 90 <= np.median(shown) <= 190:
        return None
    return "black" if np.median(shown) < 90 else "white"


def pipeline_draw(folder: Path, device: torch.device, seed: int = 0) -> Draw:
    """Return what draws with a diffusers folder, with the steps, guidance and text length that it is served with."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)

    settings = {
        "height": VARIANT.height,
        "width": VARIANT.width,
        "num_inference_steps": VARIANT.step_count,
        "guidance_scale": VARIANT.guidance_scale,
        "max_sequence_length": VARIANT.text_length,
    }

    def draw(texts: Sequence[str]) -> Pixels:
        parts = []
        for start in range(0, len(texts), BATCH):
            some = list(texts[start : start + BATCH])
            chances = [torch.Generator().manual_seed(seed + start + index) for index in range(len(some))]
            with torch.autocast(device.type, torch.bfloat16):
                drawn = pipeline(some, **settings, generator=chances, output_type="np").images
            parts.append(drawn.astype(np.float32))
        return np.asarray(np.rint(np.concatenate(parts) * 255), np.uint8)

    return draw


def evaluate(
    emoji: Sequence[Emoji], network: nn.Module, codes: Sequence[str], draw: Draw, out: Path
) -> dict[str, float]:
    """Draw, judge, and write evaluation.json and the two grids into `out`. Returns the figures, each 0 to 1."""
    asked, pairs = prompts(emoji), unseen(emoji)
    drawn, drawn_pairs = draw([prompt.text for prompt in asked]), draw([prompt.text for prompt in pairs])
    places, pair_places = judged(network, codes, asked, drawn), judged(network, codes, pairs, drawn_pairs)
    coloured = [shown_colour(picture) for picture in drawn_pairs]
    figures = {
        "top_1": _part(places, lambda place: place == 0),
        "top_5": _part(places, lambda place: place is not None),
        "unseen_top_5": _part(pair_places, lambda place: place is not None),
        "unseen_colour": float(np.mean([seen == pair.colour for seen, pair in zip(coloured, pairs, strict=True)])),
    }
    details = {
        "prompts": {prompt.text: place for prompt, place in zip(asked, places, strict=True)},
        "unseen": {
            pair.text: {"place": place, "colour": seen}
            for pair, place, seen in zip(pairs, pair_places, coloured, strict=True)
        },
    }
    (out / "evaluation.json").write_text(json.dumps({**figures, **details}, indent=1))
    shown = np.linspace(0, len(asked) - 1, min(SHOWN, len(asked))).astype(int)
    scenes, random = Scenes(emoji), np.random.default_rng(0)
    by_code = {one.code: one for one in emoji}
    real = [scenes.place(by_code[min(asked[index].right)], random).pixels for index in shown]
    save(
        grid(np.stack([_pair(drawn[index], other) for index, other in zip(shown, real, strict=True)]), 8),
        out / "evaluation.png",
    )
    save(
        grid(np.stack([_named(picture, pair.text) for picture, pair in zip(drawn_pairs, pairs, strict=True)]), 8),
        out / "unseen.png",
    )
    return figures


def _part(places: Sequence[int | None], right: Callable[[int | None], bool]) -> float:
    return float(np.mean([right(place) for place in places]))


def _pair(drawn: Pixels, real: Pixels) -> Pixels:
    return np.concatenate([cv2.resize(drawn, (SIDE, SIDE), interpolation=cv2.INTER_AREA), real], axis=1)


def _named(picture: Pixels, name: str) -> Pixels:
    """Write a name under a picture."""
    bar = np.full((18, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(
        bar,
        name.removeprefix("a ").removeprefix("an ")[:24],
        (2, 12),
        cv2.FONT_HERSHEY_SIMPLEX,
        0.35,
        (0, 0, 0),
        1,
        cv2.LINE_AA,
    )
    return np.concatenate([picture, bar])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.sketch.evaluate", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of training.sources (default: %(default)s)")
    parser.add_argument(
        "--folder", type=Path, default=WEIGHTS / "limner-sketch", help="the model (default: %(default)s)"
    )
    parser.add_argument("--device", choices=CHOICES, default="auto")
    given = parser.parse_args(arguments)
    device = device_of(given.device)
    network, codes = load(given.out / "sketch/classifier.pt")
    draw = pipeline_draw(given.folder, device)
    figures = evaluate(read(given.out), network, codes, draw, given.out / "sketch")
    print("  ".join(f"{name} {value:.1%}" for name, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
