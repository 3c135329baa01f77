"""The pictures that limner-sketch learns from, and what they are called: `python -m training.sketch.emoji [--out DIR]`.

They show Microsoft's Fluent emoji on backgrounds, and parts of photographs. Written in DIR/sketch are `scenes.npy`
(n, 128, 128, 3) uint8, `captions.json` (for each scene a list of what it can be called), `scenes.json` (what each
shows) and `split.json` (which are trained on, and which a score is computed from).

Reads two npm packages: the drawings (`@lobehub/fluent-emoji-3d`, 256×256 with alpha, a file a code point) and their
names (`emojibase-data`). Left out are people and their hands, skin tones, flags, signs, letters and clocks. Things of
one dominant colour are also drawn in other colours, and captions then name the colour; some pairs of both are
never drawn (`held_out`), to see later whether the model can put them together.

On plain backgrounds a thing always has the same place and size: a network this small, trained for hours, learns what a
thing looks like or where it may be, and people ask for what it looks like. In photographs it may be anywhere.
"""

from __future__ import annotations

import argparse
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training import photographs, sources

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Backdrop = tuple[Pixels, str]  # a photograph (h, w, 3) and what it shows: "green grass"

SIDE = 128  # of a scene, in pixels
OFTEN = 6
LARGE = 0.86  # part of the side that a thing has on a plain background

# Lightness, chroma and hue (degrees) in OKLCh that a thing's dominant colour is turned to.
COLOURS = {
    "red": (0.57, 0.21, 27.0),
    "orange": (0.73, 0.17, 57.0),
    "yellow": (0.86, 0.17, 93.0),
    "green": (0.66, 0.18, 142.0),
    "blue": (0.58, 0.17, 255.0),
    "purple": (0.52, 0.19, 303.0),
    "pink": (0.76, 0.14, 355.0),
    "brown": (0.46, 0.07, 52.0),
    "black": (0.27, 0.01, 270.0),
    "white": (0.93, 0.01, 90.0),
}
# RGB of plain backgrounds.
BACKGROUNDS = {
    "red": (205, 45, 45),
    "orange": (240, 140, 40),
    "yellow": (245, 215, 70),
    "green": (75, 165, 80),
    "blue": (60, 110, 205),
    "light blue": (165, 210, 240),
    "dark blue": (25, 40, 95),
    "purple": (130, 70, 175),
    "pink": (240, 160, 190),
    "brown": (120, 80, 50),
    "grey": (140, 140, 140),
    "black": (15, 15, 15),
}

# Numbers are emojibase's.
_USED = {0, 3, 4, 5, 6, 7}  # faces, animals and plants, food, places, activities, things
_HEARTS = 14
_SCENERY = {49, 50, 53, 59}  # maps, places, sky and weather
_GENERAL = ("flower", "fruit", "bird", "vegetable", "insect", "tree", "boat", "train")
_COLOURED_GROUPS = {3, 4, 5, 6, 7}
_MIRRORED_GROUPS = {3, 4}
_UNUSED_LABELS = re.compile(r"o’clock|-thirty|\bleft\b|\bright\b|japanese.*button|globe with meridians|hollow")


@dataclass(frozen=True, eq=False)
class Emoji:
    """A drawing and its names.

    `names` begins with the usual one and has each once. `colour` is the dominant colour if there is one, and `noun` the
    usual name without a colour's word; `coloured` says whether it makes sense in other colours.
    """

    code: str
    group: int
    names: tuple[str, ...]
    general: str | None  # a wider name: "ball" of a soccer ball
    noun: str
    colour: str | None
    coloured: bool
    pixels: Pixels = field(repr=False)  # (256, 256, 4) uint8: RGB, not multiplied by the alpha beside it


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture, all captions that fit it, and what it shows (`code` is None for a photograph alone)."""

    pixels: Pixels  # (SIDE, SIDE, 3) uint8
    captions: list[str]
    code: str | None = None
    colour: str | None = None
    background: str = "white"


def read(root: Path) -> list[Emoji]:
    """Read the emoji that are worth learning, in emojibase's order. `root` is the folder of training/sources.py."""
    drawings, names = (sources.unpacked(root, name) for name in ("@lobehub/fluent-emoji-3d", "emojibase-data"))
    files = {file.stem.replace("-fe0f", ""): file for file in sorted((drawings / "assets").glob("*.webp"))}
    entries = json.loads((names / "en/data.json").read_text())
    shortcodes = [
        json.loads((names / f"en/shortcodes/{source}.json").read_text()) for source in ("emojibase", "github")
    ]
    emoji = []
    for entry in entries:
        file = files.get(entry["hexcode"].lower().replace("-fe0f", ""))
        if file is not None and _wanted(entry):
            codes = [_listed(source.get(entry["hexcode"])) for source in shortcodes]
            emoji.append(_emoji(entry, [code for some in codes for code in some], _drawing(file)))
    return emoji


def backdrops(root: Path, split: photographs.Split) -> list[Backdrop]:
    """Return the photographs that things stand in, and what they show. `root` is the folder of training/sources.py."""
    listed = photographs.photographs(split)
    return [(pixels, one.shows) for pixels, one in zip(photographs.load(root, split), listed, strict=True)]


def held_out(noun: str, colour: str, emoji: Sequence[Emoji]) -> bool:
    """Say whether things of this name are never drawn in this colour: a twelfth of those that don't exist as is."""
    natural = any(one.noun == noun and one.colour == colour for one in emoji)
    return not natural and zlib.crc32(f"{colour} {noun}".encode()) % 12 == 0


class Scenes:
    """Draws scenes at random: an emoji, perhaps in another colour, on white, on a plain colour or in a photograph.

    Sides of photographs are at least `SIDE`; without any, all backgrounds are plain.
    """

    def __init__(self, emoji: Sequence[Emoji], backdrops: Sequence[Backdrop] = ()) -> None:
        self.emoji = list(emoji)
        self.backdrops = list(backdrops)
        self.others: dict[str, list[str]] = {
            one.code: [
                colour for colour in COLOURS if colour != one.colour and not held_out(one.noun, colour, self.emoji)
            ]
            for one in self.emoji
            if one.coloured
        }

    def draw(self, index: int, random: np.random.Generator, *, recolour: bool | None = None) -> Scene:
        """Draw emoji number `index`: a third in another colour where that makes sense, or as `recolour` says."""
        emoji = self.emoji[index]
        colours = self.others.get(emoji.code, [])
        if recolour is None:
            recolour = random.random() < 0.35
        colour = str(random.choice(colours)) if colours and recolour else None
        chance = random.random()
        if chance < 0.6:
            return self.place(emoji, random, colour=colour)
        if chance < 0.78 or not self.backdrops:
            return self.place(emoji, random, colour=colour, background=str(random.choice(list(BACKGROUNDS))))
        return self.place(emoji, random, colour=colour, background="photograph")

    def place(
        self, emoji: Emoji, random: np.random.Generator, *, colour: str | None = None, background: str = "white"
    ) -> Scene:
        """Draw an emoji in a colour (its own if None) on "white", a colour of BACKGROUNDS or a "photograph"."""
        pixels = emoji.pixels if colour is None else recolour(emoji.pixels, COLOURS[colour])
        if background != "photograph":
            side = round(SIDE * LARGE)
            top = left = (SIDE - side) // 2
            picture = composed(pixels, _plain(background, random), side, top, left)
            return Scene(picture, captions(emoji, colour, background), emoji.code, colour, background)
        if emoji.group in _MIRRORED_GROUPS and random.random() < 0.5:
            pixels = pixels[:, ::-1]
        side = round(SIDE * random.uniform(0.45, 0.94))
        top, left = (int(value) for value in random.integers(SIDE - side + 1, size=2))
        behind = self.photograph(random)
        picture = composed(pixels, behind.pixels, side, top, left)
        return Scene(picture, captions(emoji, colour, behind.captions[0]), emoji.code, colour, background)

    def photograph(self, random: np.random.Generator) -> Scene:
        """Cut a part out of a photograph, at any scale. ValueError if there are none."""
        if not self.backdrops:
            raise ValueError("there are no photographs")
        picture, shows = self.backdrops[int(random.integers(len(self.backdrops)))]
        height, width = picture.shape[:2]
        side = int(np.exp(random.uniform(np.log(SIDE), np.log(min(height, width)))))
        top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
        part = cv2.resize(picture[top : top + side, left : left + side], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        if random.random() < 0.5:
            part = part[:, ::-1]
        called = [f"a photograph of {shows}", f"a photo of {shows}", shows, "a photograph"]
        return Scene(np.ascontiguousarray(part), called, background="photograph")


def _plain(name: str, random: np.random.Generator) -> Pixels:
    colour = np.array(BACKGROUNDS.get(name, (255, 255, 255)))
    if name in BACKGROUNDS:
        colour = np.clip(colour + random.integers(-10, 11, size=3), 0, 255)
    return np.broadcast_to(colour.astype(np.uint8), (SIDE, SIDE, 3))


def drawn(scenes: Scenes, random: np.random.Generator, photographs_alone: int = 400) -> Iterator[Scene]:
    """Draw the training set: each emoji four times as it is, once in each other colour, and photographs alone."""
    for emoji in scenes.emoji:
        for background in ("white", "plain", "plain", "photograph"):
            named = str(random.choice(list(BACKGROUNDS))) if background == "plain" else background
            yield scenes.place(emoji, random, background=named if scenes.backdrops or named in BACKGROUNDS else "white")
        for colour in scenes.others.get(emoji.code, []):
            chance = random.random()
            named = "white" if chance < 0.65 else "photograph" if chance > 0.82 and scenes.backdrops else "plain"
            named = str(random.choice(list(BACKGROUNDS))) if named == "plain" else named
            yield scenes.place(emoji, random, colour=colour, background=named)
    for _ in range(photographs_alone if scenes.backdrops else 0):
        yield scenes.photograph(random)


def composed(drawing: Pixels, background: Pixels, side: int, top: int, left: int) -> Pixels:
    """Lay a drawing (h, w, 4), reduced to `side` pixels by area averaging, on a background (h, w, 3); both uint8."""
    alpha = drawing[..., 3:].astype(np.float32) / 255
    multiplied = np.concatenate([drawing[..., :3] * alpha, alpha], axis=2)
    reduced = cv2.resize(multiplied, (side, side), interpolation=cv2.INTER_AREA)
    picture = background.astype(np.float32)
    under = picture[top : top + side, left : left + side]
    picture[top : top + side, left : left + side] = reduced[..., :3] + under * (1 - reduced[..., 3:])
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def captions(emoji: Emoji, colour: str | None = None, background: str = "white") -> list[str]:
    """Return what a scene can be called, the likeliest first; wanted names stand there more than once.

    In another colour (`colour`) things go by names without a colour of their own, and the colour is always said.
    `background` is "white", which is rarely mentioned, a colour of BACKGROUNDS, or what a photograph is called.
    """
    if colour is None:
        names = list(emoji.names)
        if emoji.colour is not None and emoji.coloured:
            names.insert(1, f"{emoji.colour} {emoji.noun}")
        if emoji.general is not None:
            names.append(emoji.general)
    else:
        bare = [name for name in emoji.names if not _colour_words(name)]
        if emoji.general is not None:
            bare.append(emoji.general)
        names = [f"{colour} {name}" for name in dict.fromkeys([emoji.noun, *bare])]
    phrases = [_article(names[0]), names[0]]
    for name in names[1:]:
        phrases += [_article(name), name]
    phrases = list(dict.fromkeys(phrases))
    first = phrases[0]
    if background == "white":
        return [first, *phrases, f"{first} on a white background", f"a picture of {first}"]
    if background in BACKGROUNDS:
        return [f"{phrase} on {_article(background)} background" for phrase in phrases]
    return [first, *[f"{phrase} in a photograph" for phrase in phrases], f"{first} in {background}"]


def recolour(drawing: Pixels, target: tuple[float, float, float]) -> Pixels:
    """Turn the dominant colour of a drawing (h, w, 4) uint8 to a lightness, chroma and hue (degrees) in OKLCh.

    Only pixels whose hue is near the dominant one change, shades stay shades. A drawing without a dominant colour
    comes back as it is.
    """
    dominant = _dominant(drawing)
    if dominant is None:
        return drawing
    lightness, chroma, hue = dominant
    shown = drawing[..., 3] > 0
    lab = _oklab(drawing[shown, :3])
    chromas = np.hypot(lab[:, 1], lab[:, 2])
    turn = _apart(np.arctan2(lab[:, 2], lab[:, 1]), hue)
    weight = np.clip((55 - np.abs(np.rad2deg(turn))) / 20, 0, 1) * np.clip((chromas - 0.015) / 0.03, 0, 1)
    new_lightness = target[0] + 0.9 * (lab[:, 0] - lightness)
    new_chroma = chromas * min(2.5, target[1] / chroma)
    new_hue = np.deg2rad(target[2]) + 0.6 * turn
    turned = np.stack([new_lightness, new_chroma * np.cos(new_hue), new_chroma * np.sin(new_hue)], axis=1)
    result = drawing.copy()
    result[shown, :3] = _rgb(np.asarray(lab + weight[:, None] * (turned - lab), np.float32))
    return result


def colour_of(drawing: Pixels) -> str | None:
    """Name the dominant colour of a drawing (h, w, 4) uint8, or return None if it has none."""
    dominant = _dominant(drawing)
    if dominant is None:
        return None
    lightness, chroma, hue = dominant
    here = np.array([lightness, *_polar(chroma, hue)])
    places = {name: np.array([light, *_polar(c, np.deg2rad(h))]) for name, (light, c, h) in COLOURS.items()}
    return min(places, key=lambda name: float(np.linalg.norm((places[name] - here) * (0.5, 1, 1))))


def _polar(radius: float, angle: float) -> tuple[float, float]:
    return radius * float(np.cos(angle)), radius * float(np.sin(angle))


def _dominant(drawing: Pixels) -> tuple[float, float, float] | None:
    """Return lightness, chroma and hue (radians) of the hue that most of a drawing has, None if there is none."""
    sparse = drawing[::2, ::2]
    opaque = _oklab(sparse[sparse[..., 3] > 200, :3])
    chroma = np.hypot(opaque[:, 1], opaque[:, 2])
    coloured = opaque[chroma > 0.05]
    if len(coloured) < 0.35 * max(len(opaque), 1):
        return None
    hues = np.arctan2(coloured[:, 2], coloured[:, 1])
    counts, edges = np.histogram(hues, bins=36, range=(-np.pi, np.pi))
    wide = counts + np.roll(counts, 1) + np.roll(counts, -1)
    hue = float(edges[int(np.argmax(wide))] + np.pi / 36)
    near = np.abs(_apart(hues, hue)) < np.deg2rad(35)
    if near.mean() < 0.5 or near.sum() < 0.3 * len(opaque):
        return None
    median = np.median(coloured[near], axis=0)
    return float(median[0]), float(np.hypot(median[1], median[2])), float(np.arctan2(median[2], median[1]))


def _apart(hues: Floats, hue: float) -> Floats:
    """Return by how much angles are beyond another, all in radians: -pi to pi."""
    return np.asarray((hues - np.float32(hue) + np.pi) % (2 * np.pi) - np.pi, np.float32)


def _oklab(rgb: Pixels) -> Floats:
    """Convert sRGB of 8 bits to OKLab (Björn Ottosson, "A perceptual color space for image processing", 2020)."""
    return np.asarray(np.cbrt(_LINEAR[rgb] @ _RGB_TO_CONES.T) @ _CONES_TO_LAB.T, np.float32)


def _rgb(lab: Floats) -> Pixels:
    linear = np.clip(((lab @ _LAB_TO_CONES.T) ** 3) @ _CONES_TO_RGB.T, 0, 1)
    value = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** np.float32(1 / 2.4) - 0.055)
    return np.rint(value * 255).astype(np.uint8)


def _linear() -> Floats:
    value = np.arange(256) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


_LINEAR = _linear()  # of each sRGB value of 8 bits
_RGB_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ],
    np.float32,
)
_CONES_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ],
    np.float32,
)
_LAB_TO_CONES = np.linalg.inv(_CONES_TO_LAB)
_CONES_TO_RGB = np.linalg.inv(_RGB_TO_CONES)


def _wanted(entry: dict[str, Any]) -> bool:
    return entry.get("group") in _USED and not _UNUSED_LABELS.search(entry["label"])


def _emoji(entry: dict[str, Any], shortcodes: list[str], pixels: Pixels) -> Emoji:
    label = entry["label"].lower().replace("’", "'").replace(":", "")
    spoken = [code.replace("_", " ").rstrip("0123456789 ") for code in shortcodes]
    short = [name for name in spoken if name != label and 0 < len(name.split()) <= 5 and len(name) > 1]
    names = list(dict.fromkeys([label, *short]))
    wider = [word for word in (label.split()[-1], *_GENERAL) if word in entry.get("tags", []) and word not in names]
    general = wider[0] if wider and wider[0] != "face" and entry["group"] in _COLOURED_GROUPS else None
    colour = colour_of(pixels)
    scenery = entry["subgroup"] in _SCENERY and "umbrella" not in label
    coloured = (entry["group"] in _COLOURED_GROUPS and not scenery) or entry["subgroup"] == _HEARTS
    noun = " ".join(word for word in label.split() if word not in COLOURS) or label
    return Emoji(
        entry["hexcode"].lower(),
        entry["group"],
        tuple(names),
        general,
        noun,
        colour,
        coloured and colour is not None,
        pixels,
    )


def _drawing(file: Path) -> Pixels:
    stored = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    if stored is None or stored.ndim != 3 or stored.shape[2] != 4:
        raise ValueError(f"{file} is not a drawing with alpha")
    return np.asarray(cv2.cvtColor(stored, cv2.COLOR_BGRA2RGBA), np.uint8)


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _colour_words(name: str) -> bool:
    return any(word in COLOURS for word in name.split())


def _article(name: str) -> str:
    """Put "a" or "an" before a name, nothing before a plural."""
    last = name.split()[-1]
    if last.endswith("s") and not last.endswith(("ss", "us", "is")):
        return name
    vowel = name[0] in "aeiou" and not name.startswith(("eu", "ew", "one", "uni", "us"))
    return f"an {name}" if vowel else f"a {name}"


def write(scenes: Iterator[Scene], out: Path, random: np.random.Generator) -> int:
    """Write scenes.npy and what belongs to it, and return how many there are.

    Things as they are on white, of which there's one scene each, are trained on `OFTEN` times as often as other scenes.
    Of the others one of fifty is held out.
    """
    listed = list(scenes)
    np.save(out / "scenes.npy", np.stack([scene.pixels for scene in listed]))
    (out / "captions.json").write_text(json.dumps([scene.captions for scene in listed]))
    shown = [{"code": one.code, "colour": one.colour, "background": one.background} for one in listed]
    (out / "scenes.json").write_text(json.dumps(shown))
    only = np.array([scene.colour is None and scene.background == "white" for scene in listed])
    held = ~only & (random.random(len(listed)) < 0.02)
    split = {
        "train": np.repeat(np.arange(len(listed)), np.where(only, OFTEN, 1 - held)).tolist(),
        "held_out": np.flatnonzero(held).tolist(),
    }
    (out / "split.json").write_text(json.dumps(split))
    return len(listed)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.sketch.emoji", description=__doc__)
    parser.add_argument("--out", type=Path, default=sources.OUT, help="where the packages are (default: %(default)s)")
    out = parser.parse_args(arguments).out
    random = np.random.default_rng(0)
    scenes = Scenes(read(out), backdrops(out, "train"))
    (out / "sketch").mkdir(parents=True, exist_ok=True)
    count = write(drawn(scenes, random), out / "sketch", random)
    print(f"{len(scenes.emoji)} emoji, {len(scenes.others)} of them in other colours: {count} scenes", flush=True)


if __name__ == "__main__":
    main()
