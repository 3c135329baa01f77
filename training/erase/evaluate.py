"""Compares `limner-erase` with the server's fills that need no weights: `python -m training.erase.evaluate`.

Everything goes the server's own way, with `auto`, as in `bench.quality`, whose cases and scores these are, with the
wallpapers beside them that were held out. Writes results.json and grid.png, whose tiles are 512 pixels a side, enlarged
to that where a photograph is smaller: numbers alone prefer blur to texture, so look at it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean

import cv2
import numpy as np

from bench.figures import rows_table
from bench.quality import HOLES, Case, Fill, Pixels, Score, cases, score, served, summary
from limner.core.placement import Placement
from limner.core.seed import generator
from limner.engine.session import open_session
from limner.engine.store import open_store
from limner.inpaint.filler import Options
from limner.inpaint.models import MODELS
from limner.inpaint.models._lama import MULTIPLE, SMALLEST
from limner.inpaint.network import ImageMaskFiller
from training.erase.export import TO
from training.photographs import load
from training.sources import OUT

NAME = "limner-erase"
WEIGHT_FREE = ("patchmatch", "fsr", "navier-stokes", "telea")
LONGER_SIDE = 960  # of held-out wallpapers: as pictures on a screen
TILE = 512
_BORDER = 90  # pixels: holes of wallpapers lie at least so far from their edges
_HERE = Placement("cpu", "fp32", "onnxruntime", "to compare it")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.erase.evaluate", description=__doc__)
    parser.add_argument("--network", type=Path, default=TO, help="the ONNX file (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT / "erase", help="for results.json and grid.png")
    parser.add_argument("--sources", type=Path, default=OUT, help="where the packages are (default: %(default)s)")
    parser.add_argument("--fills", nargs="*", default=[NAME, *WEIGHT_FREE], help="which to compare")
    asked = parser.parse_args(arguments)
    compared = {name: fill_of(name, asked.network) for name in asked.fills}
    every = list(chain(cases(quick=False), wallpapers(load(asked.sources, "heldout", "photograph"))))
    scores, rows = compare(every, compared)
    results = [*summary(scores), *summary({(name, "all"): each for name, each in together(scores).items()})]
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    cv2.imwrite(str(asked.out / "grid.png"), cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))
    print(rows_table(results))
    if NAME in compared and len(compared) > 1:
        psnr, ssim = lead(scores)
        print(f"{NAME} against the best of the others, over all holes: {psnr:+.2f} dB, SSIM {ssim:+.3f}")


def fill_of(name: str, network: Path) -> Fill:
    """Return one of the server's fills that need no weights, or the one of an ONNX file."""
    source = MODELS[name]
    if name == NAME:
        session = open_session(network, _HERE)
        return served(ImageMaskFiller(session, multiple=MULTIPLE, least=SMALLEST), source.window(Options()))
    return served(source.load(_HERE, open_store()), source.window(Options()))


def wallpapers(photographs: Sequence[Pixels]) -> Iterator[Case]:
    """Yield each photograph with a hole of every kind, at a place that a fixed seed draws."""
    for number, photograph in enumerate(photographs):
        factor = min(1.0, LONGER_SIDE / max(photograph.shape[:2]))
        size = (round(photograph.shape[1] * factor), round(photograph.shape[0] * factor))
        picture = np.asarray(cv2.resize(photograph, size, interpolation=cv2.INTER_AREA), np.uint8)
        random = generator(number)
        for kind, draw in HOLES.items():
            place = [int(random.integers(_BORDER, side - _BORDER)) for side in size]
            yield Case(f"wallpaper {number}", kind, picture, draw(picture.shape[:2], [(place[0], place[1])], random))


def compare(
    every: Sequence[Case], compared: dict[str, Fill]
) -> tuple[dict[tuple[str, str], list[Score]], list[Pixels]]:
    """Return scores by (fill, kind of hole), and for every object a row of pictures: hole, original and fills."""
    scores: dict[tuple[str, str], list[Score]] = {}
    rows = []
    for case in every:
        lost = np.where(case.hole[:, :, None], np.array([255, 0, 255], np.uint8), case.picture)
        row = [tile(lost, case, f"{case.name}: {case.kind}"), tile(case.picture, case, "original")]
        for name, fill in compared.items():
            began = time.perf_counter()
            filled = np.where(case.hole[:, :, None], fill(case.picture, case.hole), case.picture)
            found = score(case, filled, time.perf_counter() - began)
            scores.setdefault((name, case.kind), []).append(found)
            row.append(tile(filled, case, f"{name} {found.psnr:.1f} dB"))
        if case.kind == "object":
            rows.append(np.hstack(row))
    return scores, rows


def together(scores: dict[tuple[str, str], list[Score]]) -> dict[str, list[Score]]:
    """Return the scores of all kinds of holes by fill."""
    names = dict.fromkeys(name for name, _ in scores)
    return {name: [each for (its, _), found in scores.items() if its == name for each in found] for name in names}


def lead(scores: dict[tuple[str, str], list[Score]]) -> tuple[float, float]:
    """Return by how much PSNR, in dB, and SSIM of limner-erase are above those of the best fill in each, over all."""
    means = {
        name: (fmean(one.psnr for one in found), fmean(one.ssim for one in found))
        for name, found in together(scores).items()
    }
    psnr, ssim = means.pop(NAME)
    return psnr - max(each[0] for each in means.values()), ssim - max(each[1] for each in means.values())


def tile(picture: Pixels, case: Case, label: str) -> Pixels:
    """Return TILE × TILE pixels around the hole, with a label, from as many of the picture as there are."""
    x, y, width, height = cv2.boundingRect(case.hole.astype(np.uint8))
    side = min(TILE, *picture.shape[:2])
    left = min(max(x + (width - side) // 2, 0), picture.shape[1] - side)
    top = min(max(y + (height - side) // 2, 0), picture.shape[0] - side)
    part = cv2.resize(picture[top : top + side, left : left + side], (TILE, TILE), interpolation=cv2.INTER_CUBIC)
    cv2.putText(part, label, (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0), 4)
    cv2.putText(part, label, (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 1)
    return np.asarray(part, np.uint8)


if __name__ == "__main__":
    main()
