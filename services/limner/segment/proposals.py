"""Sets of superpixels that could be the object, and how much each looks like one. Knows no pixels.

A person who clicks means a thing that differs from what surrounds it, with edges all around, of a middling size, with
the click somewhere in its middle. `appeal` says so in numbers; its weights were fitted by ridge regression on the
scenes of `bench/segment.py` (target: the candidate's overlap with what was meant).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from limner.segment.regions import Array, Regions, palette_kernel


@dataclass(frozen=True)
class Surroundings:
    """What describing candidates needs of a picture's regions, worked out once."""

    near: csr_matrix  # (n, n) float32, 1 where two superpixels touch or are the same
    histogram: Array  # (n, p) float32, pixels for each palette colour, spread over like colours
    contrast: Array  # (m,) float64, colour difference across each border, 0 to 1
    boxes: Array  # (n, 4) float64: left, top, right, bottom (exclusive)
    salience: Array  # (n,) float64, 0 background to 1 foreground


def survey(regions: Regions, salience: Array) -> Surroundings:
    """Work it out."""
    n = regions.count
    first, second = regions.pairs.T
    itself = np.arange(n)
    near = csr_matrix(
        (
            np.ones(n + 2 * len(first), np.float32),
            (np.concatenate([first, second, itself]), np.concatenate([second, first, itself])),
        ),
        shape=(n, n),
    )
    histogram = (regions.histogram @ palette_kernel(regions.palette)).astype(np.float32)
    share = histogram / regions.area[:, None]
    difference = np.sqrt(((regions.colour[first] - regions.colour[second]) ** 2).sum(axis=1))
    overlap = np.minimum(share[first], share[second]).sum(axis=1)
    contrast = 0.5 * (1 - np.exp(-difference / 15)) + 0.5 * (1 - overlap)
    height, width = regions.labels.shape
    ys, xs = np.divmod(np.arange(regions.labels.size), width)
    flat = regions.labels.ravel()
    boxes = np.empty((n, 4))
    for column, (values, best, start) in enumerate(
        ((xs, np.minimum, width), (ys, np.minimum, height), (xs + 1, np.maximum, 0), (ys + 1, np.maximum, 0))
    ):
        extreme = np.full(n, start)
        best.at(extreme, flat, values)
        boxes[:, column] = extreme
    return Surroundings(near, histogram, contrast, boxes, salience)


def candidates(regions: Regions, trees: tuple[Array, ...], salience: Array, positive: Array, negative: Array) -> Array:
    """(k, n) bool, distinct: the sets of superpixels that hold the positive ones and none of the negative ones.

    `positive` (p,) and `negative` (q,) are superpixels; one that is both counts as positive. A tree gives one
    candidate for every state of its growth: each positive superpixel's region as it was after some merges, or as it
    was before it met a negative one. Thresholds on the salience give more: the parts that hang together with a click.
    """
    negative = np.setdiff1d(negative, positive)
    found = [np.isin(np.arange(regions.count), positive)[None]]
    for parent in trees:
        holds = members(parent, regions.count)
        barred = np.asarray(holds[:, negative].any(axis=1))
        chains = [[node for node in _ancestors(parent, click) if not barred[node]] for click in positive]
        times = sorted({node for chain in chains for node in chain})
        found.append(
            np.stack([
                np.any([holds[max((n for n in chain if n <= time), default=chain[0])] for chain in chains], axis=0)
                for time in times
            ])
        )  # fmt: skip
    first, second = regions.pairs.T
    for level in np.linspace(0.9, 0.1, 9) * salience[positive].min():
        inside = salience >= level
        inside[negative] = False
        joined = inside[first] & inside[second]
        graph = csr_matrix((np.ones(int(joined.sum())), (first[joined], second[joined])), shape=(regions.count,) * 2)
        component = connected_components(graph, directed=False)[1]
        found.append((np.isin(component, component[positive]) & inside)[None])
    return np.unique(np.concatenate(found), axis=0)


def _ancestors(parent: Array, superpixel: int) -> list[int]:
    """The nodes of a merge tree that hold a superpixel, from itself up to the root."""
    chain = [int(superpixel)]
    while parent[chain[-1]] >= 0:
        chain.append(int(parent[chain[-1]]))
    return chain


def members(parent: Array, count: int) -> Array:
    """(len(parent), count) bool: the superpixels under each node of a tree."""
    holds = np.zeros((len(parent), count), bool)
    holds[:count] = np.eye(count, dtype=bool)
    for node, above in enumerate(parent.tolist()):  # parents come after their children
        if above >= 0:
            holds[above] |= holds[node]
    return holds


FEATURES = (
    "edge", "weak", "contrast", "ring", "wide_ring", "apart", "log_area", "log_area_squared", "frame", "frame_ratio",
    "compact", "fill", "off_centre", "inner", "salient", "stands_out",
)  # fmt: skip
# Fitted: `python -m bench.segment --fit` prints them.
MEAN = np.array(
    [
        0.6151,
        0.1556,
        0.6025,
        0.4643,
        0.4645,
        0.5708,
        0.3023,
        0.6862,
        0.2398,
        0.1533,
        0.1764,
        0.5554,
        0.4225,
        0.3570,
        0.3981,
        0.0437,
    ]
)
SCALE = np.array(
    [
        0.1963,
        0.2423,
        0.2143,
        0.2310,
        0.2402,
        0.2264,
        0.7712,
        0.6355,
        0.3585,
        0.2606,
        0.1691,
        0.2363,
        0.2294,
        0.1824,
        0.2667,
        0.2624,
    ]
)
WEIGHT = np.array(
    [
        0.0627,
        -0.0178,
        -0.0230,
        0.0067,
        0.0913,
        -0.0307,
        -0.0387,
        -0.1214,
        -0.0832,
        0.0058,
        -0.0206,
        0.1124,
        -0.0497,
        -0.0570,
        0.0032,
        0.0578,
    ]
)
BIAS = 0.2902


def describe(regions: Regions, around: Surroundings, sets: Array, clicks: Array) -> Array:
    """(k, n) bool sets and (c, 2) clicks in working pixels to (k, len(FEATURES)) float64."""
    weight = sets.astype(np.float32)
    area = sets @ regions.area
    total = regions.area.sum()
    first, second = regions.pairs.T
    crossing = sets[:, first] ^ sets[:, second]
    within = sets[:, first] & sets[:, second]
    perimeter = np.maximum(crossing @ regions.length, 1)
    edge = (crossing @ (regions.length * regions.strength)) / perimeter
    weak = (crossing @ (regions.length * (regions.strength < 0.35))) / perimeter
    contrast = (crossing @ (regions.length * around.contrast)) / perimeter
    inner_length = within @ regions.length
    inner = (within @ (regions.length * regions.strength)) / np.maximum(inner_length, 1)

    def shares(of: Array) -> Array:
        pixels = of @ around.histogram
        return np.asarray(pixels / np.maximum(pixels.sum(axis=1, keepdims=True), 1e-9))

    inside = shares(weight)

    def grown(what: Array) -> Array:
        return np.asarray((around.near @ what.T.astype(np.float32)).T > 0)

    ring = grown(sets) & ~sets
    wide = ring.copy()
    for _ in range(8):  # until it holds as much as the set itself
        small = (wide @ regions.area) < area
        if not small.any():
            break
        wide[small] |= grown(wide[small]) & ~sets[small]
    ring_distance = 1 - np.minimum(inside, shares(ring.astype(np.float32))).sum(axis=1)
    wide_distance = 1 - np.minimum(inside, shares(wide.astype(np.float32))).sum(axis=1)
    apart = 1 - np.minimum(inside, shares(1 - weight)).sum(axis=1)

    height, width = regions.labels.shape
    log_area = np.log10(np.maximum(area, 1) / total) + 1.3  # 0 at a twentieth of the picture
    on_frame = sets @ regions.frame
    frame = on_frame / (2 * (height + width))
    frame_ratio = on_frame / (on_frame + perimeter)
    compact = np.minimum(1, 4 * np.pi * area / (perimeter + on_frame) ** 2)
    left = np.where(sets, around.boxes[:, 0], width).min(axis=1)
    top = np.where(sets, around.boxes[:, 1], height).min(axis=1)
    right = np.where(sets, around.boxes[:, 2], 0).max(axis=1)
    bottom = np.where(sets, around.boxes[:, 3], 0).max(axis=1)
    fill = area / np.maximum(1, (right - left) * (bottom - top))
    middle = (sets @ (regions.centre * regions.area[:, None])) / np.maximum(area, 1)[:, None]
    offset = np.abs(clicks.mean(axis=0)[None] - middle) if len(clicks) else np.zeros_like(middle)
    spread = np.stack([right - left, bottom - top], axis=1) / 2
    off_centre = np.minimum(1.5, (offset / np.maximum(spread, 1)).max(axis=1))
    salient = (sets @ (around.salience * regions.area)) / np.maximum(area, 1)
    stands_out = salient - (wide @ (around.salience * regions.area)) / np.maximum(wide @ regions.area, 1)
    return np.stack(
        [edge, weak, contrast, ring_distance, wide_distance, apart, log_area, log_area**2, frame, frame_ratio,
         compact, fill, off_centre, inner, salient, stands_out], axis=1,
    )  # fmt: skip


def appeal(features: Array) -> Array:
    """(k, len(FEATURES)) to (k,) float64: about the overlap to be expected with what was meant, roughly 0 to 1."""
    return np.asarray((features - MEAN) / SCALE @ WEIGHT + BIAS)
