"""How well and how quickly the models without weights segment: `python -m bench.segment [--fit] [--held-out DIR]`.

Overlap (intersection over union) with masks that are known: photographs of scikit-image and of `assets/` with outlines
drawn by hand, composites of textured shapes on photographs, and things cut out of photographs and put on others.
`--fit` prints the constants of `limner.segment.proposals` and `limner.segment.foreground` as fitted on these scenes,
with the overlap that folds left out of the fit reach. `--held-out` measures on Debian's wallpapers too, which nothing
is fitted on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from limner.core.geometry import Box
from limner.core.picture import Picture
from limner.runtime.job import Job
from limner.segment.adapter import Prompt
from limner.segment.find import superpixels_at
from limner.segment.foreground import describe_foreground, foreground_candidates, survey_cues
from limner.segment.proposals import candidates, describe
from limner.segment.regions import Regions
from limner.segment.remover import SaliencyGrabCut
from limner.segment.scene import Scene
from limner.segment.segmenter import GrabCut

Array = NDArray[Any]
PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
ASSETS = Path(__file__).parent.parent / "assets"
COMPOSITES = 36
CUTOUTS = 63
FOLDS = 6


@dataclass(frozen=True)
class Known:
    """A picture, (h, w, 3) uint8, with the mask, (h, w) bool, and a first click on it."""

    name: str
    rgb: Array
    mask: Array
    click: tuple[float, float]


# fmt: off
OUTLINES: list[tuple[str, str, list[tuple[int, int]], tuple[int, int] | None]] = [
    ("coffee: cup and saucer", "coffee.png",
        [(181, 70), (172, 90), (130, 100), (100, 130), (82, 170), (76, 210), (80, 250), (95, 290), (120, 325),
         (150, 350), (190, 372), (240, 385), (290, 389), (340, 385), (390, 368), (430, 340), (460, 300), (475,
         260), (479, 220), (474, 180), (458, 148), (436, 122), (418, 106), (424, 85), (423, 72), (412, 66),
         (398, 70), (385, 45), (350, 27), (300, 19), (260, 19), (220, 32), (195, 50)],
     (130, 215)),
    ("astronaut: helmet", "astronaut.png",
        [(278, 511), (278, 470), (285, 435), (300, 400), (320, 375), (345, 356), (375, 345), (405, 343), (430,
         348), (455, 362), (475, 385), (490, 415), (497, 450), (505, 460), (511, 480), (511, 511)],
     (400, 430)),
    ("astronaut: person", "astronaut.png",
        [(170, 60), (190, 40), (190, 30), (215, 18), (240, 15), (265, 20), (285, 35), (298, 65), (302, 90),
         (296, 110), (282, 127), (275, 136), (268, 136), (262, 150), (255, 172), (275, 190), (295, 212), (304,
         235), (330, 250), (343, 268), (350, 285), (362, 330), (362, 348), (345, 356), (320, 375), (300, 400),
         (285, 435), (278, 470), (278, 511), (20, 511), (22, 480), (32, 460), (28, 430), (20, 400), (22, 360),
         (38, 310), (45, 275), (65, 245), (90, 222), (115, 205), (113, 190), (120, 185), (128, 165), (145,
         152), (165, 148), (184, 150), (181, 132), (172, 125), (168, 113), (157, 103), (153, 85), (155, 70)],
     (190, 330)),
    ("camera: man", "camera.png",
        [(0, 250), (20, 225), (40, 195), (52, 172), (68, 148), (90, 132), (115, 125), (130, 124), (145, 107),
         (160, 106), (165, 90), (180, 75), (200, 63), (225, 68), (245, 85), (262, 102), (270, 118), (266,
         130), (256, 132), (250, 145), (254, 165), (247, 172), (245, 185), (238, 195), (242, 205), (243, 217),
         (248, 245), (262, 230), (265, 210), (280, 205), (300, 200), (308, 185), (318, 170), (330, 172), (331,
         190), (320, 215), (310, 235), (302, 260), (303, 273), (285, 290), (265, 305), (245, 312), (225, 305),
         (207, 294), (190, 325), (165, 350), (141, 381), (149, 430), (150, 511), (140, 511), (128, 485), (110,
         460), (100, 447), (95, 480), (90, 511), (0, 511)],
     (110, 250)),
    ("rocket", "rocket.jpg",
        [(311, 145), (314, 134), (320, 127), (326, 128), (331, 136), (333, 148), (333, 178), (331, 182), (331,
         358), (314, 358), (314, 182), (311, 178)],
     (322, 250)),
    ("demo: rosette", "demo.jpg",
        [(580, 318), (592, 303), (582, 298), (595, 295), (603, 300), (608, 296), (597, 284), (610, 286), (622,
         292), (624, 285), (627, 274), (636, 262), (634, 275), (641, 269), (640, 280), (648, 272), (655, 269),
         (648, 283), (645, 288), (667, 290), (655, 296), (648, 299), (670, 303), (648, 305), (655, 314), (648,
         318), (655, 324), (640, 318), (645, 334), (632, 318), (628, 312), (632, 332), (625, 325), (623, 336),
         (619, 315), (617, 336), (611, 325), (609, 312), (592, 319), (586, 325)],
     (628, 298)),
    ("nuthatch", "nuthatch.jpg",
        [(522, 250), (527, 250), (540, 275), (555, 302), (570, 315), (585, 345), (600, 365), (612, 388), (620,
         400), (628, 412), (643, 416), (652, 428), (656, 440), (662, 446), (688, 460), (668, 458), (650, 453),
         (640, 456), (615, 463), (600, 471), (585, 473), (560, 468), (543, 463), (535, 452), (527, 440), (520,
         420), (518, 395), (520, 350), (517, 340), (530, 334), (529, 305), (532, 275)],
     (560, 395)),
    ("ladybird", "ladybird.jpg",
        [(845, 416), (850, 395), (862, 375), (880, 360), (893, 354), (915, 357), (935, 368), (950, 387), (960,
         415), (950, 420), (937, 418), (930, 426), (953, 432), (948, 444), (925, 448), (905, 450), (893, 462),
         (875, 460), (863, 448), (850, 441), (850, 428), (858, 424), (838, 421)],
     (898, 400)),
    ("cat", "chelsea.png",
        [(39, 0), (395, 0), (366, 70), (363, 152), (345, 190), (321, 218), (310, 247), (299, 299), (0, 299), (0, 141),
         (28, 113), (35, 56)],
     (130, 190)),
]
# Outlines of Debian's wallpapers, which nothing is fitted on: packages are unpacked somewhere and --held-out
# names their usr/share. In pixels of a copy 640 wide; several polygons make one mask.
HELD_OUT: list[tuple[str, str, list[list[tuple[int, int]]]]] = [
    ("dragon", "backgrounds/firstgeneration.jpg",
        [[(343, 180), (350, 140), (362, 125), (380, 90), (398, 92), (402, 110), (440, 115), (465, 130), (490, 110),
          (501, 122), (490, 140), (478, 160), (515, 162), (490, 235), (460, 270), (430, 295), (400, 305), (365, 305),
          (342, 280), (338, 240), (345, 220)]]),
    ("goldfish", "backgrounds/goldfish.png",
        [[(190, 130), (215, 110), (240, 105), (275, 112), (300, 135), (325, 150), (318, 135), (350, 125), (405, 118),
          (403, 155), (425, 168), (433, 185), (425, 205), (405, 212), (402, 225), (378, 232), (378, 265), (365, 278),
          (335, 278), (300, 262), (300, 255), (265, 255), (165, 270), (170, 250), (205, 240), (205, 215), (188, 190),
          (185, 165)]]),
    ("marigold", "backgrounds/mate/nature/Garden.jpg",
        [[(231, 205), (250, 195), (290, 178), (330, 185), (380, 200), (340, 180), (290, 135), (310, 125), (330, 105),
          (350, 108), (360, 80), (390, 75), (430, 78), (445, 90), (480, 95), (500, 82), (515, 85), (525, 110),
          (530, 165), (580, 135), (600, 125), (640, 122), (640, 350), (605, 320), (597, 345), (570, 380), (520, 395),
          (470, 390), (460, 370), (470, 340), (420, 315), (405, 280), (360, 310), (320, 325), (290, 320), (290, 305),
          (330, 280), (390, 245), (330, 232), (240, 240)]]),
    ("yellow flower", "backgrounds/mate/nature/YellowFlower.jpg",
        [[(130, 205), (160, 195), (200, 197), (260, 212), (310, 225), (240, 155), (200, 108), (230, 95), (260, 105),
          (290, 140), (330, 190), (320, 150), (345, 120), (300, 80), (242, 45), (270, 35), (330, 60), (328, 40),
          (360, 33), (395, 50), (380, 20), (365, 0), (400, 15), (435, 30), (430, 0), (500, 0), (510, 60), (530, 40),
          (560, 28), (580, 40), (600, 60), (605, 20), (615, 0), (640, 0), (640, 400), (130, 400), (150, 370),
          (165, 340), (200, 315), (240, 303), (270, 295), (180, 265), (145, 235)]]),
    ("mouse", "backgrounds/the-mouse.jpg",
        [[(292, 60), (300, 55), (305, 70), (302, 90), (300, 130), (320, 135), (340, 130), (338, 90), (335, 70),
          (345, 55), (350, 70), (342, 90), (356, 130), (370, 110), (395, 105), (410, 130), (405, 160), (385, 172),
          (370, 175), (375, 215), (360, 245), (320, 257), (280, 245), (266, 215), (272, 180), (245, 165), (235, 140),
          (240, 115), (265, 107), (285, 130), (298, 140), (290, 110)]]),
    ("maple leaf", "wallpapers/FallenLeaf/contents/images/1280x800.jpg",
        [[(335, 200), (370, 205), (415, 215), (412, 165), (435, 120), (455, 155), (480, 160), (490, 210), (540, 175),
          (555, 145), (560, 190), (578, 205), (570, 240), (600, 270), (560, 285), (520, 305), (485, 320), (440, 315),
          (400, 320), (360, 325), (345, 315), (375, 280), (360, 240)]]),
    ("flying dragon", "wallpapers/FlyingKonqui/contents/images/1280x800.png",
        [[(375, 135), (378, 110), (400, 95), (435, 93), (435, 75), (450, 65), (455, 95), (480, 80), (470, 60),
          (445, 50), (470, 40), (500, 45), (525, 65), (538, 88), (562, 92), (535, 105), (520, 130), (525, 150),
          (500, 150), (490, 145), (455, 155), (430, 175), (405, 182), (405, 170), (430, 155), (400, 152), (382, 145)]]),
    ("kite", "wallpapers/Kite/contents/images/1280x800.jpg", [[(414, 123), (456, 132), (436, 145), (414, 161)]]),
    ("triangles", "wallpapers/Patak/contents/screenshot.png",
        [[(285, 198), (432, 155), (482, 233), (482, 237), (285, 204)], [(458, 155), (558, 171), (488, 194)]]),
    ("calla", "backgrounds/calla.png",
        [[(260, 195), (265, 170), (300, 140), (345, 128), (390, 143), (370, 180), (325, 212), (322, 240), (318, 300),
          (308, 325), (311, 414), (293, 414), (293, 325), (278, 300), (264, 270), (275, 235), (265, 215)]]),
    ("drop", "backgrounds/mate/nature/Aqua.jpg",
        [[(347, 212), (360, 205), (385, 180), (420, 160), (430, 175), (470, 170), (500, 178), (535, 190), (530, 215),
          (538, 240), (525, 280), (505, 310), (470, 330), (430, 332), (390, 315), (365, 280), (360, 240), (365, 222)]]),
]
# fmt: on
COINS = [
    (334, 44, 29),
    (155, 50, 23),
    (270, 118, 25),
    (102, 196, 21),
    (46, 259, 28),
    (348, 186, 31),
    (244, 263, 23),
    (216, 51, 23),
]  # fmt: skip
GROUNDS = (
    "brick.png", "grass.png", "gravel.png", "coffee.png", "chelsea.png", "astronaut.png", "retina.jpg", "ihc.png",
    "rocket.jpg", "motorcycle_left.png", "moon.png", "hubble_deep_field.jpg", "camera.png", "demo.jpg", "nuthatch.jpg",
    "ladybird.jpg",
)  # fmt: skip


FOREGROUNDS = (
    "coffee: cup and saucer", "astronaut: person", "camera: man", "rocket", "demo: rosette", "nuthatch", "ladybird",
    "retina", "horse", "cat",
)  # fmt: skip


def read(name: str) -> Array:
    """A photograph of scikit-image or of assets/, (h, w, 3) uint8 RGB."""
    path = ASSETS / name if (ASSETS / name).exists() else PHOTOGRAPHS / name
    return np.asarray(cv2.cvtColor(np.asarray(cv2.imread(str(path))), cv2.COLOR_BGR2RGB))


def photographs() -> list[Known]:
    """Photographs with outlines by hand, and two whose masks come with them."""
    scenes = []
    for name, file, outline, click in OUTLINES:
        rgb = read(file)
        mask = np.zeros(rgb.shape[:2], np.uint8)
        cv2.fillPoly(mask, [np.array(outline, np.int32)], 1)
        scenes.append(Known(name, rgb, mask > 0, click or innermost(mask > 0)))
    coins, retina = read("coins.png"), read("retina.jpg")
    for x, y, radius in COINS:
        scenes.append(Known(f"coin {x},{y}", coins, ellipse(coins, (x, y), (radius, radius)), (x, y)))
    scenes.append(Known("retina", retina, ellipse(retina, (705, 704), (665, 668)), (705, 704)))
    horse = read("horse.png")
    silhouette = horse[:, :, 0] < 128
    scenes.append(Known("horse", horse, silhouette, innermost(silhouette)))
    return scenes


def ellipse(rgb: Array, centre: tuple[int, int], radii: tuple[int, int]) -> Array:
    mask = np.zeros(rgb.shape[:2], np.uint8)
    cv2.ellipse(mask, centre, radii, 0, 0, 360, 1, -1)
    return mask > 0


def innermost(mask: Array) -> tuple[float, float]:
    """The point farthest from the mask's border."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return float(x), float(y)


def held_out(share: Path) -> list[Known]:
    """The wallpapers outlined, with a click at the innermost point. Nothing is fitted on them."""
    scenes = []
    for name, file, outlines in HELD_OUT:
        rgb = at_width(cv2.cvtColor(np.asarray(cv2.imread(str(share / file))), cv2.COLOR_BGR2RGB), 1280)
        mask = np.zeros(rgb.shape[:2], np.uint8)
        for outline in outlines:
            cv2.fillPoly(mask, [np.array(outline, np.int32) * 2], 1)
        scenes.append(Known(name, rgb, mask > 0, innermost(mask > 0)))
    return scenes


def plain_grounds() -> list[tuple[str, Array]]:
    """Backdrops as in a studio: white, a ramp of greys, and green; a little noisy."""
    ramp = np.broadcast_to(np.linspace(70, 190, 600)[:, None, None], (600, 800, 3))
    noise = np.random.Generator(np.random.PCG64(1)).normal(0, 3, ramp.shape)
    colours = {"white": np.full_like(ramp, 246), "ramp": ramp, "green": np.full_like(ramp, 1) * (60, 120, 50)}
    return [(name, np.clip(colour + noise, 0, 255).astype(np.uint8)) for name, colour in colours.items()]


def at_width(rgb: Array, width: int) -> Array:
    """The picture scaled to a width."""
    return np.asarray(
        cv2.resize(rgb, (width, round(rgb.shape[0] * width / rgb.shape[1])), interpolation=cv2.INTER_AREA)
    )


def foregrounds(scenes: list[Known]) -> list[Known]:
    """Of `photographs()`, those with one thing that is the foreground, and its whole mask."""
    by_name = {scene.name: scene for scene in scenes}
    chosen = [by_name[name] for name in FOREGROUNDS]
    helmet = by_name["astronaut: helmet"].mask
    return [replace(each, mask=each.mask | helmet) if each.name == "astronaut: person" else each for each in chosen]


def composites(grounds: list[tuple[str, Array]], count: int, seed: int) -> list[Known]:
    """Ellipses, rounded squares, stars and horses, textured with one photograph and pasted on another."""
    draw = np.random.Generator(np.random.PCG64(seed))
    horse = read("horse.png")[:, :, 0] < 128
    scenes = []
    for number in range(count):
        (below, ground), (above, texture) = (grounds[i] for i in draw.choice(len(grounds), 2, replace=False))
        ground, texture = ground.astype(np.float32), texture.astype(np.float32)
        scale = 600 / max(ground.shape[:2])
        ground = cv2.resize(ground, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        height, width = ground.shape[:2]
        radius = draw.uniform(0.09, 0.3) * min(height, width)
        x, y = draw.uniform(radius * 1.2, width - radius * 1.2), draw.uniform(radius * 1.2, height - radius * 1.2)
        shape = _shape(number % 4, draw, horse, (height, width), radius, (x, y))
        soft = cv2.GaussianBlur(shape, (0, 0), 0.7)[..., None]
        scale = draw.uniform(0.6, 1.2)
        texture = cv2.resize(texture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        short = (max(0, height - texture.shape[0]), max(0, width - texture.shape[1]))
        texture = np.pad(texture, ((0, short[0]), (0, short[1]), (0, 0)), mode="symmetric")
        top, left = (int(draw.integers(0, a - b + 1)) for a, b in zip(texture.shape, (height, width), strict=False))
        shade = 1 - 0.15 * (np.arange(height)[:, None, None] - y) / radius
        texture = texture[top : top + height, left : left + width] * shade
        if draw.random() < 0.5:
            texture = texture * draw.uniform(0.5, 1.3, 3)
        mixed = ground * (1 - soft) + texture * soft + draw.normal(0, 2, ground.shape)
        rgb, mask = np.clip(mixed, 0, 255).astype(np.uint8), soft[..., 0] > 0.5
        scenes.append(Known(f"{number} {above} on {below}", rgb, mask, innermost(mask)))
    return scenes


def cutouts(things: list[Known], grounds: list[tuple[str, Array]], count: int, seed: int) -> list[Known]:
    """Things cut out of photographs and put on others, which are out of focus in three of four, as lenses do it."""
    draw = np.random.Generator(np.random.PCG64(seed))
    scenes = []
    for number in range(count):
        thing = things[number % len(things)]
        below, ground = grounds[draw.integers(len(grounds))]
        ground = at_width(ground, 800).astype(np.float32)
        height, width = ground.shape[:2]
        if number % 4:
            ground = cv2.GaussianBlur(ground, (0, 0), draw.uniform(2, 8))
        ys, xs = np.nonzero(thing.mask)
        part = np.s_[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        rgb: Array = thing.rgb[part].astype(np.float32)
        mask: Array = thing.mask[part].astype(np.float32)
        scale = min(height / rgb.shape[0], width / rgb.shape[1]) * draw.uniform(0.25, 0.85)
        rgb, mask = (cv2.resize(each, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for each in (rgb, mask))
        room = (height - mask.shape[0], width - mask.shape[1])
        # What was cut by its picture's lower frame is so here too; the rest is about the middle.
        top = room[0] if ys.max() == len(thing.mask) - 1 else int(room[0] * draw.beta(3, 3))
        left = int(room[1] * draw.beta(3, 3))
        place = np.s_[top : top + mask.shape[0], left : left + mask.shape[1]]
        soft = cv2.GaussianBlur(mask, (0, 0), 0.7)[..., None]
        ground[place] = ground[place] * (1 - soft) + rgb * soft
        whole = np.zeros((height, width), bool)
        whole[place] = mask > 0.5
        pixels = np.clip(ground + draw.normal(0, 2, ground.shape), 0, 255).astype(np.uint8)
        scenes.append(Known(f"{number} {thing.name} on {below}", pixels, whole, innermost(whole)))
    return scenes


def _shape(
    kind: int, draw: np.random.Generator, horse: Array, size: tuple[int, int], radius: float, at: tuple[float, float]
) -> Array:
    """(h, w) float32 coverage, 0 to 1, of a shape."""
    height, width = size
    if kind == 3:
        mask = np.zeros(size, np.float32)
        small = cv2.resize(
            horse.astype(np.float32), (int(2.6 * radius), int(2.2 * radius)), interpolation=cv2.INTER_AREA
        )
        top = int(np.clip(at[1] - small.shape[0] / 2, 0, height - small.shape[0]))
        left = int(np.clip(at[0] - small.shape[1] / 2, 0, width - small.shape[1]))
        mask[top : top + small.shape[0], left : left + small.shape[1]] = small
        return mask
    yy, xx = np.mgrid[0 : 2 * height, 0 : 2 * width] / 2
    turn = draw.uniform(0, np.pi)
    u = ((xx - at[0]) * np.cos(turn) + (yy - at[1]) * np.sin(turn)) / radius
    v = ((yy - at[1]) * np.cos(turn) - (xx - at[0]) * np.sin(turn)) / radius
    if kind == 2:
        mask = np.hypot(u, v) < 0.72 + 0.28 * draw.uniform(0.4, 1) * np.sin(np.arctan2(v, u) * draw.integers(3, 8))
    else:
        power = 2 if kind == 0 else 4
        mask = np.abs(u) ** power + np.abs(v / draw.uniform(0.5, 1)) ** power < 1
    return np.asarray(cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA))


def prompts(scene: Known) -> dict[str, Prompt]:
    """One click; three, each as far from the others as it can be well inside; the box."""
    depth = cv2.distanceTransform(np.pad(scene.mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    ys, xs = np.nonzero(depth > 0.25 * depth.max())
    clicks = [scene.click]
    for _ in range(2):
        farthest = int(np.min([(xs - x) ** 2 + (ys - y) ** 2 for x, y in clicks], axis=0).argmax())
        clicks.append((float(xs[farthest]), float(ys[farthest])))
    ys, xs = np.nonzero(scene.mask)
    left, top, right, bottom = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    return {
        "1 click": Prompt(np.array([scene.click])),
        "3 clicks": Prompt(np.array(clicks)),
        "box": Prompt(boxes=(Box(left, top, right - left, bottom - top),)),
    }


def overlap(mask: Array, truth: Array) -> float:
    """Intersection over union."""
    return float((mask & truth).sum() / max(1, (mask | truth).sum()))


def job() -> Job:
    """A call that nobody ends."""
    return Job(seed=0, previews=False, deadline=None, publish=lambda field, message: None)


def measure(scenes: list[Known], progress: Callable[[str], None] = lambda line: None) -> dict[str, list[float]]:
    """Overlaps by prompt, and seconds of `encode` and of a `decode` by one click."""
    model = GrabCut()
    figures: dict[str, list[float]] = {}
    for scene in scenes:
        picture = Picture(np.ascontiguousarray(scene.rgb))
        began = time.perf_counter()
        embedding = model.encode(picture, job())
        figures.setdefault("encode_s", []).append(time.perf_counter() - began)
        line = []
        for name, prompt in prompts(scene).items():
            began = time.perf_counter()
            found = model.decode(embedding, picture.size, prompt, job()).mask > 0
            figures.setdefault(f"{name}_s", []).append(time.perf_counter() - began)
            figures.setdefault(name, []).append(overlap(found, scene.mask))
            line.append(f"{figures[name][-1]:.2f}")
        progress(f"{scene.name:40s} {'  '.join(line)}")
    return figures


def measure_foreground(scenes: list[Known], progress: Callable[[str], None] = lambda line: None) -> list[float]:
    """Overlaps of what background removal keeps."""
    overlaps = []
    for scene in scenes:
        mask = SaliencyGrabCut().foreground(Picture(np.ascontiguousarray(scene.rgb)), job()) > 127
        overlaps.append(overlap(mask, scene.mask))
        progress(f"{scene.name:40s} {overlaps[-1]:.2f}")
    return overlaps


@dataclass(frozen=True)
class Choice:
    """One choice to learn from: (k, f) features of candidates, their (k,) overlaps, and how much it counts."""

    scene: str
    features: Array
    overlaps: Array
    weight: float


@dataclass(frozen=True)
class Linear:
    """A linear model of candidates."""

    mean: Array
    scale: Array
    weight: Array

    def pick(self, choice: Choice) -> float:
        """The overlap of the candidate it likes best."""
        return float(choice.overlaps[int(((choice.features - self.mean) / self.scale @ self.weight).argmax())])


def click_choices(scene: Known, weight: float) -> list[Choice]:
    """Eight prompts: the scene's click, four well inside, two of three clicks anywhere on the object."""
    embedding, held = _superpixels_held(scene)
    regions = embedding.regions
    height, width = regions.labels.shape
    mask = cv2.resize(scene.mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) > 0.5
    draw = np.random.Generator(np.random.PCG64(len(scene.name)))
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    deep, any_ = np.argwhere(depth > 0.4 * depth.max()), np.argwhere(mask)
    first = np.array([scene.click]) * (width / scene.rgb.shape[1])
    clicks = [first] + [draw.choice(deep, 1)[:, ::-1] for _ in range(4)] + [draw.choice(any_, 3)[:, ::-1] for _ in "12"]
    choices = []
    for points in clicks:
        points = np.minimum(np.floor(points), (width - 1, height - 1)).astype(np.float64)
        on = superpixels_at(embedding, points)
        sets = candidates(regions, embedding.trees, embedding.around.salience, on, np.zeros(0, int))
        features = describe(regions, embedding.around, sets, points)
        choices.append(Choice(scene.name, features, _overlaps(regions, sets, held), weight))
    return choices


def foreground_choice(scene: Known, weight: float) -> Choice:
    """What background removal chooses among."""
    embedding, held = _superpixels_held(scene)
    focus, cues = survey_cues(embedding)
    sets = foreground_candidates(embedding, (embedding.around.salience, focus, cues))
    features = describe_foreground(embedding, sets, focus, cues)
    return Choice(scene.name, features, _overlaps(embedding.regions, sets, held), weight)


def _superpixels_held(scene: Known) -> tuple[Scene, Array]:
    """A scene looked at, and how many pixels of its mask each superpixel holds."""
    embedding = GrabCut().encode(Picture(np.ascontiguousarray(scene.rgb)), job())
    labels = embedding.regions.labels
    mask = cv2.resize(scene.mask.astype(np.float32), labels.shape[::-1], interpolation=cv2.INTER_AREA) > 0.5
    return embedding, np.bincount(labels.ravel(), weights=mask.ravel(), minlength=embedding.regions.count)


def _overlaps(regions: Regions, sets: Array, held: Array) -> Array:
    both = sets @ held
    return np.asarray(both / (sets @ regions.area + held.sum() - both))


def fit(choices: list[Choice], penalty: float) -> Linear:
    """Listwise (Cao et al. 2007): the softmax of the model over a choice's candidates should be that of the overlaps,
    ten times as steep. What is learnt is which candidate is best, not how good all the poor ones are."""
    mean = np.mean([choice.features.mean(axis=0) for choice in choices], axis=0)
    scale = np.sqrt(np.mean([((choice.features - mean) ** 2).mean(axis=0) for choice in choices], axis=0))
    scale[scale < 1e-6] = 1  # where a feature says nothing
    inputs = [(choice.features - mean) / scale for choice in choices]
    targets = [softmax(10 * choice.overlaps) for choice in choices]
    total = sum(choice.weight for choice in choices)

    def loss(weight: Array) -> tuple[float, Array]:
        value, gradient = penalty * float(weight @ weight), 2 * penalty * weight
        for choice, rows, target in zip(choices, inputs, targets, strict=True):
            given = log_softmax(rows @ weight)
            value -= choice.weight / total * float(target @ given)
            gradient = gradient - choice.weight / total * (rows.T @ (target - np.exp(given)))
        return value, gradient

    solved = minimize(loss, np.zeros(len(mean)), jac=True, method="L-BFGS-B", options={"maxiter": 80})
    return Linear(mean, scale, solved.x)


def left_out(choices: list[Choice], names: list[str], penalty: float) -> tuple[float, float]:
    """Means of the overlap picked and of the best there was, for scenes of these names, each fold without the scenes
    (and the composites of what is in them) that it is tested on."""
    picked = []
    for fold in range(FOLDS):
        tested = names[fold::FOLDS]
        model = fit([choice for choice in choices if not any(name in choice.scene for name in tested)], penalty)
        picked += [(model.pick(choice), choice.overlaps.max()) for choice in choices if choice.scene in tested]
    mean, best = np.mean(picked, axis=0)
    return float(mean), float(best)


def show(prefix: str, model: Linear) -> None:
    """Print a model as the source has it."""
    for name, values in (("MEAN", model.mean), ("SCALE", model.scale), ("WEIGHT", model.weight)):
        print(f"{prefix}{name} = np.array([{', '.join(f'{value:.4f}' for value in values)}])")


def fit_all(known: list[Known], mixed: list[Known], cut: list[Known]) -> None:
    """Print the constants of limner.segment.proposals and limner.segment.foreground, photographs counting more than
    composites, with what they reach on photographs left out."""
    choices = [choice for scene in known for choice in click_choices(scene, 2.0)]
    choices += [choice for scene in mixed for choice in click_choices(scene, 1.0)]
    mean, best = left_out(choices, [scene.name for scene in known], 0.003)
    print(f"# clicks: superpixels picked on photographs left out {mean:.3f}, the best candidates {best:.3f}")
    model = fit(choices, 0.003)
    # Scaled so that the likeliest candidate's appeal is about the overlap to be expected.
    tops = [(choice.features - model.mean) / model.scale @ model.weight for choice in choices]
    appeals, overlaps = np.concatenate(tops), np.concatenate([choice.overlaps for choice in choices])
    gain, bias = np.polyfit(appeals, overlaps, 1)
    show("", replace(model, weight=model.weight * gain))
    print(f"BIAS = {bias:.4f}")

    whole = foregrounds(known)
    choices = [foreground_choice(scene, 3.0) for scene in whole]
    choices += [foreground_choice(scene, 1.0) for scene in (*mixed, *cut)]
    mean, best = left_out(choices, [scene.name for scene in whole], 0.03)
    print(f"# foreground: superpixels picked on photographs left out {mean:.3f}, the best candidates {best:.3f}")
    show("FOREGROUND_", fit(choices, 0.03))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.segment", description=__doc__)
    parser.add_argument("--fit", action="store_true", help="print fitted constants instead of measuring")
    parser.add_argument("--held-out", type=Path, metavar="DIR", help="the usr/share that wallpapers were unpacked to")
    arguments = parser.parse_args()
    grounds = [(Path(name).stem, read(name)) for name in GROUNDS]
    known, mixed = photographs(), composites(grounds, COMPOSITES, seed=7)
    things = [scene for scene in foregrounds(known) if scene.name != "retina"]
    cut = cutouts(things, [*grounds, *plain_grounds() * 2], CUTOUTS, seed=3)
    if arguments.fit:
        fit_all(known, mixed, cut)
        return
    by_hint = {"photographs": known, "composites": mixed}
    alone = {"photographs": foregrounds(known), "composites": mixed, "cutouts": cut}
    if arguments.held_out is not None:
        wallpapers = held_out(arguments.held_out)
        theirs = [(scene.name, scene.rgb) for scene in wallpapers]
        by_hint |= {"wallpapers": wallpapers, "composites of wallpapers": composites(theirs, 24, seed=11)}
        alone |= {"wallpapers": wallpapers, "cutouts of wallpapers": cutouts(wallpapers, theirs, 22, seed=5)}
    for name, scenes in by_hint.items():
        figures = measure(scenes, print)
        print(f"== {name}, {len(scenes)} scenes: mean (median) overlap; seconds, median")
        for prompt in ("1 click", "3 clicks", "box"):
            values, seconds = figures[prompt], figures[f"{prompt}_s"]
            print(f"{prompt:10s} {np.mean(values):.3f} ({np.median(values):.3f})  {np.median(seconds):.2f} s")
        print(f"encode     {np.median(figures['encode_s']):.2f} s")
    for name, scenes in alone.items():
        values = measure_foreground(scenes, print)
        found = sum(value > 0.6 for value in values)
        print(
            f"== foreground of {name}: {np.mean(values):.3f} ({np.median(values):.3f}), {found} of {len(values)} found"
        )


if __name__ == "__main__":
    main()
