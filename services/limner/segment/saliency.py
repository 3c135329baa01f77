"""Which superpixels stand out from the picture's frame.

Robust background detection and saliency optimisation, Zhu, Liang, Wei and Sun 2014: background is what is well
connected to the frame for its extent; contrast with background makes foreground; least squares makes both smooth.
"""

from __future__ import annotations

import heapq

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.sparse.csgraph import dijkstra
from scipy.sparse.linalg import spsolve

from limner.segment.regions import Array, Regions

COLOUR_SIGMA = 10.0  # Lab units, as in the paper
SPACE_SIGMA = 0.25  # of the picture's longer side
CONNECTIVITY_SIGMA = 1.0
SMOOTHNESS = 0.1


def saliency(regions: Regions) -> Array:
    """(n,) float64, 0 background to 1 foreground."""
    n = regions.count
    if n < 4:
        return np.full(n, 0.5)
    first, second = regions.pairs.T
    difference = np.sqrt(((regions.colour[first] - regions.colour[second]) ** 2).sum(axis=1))
    # Within a smooth region tiny differences would add up to a barrier: the paper takes off what is usual.
    usual = _usual_difference(difference, first, second, n)
    weight = np.maximum(difference - usual, 0) + 1e-3  # a sparse graph takes 0 for "no edge"
    graph = csr_matrix((weight, (first, second)), shape=(n, n))
    on_frame = regions.frame > 0
    # All of the frame is one background: a strip along it costs nothing.
    frame_nodes = np.flatnonzero(on_frame)
    ring = csr_matrix(
        (np.full(len(frame_nodes), 1e-3), (frame_nodes, np.full(len(frame_nodes), frame_nodes[0]))), shape=(n, n)
    )
    ring.setdiag(0)
    ring.eliminate_zeros()
    distance = dijkstra(graph.maximum(ring), directed=False)
    likeness = np.exp(-(distance**2) / (2 * COLOUR_SIGMA**2))
    extent = likeness.sum(axis=1)
    along_frame = likeness[:, on_frame].sum(axis=1)
    connectivity = along_frame / np.sqrt(extent)
    background = 1 - np.exp(-(connectivity**2) / (2 * CONNECTIVITY_SIGMA**2))

    longer = max(regions.labels.shape)
    apart = ((regions.centre[:, None] - regions.centre[None]) ** 2).sum(axis=2)
    colour = np.sqrt(((regions.colour[:, None] - regions.colour[None]) ** 2).sum(axis=2))
    nearness = np.exp(-apart / (2 * (SPACE_SIGMA * longer) ** 2))
    foreground = (colour * nearness * background[None] * regions.area[None]).sum(axis=1)
    foreground /= max(float(foreground.max()), 1e-9)

    bond = np.exp(-(difference**2) / (2 * COLOUR_SIGMA**2)) + SMOOTHNESS
    link = coo_matrix((bond, (first, second)), shape=(n, n)).tocsr()
    link = link + link.T
    degree = np.asarray(link.sum(axis=1)).ravel()
    system = diags(degree) - link + diags(background + foreground)
    solved = np.clip(spsolve(system.tocsc(), foreground), 0, None)
    low, high = float(solved.min()), float(solved.max())
    return (solved - low) / (high - low) if high > low else np.zeros(n)


def _usual_difference(difference: Array, first: Array, second: Array, n: int) -> float:
    """The mean of every superpixel's smallest difference from a neighbour."""
    smallest = np.full(n, np.inf)
    np.minimum.at(smallest, first, difference)
    np.minimum.at(smallest, second, difference)
    finite = smallest[np.isfinite(smallest)]
    return float(finite.mean()) if len(finite) else 0.0


def barrier_distance(regions: Regions) -> Array:
    """(n,) float64, 0 or more: the smallest range of values on a path from the frame, added up over L, a and b.

    Minimum barrier salient object detection at 80 FPS, Zhang et al. 2015, by Dijkstra's algorithm on superpixels: a
    gradual background costs what it changes, once.
    """
    neighbours: list[list[int]] = [[] for _ in range(regions.count)]
    for first, second in regions.pairs.tolist():
        neighbours[first].append(second)
        neighbours[second].append(first)
    total = np.zeros(regions.count)
    frame = np.flatnonzero(regions.frame > 0).tolist()
    for channel in range(3):
        values = regions.colour[:, channel].tolist()
        distance = [np.inf] * regions.count
        heap = [(0.0, node, values[node], values[node]) for node in frame]
        while heap:
            cost, node, low, high = heapq.heappop(heap)
            if distance[node] <= cost:
                continue
            distance[node] = cost
            for other in neighbours[node]:
                if distance[other] == np.inf:
                    least, most = min(low, values[other]), max(high, values[other])
                    heapq.heappush(heap, (most - least, other, least, most))
        total += distance
    return total
