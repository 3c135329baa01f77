"""How well and how quickly the `grabcut` model segments: `python -m bench.segment [--fit]`.

Overlap (intersection over union) with masks that are known: photographs of scikit-image and of `assets/` with outlines
drawn by hand, and composites of textured shapes on photographs, whose masks are exact. `--fit` prints the constants
of `limner.segment.proposals` as fitted on these scenes, with the overlap that folds left out of the fit reach.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage
from numpy.typing import NDArray

from limner.core.geometry import Box
from limner.core.picture import Picture
from limner.runtime.job import Job
from limner.segment.adapter import Prompt
from limner.segment.find import superpixels_at
from limner.segment.models.grabcut import GrabCut
from limner.segment.proposals import FEATURES, candidates, describe
from limner.segment.scene import Scene

Array = NDArray[Any]
PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
ASSETS = Path(__file__).parent.parent / "assets"
COMPOSITES = 36
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


def composites(count: int = COMPOSITES) -> list[Known]:
    """Ellipses, rounded squares, stars and horses, textured with one photograph and pasted on another."""
    draw = np.random.Generator(np.random.PCG64(7))
    horse = read("horse.png")[:, :, 0] < 128
    scenes = []
    for number in range(count):
        below, above = (GROUNDS[i] for i in draw.choice(len(GROUNDS), 2, replace=False))
        ground: Array = read(below).astype(np.float32)
        scale = 600 / max(ground.shape[:2])
        ground = cv2.resize(ground, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        height, width = ground.shape[:2]
        radius = draw.uniform(0.09, 0.3) * min(height, width)
        x, y = draw.uniform(radius * 1.2, width - radius * 1.2), draw.uniform(radius * 1.2, height - radius * 1.2)
        shape = _shape(number % 4, draw, horse, (height, width), radius, (x, y))
        soft = cv2.GaussianBlur(shape, (0, 0), 0.7)[..., None]
        texture: Array = read(above).astype(np.float32)
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
        scenes.append(Known(f"{number} {Path(above).stem} on {Path(below).stem}", rgb, mask, innermost(mask)))
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


def fit(scenes: list[Known], ridge: float = 0.01) -> None:
    """Print MEAN, SCALE, WEIGHT and BIAS for limner.segment.proposals, and what they reach on scenes left out."""
    rows = [row for number, scene in enumerate(scenes) for row in _training(number, scene)]
    picked = []
    for fold in range(FOLDS):
        model = _ridge([row for row in rows if row[0] % FOLDS != fold], ridge)
        for number, features, truth in rows:
            if number % FOLDS == fold:
                picked.append((truth[int(_predict(features, model).argmax())], truth.max()))
    mean = np.mean(picked, axis=0)
    print(f"# overlap of superpixels picked on left-out scenes {mean[0]:.3f}, of the best candidates {mean[1]:.3f}")
    for name, values in zip(("MEAN", "SCALE", "WEIGHT"), _ridge(rows, ridge)[:3], strict=False):
        print(f"{name} = np.array([{', '.join(f'{value:.4f}' for value in values)}])  # of FEATURES")
    print(f"BIAS = {_ridge(rows, ridge)[3]:.4f}")


Row = tuple[int, Array, Array]  # scene, (k, f) features, (k,) overlaps


def _training(number: int, scene: Known) -> list[Row]:
    embedding: Scene = GrabCut().encode(Picture(np.ascontiguousarray(scene.rgb)), job())
    regions = embedding.regions
    height, width = regions.labels.shape
    mask = cv2.resize(scene.mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) > 0.5
    held = np.bincount(regions.labels.ravel(), weights=mask.ravel(), minlength=regions.count)
    draw = np.random.Generator(np.random.PCG64(number))
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    deep, any_ = np.argwhere(depth > 0.4 * depth.max()), np.argwhere(mask)
    first = np.array([scene.click]) * (width / scene.rgb.shape[1])
    clicks = [first] + [draw.choice(deep, 1)[:, ::-1] for _ in range(4)] + [draw.choice(any_, 3)[:, ::-1] for _ in "12"]
    rows = []
    for points in clicks:
        points = np.minimum(np.floor(points), (width - 1, height - 1)).astype(np.float64)
        sets = candidates(
            regions, embedding.trees, embedding.around.salience, superpixels_at(embedding, points), np.zeros(0, int)
        )
        both = sets @ held
        rows.append(
            (
                number,
                describe(regions, embedding.around, sets, points),
                both / (sets @ regions.area + held.sum() - both),
            )
        )
    return rows


def _ridge(rows: list[Row], ridge: float) -> tuple[Array, Array, Array, float]:
    """Means and scales of features, weights and bias; every prompt counts the same, however many its candidates."""
    features = np.concatenate([row[1] for row in rows])
    truth = np.concatenate([row[2] for row in rows])
    weight = np.concatenate([np.full(len(row[2]), 1 / len(row[2])) for row in rows])
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-9
    inputs = np.concatenate([(features - mean) / scale, np.ones((len(features), 1))], axis=1)
    system = inputs.T @ (inputs * weight[:, None]) + ridge * weight.sum() * np.eye(len(FEATURES) + 1)
    solved = np.linalg.solve(system, inputs.T @ (truth * weight))
    return mean, scale, solved[:-1], float(solved[-1])


def _predict(features: Array, model: tuple[Array, Array, Array, float]) -> Array:
    mean, scale, weight, bias = model
    return np.asarray((features - mean) / scale @ weight + bias)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.segment", description=__doc__)
    parser.add_argument("--fit", action="store_true", help="print fitted constants instead of measuring")
    arguments = parser.parse_args()
    sets = {"photographs": photographs(), "composites": composites()}
    if arguments.fit:
        fit([scene for scenes in sets.values() for scene in scenes])
        return
    for name, scenes in sets.items():
        figures = measure(scenes, print)
        print(f"== {name}, {len(scenes)} scenes: mean (median) overlap; seconds, median")
        for prompt in ("1 click", "3 clicks", "box"):
            values, seconds = figures[prompt], figures[f"{prompt}_s"]
            print(f"{prompt:10s} {np.mean(values):.3f} ({np.median(values):.3f})  {np.median(seconds):.2f} s")
        print(f"encode     {np.median(figures['encode_s']):.2f} s")


if __name__ == "__main__":
    main()
