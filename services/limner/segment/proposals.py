"""Sets of superpixels that could be the object, and how much each looks like one. Knows no pixels.

A person who clicks means a thing that differs from what surrounds it, with edges all around, of a middling size, with
the click somewhere in its middle. `appeal` says so in numbers; its weights were fitted listwise on the scenes
of `bench/segment.py`: the candidate that overlaps most with what was meant is to win.
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


# fmt: off
# Of these features, in this order: edge, weak, contrast, ring, wide ring, apart, log area, its square, frame, frame
# ratio, compact, fill, off centre, inner, salient, stands out. Fitted: `python -m bench.segment --fit` prints them.
MEAN = np.array([
    0.6334, 0.1615, 0.6001, 0.4882, 0.4968, 0.6132, 0.1706, 0.6886, 0.2094, 0.1469, 0.2060,
    0.5679, 0.4445, 0.3734, 0.4444, 0.0886,
])
SCALE = np.array([
    0.2062, 0.2409, 0.2257, 0.2381, 0.2423, 0.2366, 0.8121, 0.6553, 0.3452, 0.2617, 0.1690,
    0.2202, 0.2350, 0.1781, 0.2751, 0.2599,
])
WEIGHT = np.array([
    0.0364, -0.0154, 0.0205, 0.0269, 0.0052, 0.0027, -0.0194, -0.0836, -0.0559, -0.0002, 0.0024,
    0.0904, -0.0455, 0.0421, 0.0263, 0.0571,
])
# fmt: on
BIAS = 0.3378


def describe(regions: Regions, around: Surroundings, sets: Array, clicks: Array) -> Array:
    """(k, n) bool sets and (c, 2) clicks in working pixels to (k, 16) float64."""
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
    """(k, 16) to (k,) float64: about the overlap to be expected with what was meant, roughly 0 to 1."""
    return np.asarray((features - MEAN) / SCALE @ WEIGHT + BIAS)
