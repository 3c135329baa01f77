"""What a picture is of, without a hint: many sets of superpixels compete, and the likeliest foreground is cut out.

What stands out from the frame in colour, is in focus and lies about the middle is likely to be meant;
`FOREGROUND_WEIGHT` says how much each of that counts. It was fitted by `python -m bench.segment --fit`.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from scipy.sparse import csr_matrix, diags
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import spsolve

from limner.segment.find import BAND, cut_out
from limner.segment.proposals import describe, members
from limner.segment.regions import Array, Regions
from limner.segment.saliency import barrier_distance
from limner.segment.scene import Scene, shrunk

SHARES = (0.004, 0.9)  # of the picture: what is smaller or larger is no foreground
FOCUS_SIDE = 1024  # pixels of the longer side of the copy whose sharpness is measured
LARGEST_GROUNDS = 60  # nodes of each tree whose complements are looked at

# fmt: off
FOREGROUND_MEAN = np.array([
    0.4415, 0.3874, 0.3548, 0.2364, 0.2444, 0.3919, -0.4551, 0.5405, 0.0501, 0.0715, 0.2259,
    0.5038, 0.0000, 0.2941, 0.2077, 0.0028, 0.2410, 0.0021, 0.0695, 0.0619, 0.1026, 0.0048,
    0.0729, 0.0448, 0.3007, 0.2302, 0.2273, 0.1751, 0.0597, 0.0497, 0.0529, 0.0816, 0.6495,
])
FOREGROUND_SCALE = np.array([
    0.2130, 0.3710, 0.2498, 0.2184, 0.2254, 0.2495, 0.5774, 0.3891, 0.1340, 0.1170, 0.1418,
    0.1670, 1.0000, 0.1840, 0.2225, 0.1198, 0.2535, 0.2179, 0.1980, 0.1430, 0.1487, 0.1490,
    0.2136, 0.1084, 0.2868, 0.1420, 0.1389, 0.1704, 0.1383, 0.1630, 0.1646, 0.2124, 0.9488,
])
FOREGROUND_WEIGHT = np.array([
    0.3993, 0.1178, 0.2915, 0.3676, 0.2766, 0.2770, 0.1293, -0.2576, -0.1393, -0.1607, 0.1779,
    0.2451, 0.0000, -0.2969, -0.4272, 0.2219, 0.3100, -0.1172, 0.3273, 0.3062, 0.1865, 0.0779,
    0.1090, 0.2470, 0.1081, -0.0054, -0.0517, -0.0155, -0.1805, -0.1686, 0.0778, -0.1749, -0.0618,
])
# fmt: on


def foreground(scene: Scene, check: Callable[[], None]) -> Array:
    """What the picture is of: (h, w) bool of the detail copy; all of it, if nothing competes."""
    focus, cues = survey_cues(scene)
    check()
    sets = foreground_candidates(scene, (scene.around.salience, focus, cues))
    if not len(sets):
        return np.ones(scene.detail.shape[:2], bool)
    check()
    features = describe_foreground(scene, sets, focus, cues)
    likelihood = (features - FOREGROUND_MEAN) / FOREGROUND_SCALE @ FOREGROUND_WEIGHT
    guess = sets[int(likelihood.argmax())][scene.regions.labels]
    check()
    return cut_out(scene, guess, np.zeros((0, 2)), np.zeros((0, 2)), BAND)


def survey_cues(scene: Scene) -> tuple[Array, Array]:
    """(n,) focus, and (n,) all cues in one: salience, barrier distance, focus and nearness to the middle; 0 to 1."""
    regions = scene.regions
    focus = stretched(spread(regions, sharpness(scene)))
    height, width = regions.labels.shape
    middle = np.exp(-((regions.centre / (width, height) - 0.5) ** 2).sum(axis=1) / (2 * 0.3**2))
    barrier = stretched(np.sqrt(barrier_distance(regions)))
    # None alone may rule a superpixel out.
    cues = (0.3 + stretched(scene.around.salience)) * (0.3 + barrier) * (0.3 + focus) * (0.3 + middle)
    return focus, stretched(cues)


def stretched(values: Array) -> Array:
    """Values so that they reach from 0 to 1; 0 if all are the same."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def sharpness(scene: Scene) -> Array:
    """(n,) float64, 0 flat or out of focus to 1 the sharpest: the detail that a slight blur takes away."""
    regions = scene.regions
    height, width = regions.labels.shape
    grey = cv2.cvtColor(shrunk(scene.detail, FOCUS_SIDE), cv2.COLOR_RGB2GRAY).astype(np.float32)
    lost = np.abs(grey - cv2.GaussianBlur(grey, (0, 0), 1.0))
    lost = cv2.resize(lost, (width, height), interpolation=cv2.INTER_AREA)
    energy = np.bincount(regions.labels.ravel(), weights=(lost**2).ravel(), minlength=regions.count) / regions.area
    level = np.log(np.sqrt(energy) + 0.5)
    low, high = np.percentile(level, (5, 97))
    return np.asarray(np.clip((level - low) / max(high - low, 1.0), 0, 1))


def spread(regions: Regions, values: Array) -> Array:
    """(n,) values, each pulled to those of like neighbours that no edge divides from it, by least squares: edges are
    sharp, and what they enclose is as much in focus as they are."""
    first, second = regions.pairs.T
    difference = ((regions.colour[first] - regions.colour[second]) ** 2).sum(axis=1)
    bond = np.exp(-difference / (2 * 8.0**2)) * (1 - regions.strength) * regions.length / 10 + 0.01
    link = csr_matrix((bond, (first, second)), shape=(regions.count,) * 2)
    link = link + link.T
    own = 0.2
    system = diags(np.asarray(link.sum(axis=1)).ravel() + own) - link
    return np.asarray(spsolve(system.tocsc(), own * values))


def foreground_candidates(scene: Scene, maps: tuple[Array, ...]) -> Array:
    """(k, n) bool, distinct: upper parts of (n,) maps and their largest pieces, with and without what they enclose;
    nodes of the merge trees; and what nodes along the frame leave."""
    regions = scene.regions
    found = []
    for values in maps:
        for level in (otsu(values[regions.labels]), *np.quantile(values, (0.5, 0.6, 0.7, 0.8, 0.9, 0.95))):
            upper = values > level
            largest = pieces(regions, upper)[:3]
            found += [upper, *largest, *(filled(regions, piece) for piece in largest)]
    for parent in scene.trees:
        holds = members(parent, regions.count)
        found += list(holds)
        along_frame = holds[(holds @ regions.frame) / regions.frame.sum() > 0.3]
        found += list(~along_frame)
        for ground in along_frame[-LARGEST_GROUNDS:]:
            found += pieces(regions, ~ground)[:1]
    sets = np.array(found)
    share = sets @ regions.area / regions.area.sum()
    return np.unique(sets[(share >= SHARES[0]) & (share <= SHARES[1])], axis=0)


def pieces(regions: Regions, inside: Array) -> list[Array]:
    """The parts of a set that hang together, each (n,) bool, the largest first."""
    component = _components(regions, inside)
    area = np.bincount(component, weights=regions.area * inside)
    return [(component == i) & inside for i in np.argsort(-area, kind="stable") if area[i] > 0]


def filled(regions: Regions, inside: Array) -> Array:
    """A set with the holes that do not reach the frame."""
    component = _components(regions, ~inside)
    reaches = np.bincount(component, weights=(regions.frame > 0) & ~inside) > 0
    return np.asarray(inside | ~reaches[component])


def _components(regions: Regions, inside: Array) -> Array:
    """(n,) int: a number for each connected part of a set; superpixels off it have numbers of their own."""
    first, second = regions.pairs.T
    joined = inside[first] & inside[second]
    graph = csr_matrix((np.ones(int(joined.sum())), (first[joined], second[joined])), shape=(regions.count,) * 2)
    return np.asarray(connected_components(graph, directed=False)[1])


def otsu(values: Array) -> float:
    """The threshold that divides values 0 to 1 into two classes best."""
    eight = np.clip(values * 255, 0, 255).astype(np.uint8)
    return float(cv2.threshold(eight, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[0]) / 255


def describe_foreground(scene: Scene, sets: Array, focus: Array, cues: Array) -> Array:
    """(k, n) bool sets to (k, 33) float64: limner.segment.proposals' sixteen; of focus and of all cues
    the mean inside, what that is over the outside's, the share held of all that is above average, and the harmonic mean
    of share and purity; the place; and how much of each side of the frame is held."""
    regions = scene.regions
    area, total = sets @ regions.area, regions.area.sum()
    columns = [describe(regions, scene.around, sets, np.zeros((0, 2)))]
    for values in (focus, cues):
        inside = sets @ (values * regions.area)
        outside = (values * regions.area).sum() - inside
        mean = inside / area
        excess = np.maximum(values - np.average(values, weights=regions.area), 0) * regions.area
        held = (sets @ excess) / max(float(excess.sum()), 1e-9)
        pure = mean / max(float(values.max()), 1e-9)
        both = 2 * held * pure / np.maximum(held + pure, 1e-9)
        columns.append(np.stack([mean, mean - outside / np.maximum(total - area, 1), held, both], axis=1))
    height, width = regions.labels.shape
    middle = (sets @ (regions.centre * regions.area[:, None])) / area[:, None]
    off = np.abs(middle / (width, height) - 0.5)
    central = np.exp(-(off**2).sum(axis=1) / (2 * 0.2**2))
    columns.append(np.stack([central, off[:, 0], off[:, 1], np.sqrt(area / total), area / total], axis=1))
    labels = regions.labels
    sides = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
    along = np.stack([np.bincount(side, minlength=regions.count) / len(side) for side in sides], axis=1)
    top, bottom, left, right = (sets @ along).T
    touched = (sets @ along > 0.02).sum(axis=1)
    columns.append(np.stack([top, bottom, np.maximum(left, right), touched], axis=1))
    return np.concatenate(columns, axis=1)
