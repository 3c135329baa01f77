"""Steps that are predicted instead of computed: the transformer's features change smoothly from step to step, so a
Taylor polynomial through the last computed ones stands for the next (TaylorSeer, Liu et al., 2025)."""

from __future__ import annotations

import torch

from limner.diffusion.parameters import StepCache


class Forecast:
    """The features of one row and branch, (patches, width), over its steps. Derivatives are finite differences over
    the computed steps; holds `order` + 1 tensors."""

    def __init__(self, cache: StepCache) -> None:
        self._cache = cache
        self._derivatives: list[torch.Tensor] = []  # at the last computed step, from the features themselves upwards
        self._step = 0

    def computes(self, step: int) -> bool:
        """Say whether a step has to be computed: those of the warm-up, then one of every `interval`."""
        after = step - self._cache.warm_up
        return after < 0 or (after + 1) % self._cache.interval == 0 or not self._derivatives

    def record(self, step: int, features: torch.Tensor) -> None:
        """Take the features of a computed step; steps come in ascending order."""
        derivatives = [features]
        for earlier in self._derivatives[: self._cache.order]:
            derivatives.append((derivatives[-1] - earlier) / (step - self._step))
        self._derivatives, self._step = derivatives, step

    def predict(self, step: int) -> torch.Tensor:
        """Return what the features of a step after the last computed one will about be."""
        distance, factor = step - self._step, 1.0
        features = self._derivatives[0]
        for order, derivative in enumerate(self._derivatives[1:], start=1):
            factor *= distance / order
            features = features + factor * derivative
        return features
