"""Compares fills on photographs: `python -m bench.quality [--quick] [--json]`. Prints a table, writes a picture grid.

Every fill gets the same holes, whose content is known: strokes, boxes and shapes of objects. The more a hole hides, the
less a faithful copy can be expected, so the grid is to be looked at: numbers prefer blur to texture. Compared are the
server's models that are installed, each as the server runs it with `auto`, and what OpenCV and scikit-image offer.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from skimage.restoration import inpaint_biharmonic

from bench.figures import rows_table
from limner.core.picture import Picture
from limner.core.seed import generator
from limner.engine.machine import this_machine
from limner.engine.placement import place
from limner.engine.store import open_store
from limner.inpaint.filler import Filler, Options, Window
from limner.inpaint.models import MODELS
from limner.inpaint.models.patchmatch import PatchMatch
from limner.inpaint.strategy import Strategy, inpaint, plan
from limner.runtime.job import Job

ASSETS = Path(__file__).parent.parent / "assets"
OUT = Path("out/quality")
MARGIN = 128  # what is shown of the surroundings to fills that the server doesn't have

Pixels = NDArray[np.uint8]
Hole = NDArray[np.bool_]
Fill = Callable[[Pixels, Hole], Pixels]

RADII = (3, 5, 7)  # of PatchMatch's patches, beside the server's


@dataclass(frozen=True)
class Case:
    """A photograph, a hole in it, and which kind of hole it is."""

    name: str
    kind: str
    picture: Pixels  # (height, width, 3) uint8
    hole: Hole  # (height, width)


@dataclass(frozen=True)
class Score:
    """How one fill did in one case: `psnr` in dB and `ssim` within the hole, `seam` as `seam_error`, `seconds`."""

    psnr: float
    ssim: float
    seam: float
    seconds: float


# ---- fills ---------------------------------------------------------------------------------------------------------


def fills() -> dict[str, Fill]:
    """Return every fill by name: the server's first. Models that aren't installed are left out."""
    store, machine = open_store(), this_machine()
    compared: dict[str, Fill] = {}
    for name, source in MODELS.items():
        if not store.missing(source.CARD):
            placement = place(source.CARD, machine, differences=store.differences(source.CARD))
            compared[name] = served(source.load(placement, store), source.window(Options()))
    window = MODELS["patchmatch"].window(Options())
    compared |= {
        f"patchmatch {2 * radius + 1}×{2 * radius + 1}": served(PatchMatch(radius), window) for radius in RADII
    }
    compared["xphoto shift map"] = _near(_shift_map)
    compared["biharmonic"] = _near(_biharmonic)
    return compared


def served(model: Filler, window: Window) -> Fill:
    """Return a model's fill as the server gives it with `auto`."""

    def fill(picture: Pixels, hole: Hole) -> Pixels:
        mask = np.where(hole, np.uint8(255), np.uint8(0))
        job = Job(seed=0, previews=False, deadline=None, publish=lambda field, message: None)
        filled = inpaint(Picture(picture), mask, plan(mask, Strategy.AUTO, window), model, window, Options(), job)
        return np.asarray(filled.pixels, np.uint8)

    return fill


def _near(fill: Fill) -> Fill:
    """Let a fill see the hole's surroundings only."""

    def fill_near(picture: Pixels, hole: Hole) -> Pixels:
        x, y, width, height = cv2.boundingRect(hole.astype(np.uint8))
        rows = slice(max(0, y - MARGIN), y + height + MARGIN)
        columns = slice(max(0, x - MARGIN), x + width + MARGIN)
        filled = picture.copy()
        part = np.ascontiguousarray(picture[rows, columns]), np.ascontiguousarray(hole[rows, columns])
        filled[rows, columns] = fill(*part)
        return filled

    return fill_near


def _shift_map(picture: Pixels, hole: Hole) -> Pixels:
    """OpenCV's shift maps, which are compared in Lab. Its FSR_BEST is left out: 8 s for a hole of 800 pixels."""
    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2Lab)
    filled = np.zeros_like(lab)
    known = np.where(hole, np.uint8(0), np.uint8(255))
    cv2.xphoto.inpaint(lab, known, filled, cv2.xphoto.INPAINT_SHIFTMAP)
    return np.asarray(cv2.cvtColor(filled, cv2.COLOR_Lab2RGB), np.uint8)


def _biharmonic(picture: Pixels, hole: Hole) -> Pixels:
    smooth = inpaint_biharmonic(picture, hole, split_into_regions=True, channel_axis=-1)
    return np.rint(np.clip(smooth, 0, 1) * 255).astype(np.uint8)


# ---- cases ---------------------------------------------------------------------------------------------------------


def cases(quick: bool) -> Iterator[Case]:
    """Yield photographs with holes over content that is known, where an object could have stood."""
    for name, (picture, places) in photographs().items():
        for kind, draw in HOLES.items():
            hole = draw(picture.shape[:2], places, generator(len(name) + len(kind)))
            if not quick or kind == "object":
                yield Case(name, kind, picture, hole)


def photographs() -> dict[str, tuple[Pixels, list[tuple[int, int]]]]:
    """Return RGB photographs and where (x, y) to put holes: in texture, at edges and in soft backgrounds."""
    return {
        "moss": (_asset("demo.jpg"), [(300, 180)]),
        "bark": (_asset("nuthatch.jpg"), [(250, 350)]),
        "bark's edge": (_asset("nuthatch.jpg"), [(530, 560)]),
        "stalk": (_asset("ladybird.jpg"), [(690, 360)]),
        "bokeh": (_asset("ladybird.jpg"), [(800, 180)]),
        "coffee": (skimage.data.coffee(), [(500, 290)]),
        "cat": (skimage.data.chelsea(), [(300, 220)]),
        "grass": (np.dstack([skimage.data.grass()] * 3), [(250, 250)]),
        "brick": (np.dstack([skimage.data.brick()] * 3), [(250, 250)]),
        "suit": (skimage.data.astronaut(), [(130, 430)]),
    }


def _asset(name: str) -> Pixels:
    return np.asarray(cv2.imread(str(ASSETS / name), cv2.IMREAD_COLOR_RGB), np.uint8)


def _strokes(shape: tuple[int, int], places: list[tuple[int, int]], random: np.random.Generator) -> Hole:
    """A scribble of 9 pixels' width, as scratches and words are."""
    hole = np.zeros(shape, np.uint8)
    for x, y in places:
        points = (np.array([x, y]) + np.cumsum(random.normal(0, 34, (9, 2)), axis=0)).astype(np.int32)
        cv2.polylines(hole, [points], isClosed=False, color=1, thickness=9)
    return hole.astype(bool)


def _box(shape: tuple[int, int], places: list[tuple[int, int]], random: np.random.Generator) -> Hole:
    hole = np.zeros(shape, np.bool_)
    for x, y in places:
        hole[y - 35 : y + 35, x - 50 : x + 50] = True
    return hole


def _object(shape: tuple[int, int], places: list[tuple[int, int]], random: np.random.Generator) -> Hole:
    """A blob of about 110 × 110 pixels with an uneven outline."""
    hole = np.zeros(shape, np.uint8)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for x, y in places:
        radii = 55 * (1 + 0.25 * np.sin(3 * angles + random.uniform(0, 6)) + random.normal(0, 0.05, 24))
        outline = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1)
        cv2.fillPoly(hole, [outline.astype(np.int32)], 1)
    return hole.astype(bool)


HOLES = {"stroke": _strokes, "box": _box, "object": _object}


# ---- scores --------------------------------------------------------------------------------------------------------


def score(case: Case, filled: Pixels, seconds: float) -> Score:
    """Compare a fill with what was there."""
    error = filled[case.hole].astype(np.float64) - case.picture[case.hole]
    psnr = float(10 * np.log10(255**2 / max(float(np.mean(error**2)), 1e-6)))
    _, similarity = structural_similarity(case.picture, filled, channel_axis=-1, full=True)
    return Score(psnr, float(similarity[case.hole].mean()), seam_error(filled, case), seconds)


def seam_error(filled: Pixels, case: Case) -> float:
    """Return by how much the steps across the hole's border differ from the photograph's there, in grey values."""
    steps = [_border_step(pixels, case.hole) for pixels in (filled, case.picture)]
    return abs(steps[0] - steps[1])


def _border_step(pixels: Pixels, hole: Hole) -> float:
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float64)
    across, down = hole[:, 1:] != hole[:, :-1], hole[1:] != hole[:-1]
    steps = [np.abs(np.diff(grey, axis=1))[across], np.abs(np.diff(grey, axis=0))[down]]
    return float(np.concatenate(steps).mean())


# ---- the comparison ------------------------------------------------------------------------------------------------


def compare(quick: bool) -> tuple[dict[tuple[str, str], list[Score]], list[Pixels]]:
    """Return scores by (fill, kind of hole), and for every object case a row of pictures for the grid."""
    compared = fills()
    scores: dict[tuple[str, str], list[Score]] = {}
    rows = []
    for case in cases(quick):
        row = [_tile(np.where(case.hole[:, :, None], np.array([255, 0, 255], np.uint8), case.picture), case, case.name)]
        row.append(_tile(case.picture, case, "original"))
        for name, fill in compared.items():
            began = time.perf_counter()
            filled = np.where(case.hole[:, :, None], fill(case.picture, case.hole), case.picture)
            scores.setdefault((name, case.kind), []).append(score(case, filled, time.perf_counter() - began))
            row.append(_tile(filled, case, name))
        if case.kind == "object":
            rows.append(np.hstack(row))
    return scores, rows


def _tile(picture: Pixels, case: Case, label: str) -> Pixels:
    """Return 208 × 208 pixels around the hole, at full size, with a label."""
    x, y, width, height = cv2.boundingRect(case.hole.astype(np.uint8))
    centre = (x + width / 2, y + height / 2)
    tile = np.asarray(cv2.getRectSubPix(picture, (208, 208), centre), np.uint8)
    cv2.putText(tile, label, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 3)
    cv2.putText(tile, label, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1)
    return tile


def summary(scores: dict[tuple[str, str], list[Score]]) -> list[dict[str, object]]:
    """Return the means by kind of hole and fill."""
    return [
        {
            "hole": kind,
            "fill": name,
            "psnr_db": round(fmean(one.psnr for one in its_scores), 2),
            "ssim": round(fmean(one.ssim for one in its_scores), 3),
            "seam": round(fmean(one.seam for one in its_scores), 2),
            "seconds": round(fmean(one.seconds for one in its_scores), 2),
            "cases": len(its_scores),
        }
        for (name, kind), its_scores in sorted(scores.items(), key=lambda item: (item[0][1], -item[1][0].ssim))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="holes like objects only")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    scores, rows = compare(arguments.quick)
    entries = summary(scores)
    OUT.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(OUT / "grid.png"), cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))
    (OUT / "results.json").write_text(json.dumps(entries, indent=2) + "\n")
    ordered = sorted(entries, key=lambda entry: (str(entry["hole"]), -float(str(entry["ssim"]))))
    print(json.dumps(ordered) if arguments.json else rows_table(ordered))
    print(f"written to {OUT}/grid.png and results.json", file=sys.stderr)


if __name__ == "__main__":
    main()
