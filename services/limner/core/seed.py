"""Seeds: the same one gives the same picture, alone or in a batch, on every device."""

from __future__ import annotations

import secrets

import numpy as np

SEED_LIMIT = 2**63  # what the stubs of every language hold without a sign


def draw_seed() -> int:
    """Return a new seed in [0, 2**63)."""
    return secrets.randbelow(SEED_LIMIT)


def generator(seed: int) -> np.random.Generator:
    """Return a request's own generator. It is made on the CPU, and never shared: shared ones make results depend on
    what else is running."""
    return np.random.Generator(np.random.PCG64(seed))
