"""Superpixels of a picture, what is known of each, and the trees that merge them into ever larger regions.

Any node of a tree is a candidate for "the object": `limner.segment.proposals` scores them. Knows no clicks.

Superpixels are SLIC (Achanta et al. 2012). The trees merge greedily, as in selective search (Uijlings et al. 2013),
each by another likeness, because objects differ in what holds them together.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]  # shape and dtype are said where it is used

PALETTE_SIZE = 40
TARGET_REGIONS = 900


@dataclass(frozen=True)
class Regions:
    """n superpixels and the m borders between neighbours."""

    labels: Array  # (h, w) int32, 0 to n - 1
    area: Array  # (n,) float64, pixels
    colour: Array  # (n, 3) float64, mean CIE Lab
    histogram: Array  # (n, p) float64, pixels for each palette colour
    frame: Array  # (n,) float64, pixels on the picture's frame
    centre: Array  # (n, 2) float64, mean x and y
    palette: Array  # (p, 3) float32, CIE Lab
    pairs: Array  # (m, 2) int32, the lower index first
    length: Array  # (m,) float64, pixels of common border
    strength: Array  # (m,) float64, mean edge strength along it, 0 to 1

    @property
    def count(self) -> int:
        return len(self.area)


def lab(rgb: Array) -> Array:
    """(h, w, 3) uint8 RGB to (h, w, 3) float32 CIE Lab: L 0 to 100, a and b about -100 to 100."""
    return cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)


def edge_strength(lab_pixels: Array) -> Array:
    """(h, w, 3) float32 Lab to (h, w) float32, 0 on flat ground to 1 on the picture's strongest edges.

    The largest singular value of the colour gradient (Di Zenzo 1986) at two scales, relative to the picture's own
    range, so that a foggy picture has edges too.
    """
    total = np.zeros(lab_pixels.shape[:2], np.float32)
    for sigma in (0.8, 1.8):
        smooth = cv2.GaussianBlur(lab_pixels, (0, 0), sigma)
        dx = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, ksize=3) / 8
        dy = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, ksize=3) / 8
        xx, yy, xy = (dx * dx).sum(axis=2), (dy * dy).sum(axis=2), (dx * dy).sum(axis=2)
        total += sigma * np.sqrt((xx + yy + np.sqrt((xx - yy) ** 2 + 4 * xy * xy)) / 2)
    scale = max(1.0, float(np.percentile(total, 90)))
    return np.asarray(1 - np.exp(-total / scale))


def palette_of(colours: Array, size: int = PALETTE_SIZE) -> Array:
    """At most `size` Lab colours, (p, 3) float32, that stand for (n, 3) colours: k-means from a fixed start."""
    distinct = np.unique(np.round(colours), axis=0).astype(np.float32)
    if len(distinct) <= size:
        return distinct
    # Farthest-point start: no randomness, and rare but striking colours get an entry of their own.
    chosen = [int(np.argmin(((distinct - distinct.mean(axis=0)) ** 2).sum(axis=1)))]
    nearest = np.full(len(distinct), np.inf, np.float32)
    for _ in range(size - 1):
        nearest = np.minimum(nearest, ((distinct - distinct[chosen[-1]]) ** 2).sum(axis=1))
        chosen.append(int(nearest.argmax()))
    palette = distinct[chosen]
    samples = colours.astype(np.float32)
    for _ in range(4):
        owner = nearest_colour(samples, palette)
        weight = np.bincount(owner, minlength=size)
        for channel in range(3):
            total = np.bincount(owner, weights=samples[:, channel], minlength=size)
            palette[:, channel] = np.where(weight > 0, total / np.maximum(weight, 1), palette[:, channel])
    return palette


def nearest_colour(colours: Array, palette: Array) -> Array:
    """(n, 3) to (n,) indices into (p, 3)."""
    # |c - p|² less |c|², which is the same for every p
    return np.asarray(np.argmin((palette**2).sum(axis=1)[None] - 2 * colours @ palette.T, axis=1))


def superpixels(lab_pixels: Array, target: int = TARGET_REGIONS) -> Array:
    """(h, w) int32 labels 0 to n - 1 of about `target` connected superpixels."""
    height, width = lab_pixels.shape[:2]
    side = max(1, round(float(np.sqrt(height * width / target))))
    if side < 4 or min(height, width) < 2 * side:  # too small for SLIC: a superpixel a pixel, or a small square
        rows, columns = np.arange(height) // side, np.arange(width) // side
        return np.asarray(rows[:, None] * (columns[-1] + 1) + columns[None], np.int32)
    scaled = np.clip(lab_pixels * (2.55, 1, 1) + (0, 128, 128), 0, 255).astype(np.uint8)
    slic = cv2.ximgproc.createSuperpixelSLIC(scaled, cv2.ximgproc.SLIC, side, 25.0)
    slic.iterate(6)
    slic.enforceLabelConnectivity(20)
    labels = slic.getLabels()
    return np.unique(labels, return_inverse=True)[1].reshape(height, width).astype(np.int32)


def find_regions(lab_pixels: Array, edges: Array) -> Regions:
    """Superpixels of (h, w, 3) float32 Lab pixels with their statistics, borders measured on (h, w) edge strength."""
    labels = superpixels(lab_pixels)
    width = labels.shape[1]
    flat = labels.ravel()
    count = int(flat.max()) + 1
    area = np.bincount(flat, minlength=count).astype(np.float64)
    pixels = lab_pixels.reshape(-1, 3)
    colour = np.stack([np.bincount(flat, weights=pixels[:, c], minlength=count) / area for c in range(3)], axis=1)
    palette = palette_of(np.concatenate([colour, pixels[:: max(1, len(pixels) // 6000)]]))
    bins = nearest_colour(pixels, palette)
    histogram = np.bincount(flat * len(palette) + bins, minlength=count * len(palette)).astype(np.float64)
    ys, xs = np.divmod(np.arange(flat.size), width)
    centre = np.stack([np.bincount(flat, weights=v, minlength=count) / area for v in (xs, ys)], axis=1)
    on_frame = np.zeros(labels.shape, bool)
    on_frame[[0, -1], :] = on_frame[:, [0, -1]] = True
    frame = np.bincount(flat, weights=on_frame.ravel(), minlength=count)

    firsts, seconds, weights = [], [], []
    for a, b, e in (
        (labels[:, :-1], labels[:, 1:], np.maximum(edges[:, :-1], edges[:, 1:])),
        (labels[:-1], labels[1:], np.maximum(edges[:-1], edges[1:])),
    ):
        differ = a != b
        firsts.append(np.minimum(a[differ], b[differ]))
        seconds.append(np.maximum(a[differ], b[differ]))
        weights.append(e[differ])
    key = np.concatenate(firsts).astype(np.int64) * count + np.concatenate(seconds)
    unique, inverse = np.unique(key, return_inverse=True)
    length = np.bincount(inverse, minlength=len(unique)).astype(np.float64)
    strength = np.bincount(inverse, weights=np.concatenate(weights), minlength=len(unique)) / np.maximum(length, 1)
    pairs = np.stack(np.divmod(unique, count), axis=1).astype(np.int32)
    return Regions(
        labels=labels,
        area=area,
        colour=colour,
        histogram=histogram.reshape(count, len(palette)),
        frame=frame,
        centre=centre,
        palette=palette,
        pairs=pairs,
        length=length,
        strength=strength,
    )


# A likeness tells how unwilling two neighbours are to merge:
# (areas a, b; fraction of the picture they make; Lab distance; histogram distance 0..1; border strength 0..1)
Unwillingness = Callable[[Array, Array, Array, Array, Array], Array]


def by_colour(small: Array, _: Array, colour: Array, histogram: Array, border: Array) -> Array:
    """Ward's criterion on the mean colour: small regions go first, then like ones."""
    return np.sqrt(small) * (colour / 100 + 0.02) * (0.3 + border)


def by_palette(small: Array, together: Array, colour: Array, histogram: Array, border: Array) -> Array:
    """Histograms of colours, so that a patterned thing merges with itself; then size."""
    return histogram + 0.6 * together + 0.3 * border


def by_border(small: Array, together: Array, colour: Array, histogram: Array, border: Array) -> Array:
    """What no edge divides belongs together; small regions inside a larger one go with it."""
    return np.asarray((border + 0.3 * histogram) * np.minimum(small * 20, 1) ** 0.35)


LIKENESSES: tuple[Unwillingness, ...] = (by_colour, by_palette, by_border)


def merge(regions: Regions, unwillingness: Unwillingness) -> Array:
    """Merge superpixels two at a time until one is left (or no neighbours are).

    Returns (2n - 1,) int32: the parent of each node, -1 for the last one. Nodes 0 to n - 1 are the superpixels.
    """
    n = regions.count
    total = regions.area.sum()
    nodes = 2 * n - 1
    area = np.zeros(nodes)
    colour = np.zeros((nodes, 3))
    histogram = np.zeros((nodes, regions.histogram.shape[1]))
    area[:n], colour[:n] = regions.area, regions.colour
    kernel = palette_kernel(regions.palette)
    histogram[:n] = (regions.histogram / regions.area[:, None]) @ kernel
    parent = np.full(nodes, -1, np.int32)
    borders: list[dict[int, tuple[float, float]]] = [{} for _ in range(n)]  # neighbour -> length, strength × length

    def costs(node: int, others: Array, strength: Array) -> Array:
        small = np.minimum(area[node], area[others]) / total
        together = (area[node] + area[others]) / total
        distance = np.sqrt(((colour[node] - colour[others]) ** 2).sum(axis=-1))
        overlap = np.minimum(histogram[node], histogram[others]).sum(axis=-1)
        return unwillingness(small, together, distance, 1 - overlap, strength)

    first, second = regions.pairs.T
    small = np.minimum(area[first], area[second]) / total
    together = (area[first] + area[second]) / total
    distance = np.sqrt(((colour[first] - colour[second]) ** 2).sum(axis=-1))
    overlap = np.minimum(histogram[first], histogram[second]).sum(axis=-1)
    initial = unwillingness(small, together, distance, 1 - overlap, regions.strength)
    heap = []
    for a, b, length, strength, cost in zip(
        first.tolist(),
        second.tolist(),
        regions.length.tolist(),
        regions.strength.tolist(),
        initial.tolist(),
        strict=True,
    ):
        borders[a][b] = borders[b][a] = (length, strength * length)
        heap.append((cost, a, b))
    heapq.heapify(heap)
    alive = [True] * n
    while heap:
        _, a, b = heapq.heappop(heap)
        if not (alive[a] and alive[b]):
            continue
        node = len(borders)
        alive[a] = alive[b] = False
        alive.append(True)
        parent[a] = parent[b] = node
        area[node] = area[a] + area[b]
        share = area[a] / area[node]
        colour[node] = share * colour[a] + (1 - share) * colour[b]
        histogram[node] = share * histogram[a] + (1 - share) * histogram[b]
        around: dict[int, tuple[float, float]] = {}
        for old in (a, b):
            for other, (length, strength) in borders[old].items():
                if other not in (a, b):
                    known = around.get(other, (0.0, 0.0))
                    around[other] = (known[0] + length, known[1] + strength)
                    borders[other].pop(old, None)
        borders[a] = borders[b] = {}
        borders.append(around)
        if not around:
            continue
        for other, border in around.items():
            borders[other][node] = border
        others = np.fromiter(around, np.int64, len(around))
        strengths = np.array([s / length for length, s in around.values()])
        for other, cost in zip(others.tolist(), costs(node, others, strengths).tolist(), strict=True):
            heapq.heappush(heap, (cost, other, node))
    return parent[: len(borders)]


def palette_kernel(palette: Array, reach: float = 12.0) -> Array:
    """(p, p) float64 rows that sum to 1: spreads a palette entry over its like, `reach` in Lab units, so that
    histograms of nearly the same colours overlap."""
    distance = ((palette[:, None] - palette[None]) ** 2).sum(axis=2).astype(np.float64)
    kernel = np.exp(-distance / (2 * reach**2))
    return np.asarray(kernel / kernel.sum(axis=1, keepdims=True))


def coarsen(regions: Regions, parent: Array, count: int) -> tuple[Regions, Array]:
    """Undo a tree's last `count` - 1 merges: regions as they were then, and (n,) int64, the one each superpixel is in.

    Their `labels` stay those of the superpixels' picture, renamed.
    """
    n = regions.count
    first_kept = max(n, len(parent) - count + 1)  # nodes from here on are undone
    top = np.arange(len(parent))
    for node in range(first_kept - 1, -1, -1):
        if 0 <= parent[node] < first_kept:
            top[node] = top[parent[node]]
    owner = np.unique(top[:n], return_inverse=True)[1].ravel()
    k = int(owner.max()) + 1

    def added(values: Array) -> Array:
        total = np.zeros((k, *values.shape[1:]))
        np.add.at(total, owner, values)
        return total

    area = added(regions.area)
    pairs = np.sort(owner[regions.pairs], axis=1)
    apart = pairs[:, 0] != pairs[:, 1]
    unique, inverse = np.unique(pairs[apart, 0] * k + pairs[apart, 1], return_inverse=True)
    length = np.bincount(inverse, weights=regions.length[apart], minlength=len(unique))
    strength = np.bincount(inverse, weights=(regions.length * regions.strength)[apart], minlength=len(unique))
    merged = Regions(
        labels=owner.astype(np.int32)[regions.labels],
        area=area,
        colour=added(regions.colour * regions.area[:, None]) / area[:, None],
        histogram=added(regions.histogram),
        frame=added(regions.frame),
        centre=added(regions.centre * regions.area[:, None]) / area[:, None],
        palette=regions.palette,
        pairs=np.stack(np.divmod(unique, k), axis=1).astype(np.int32),
        length=length,
        strength=strength / np.maximum(length, 1),
    )
    return merged, owner
