"""One picture under way: everything of it that changes from step to step. Knows neither transformer nor engine."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, Literal, NamedTuple, TypeVar

import torch

from limner.diffusion.lora.lora import ScaledLora
from limner.diffusion.parameters import Parameters, SkipLayers
from limner.diffusion.sd3.forecast import Forecast
from limner.diffusion.sd3.guidance import skips
from limner.diffusion.sd3.latents import noised
from limner.diffusion.sd3.samplers import Evaluation
from limner.diffusion.sd3.text import CLIP_LENGTH, Conditioning

T = TypeVar("T")

PIXELS_A_PATCH = 16  # the VAE reduces by 8, and patches are of 2 × 2
_PREDICTED_COST = 0.02  # of what a computed branch takes: one layer instead of all


class Bucket(NamedTuple):
    """What rows of one run of the transformer have in common."""

    width: int  # in pixels
    height: int
    text_length: int

    @property
    def tokens(self) -> int:
        """What the transformer's attention runs over: patches and text."""
        patches = (self.width // PIXELS_A_PATCH) * (self.height // PIXELS_A_PATCH)
        return patches + CLIP_LENGTH + self.text_length


class Coefficients(NamedTuple, Generic[T]):
    """An evaluation as a line of numbers on the device: nothing is sent there in the steps. Or such lines' columns."""

    timestep: T
    guidance_scale: T
    skip_scale: T
    latents: T  # the new latents, as in Mix
    velocity: T
    memory: T
    kept_latents: T  # what is remembered
    kept_velocity: T


@dataclass(frozen=True)
class Given:
    """A picture of which a part stays, as latents (16, height / 8, width / 8)."""

    image: torch.Tensor
    noise: torch.Tensor
    mask: torch.Tensor  # bool (1, height / 8, width / 8), true where it is made anew

    def at(self, sigma: float) -> torch.Tensor:
        """Return the picture with as much noise as latents of that level have."""
        return self.image if sigma == 0 else noised(self.image, self.noise, sigma)

    def under(self, latents: torch.Tensor, sigma: float) -> torch.Tensor:
        """Return the latents with what stays in its place."""
        return torch.where(self.mask, latents, self.at(sigma))


BranchName = Literal["negative", "positive", "skipped"]


@dataclass(frozen=True)
class Branch:
    """One row of the transformer's batch."""

    name: BranchName
    latents: torch.Tensor  # (16, height / 8, width / 8)
    timestep: torch.Tensor  # ()
    conditioning: Conditioning
    loras: tuple[ScaledLora, ...]
    skip_layers: frozenset[int] = frozenset()
    features: torch.Tensor | None = None  # predicted ones, (patches, width); None: they are computed


@dataclass
class State:
    """The tensors of a row, and what is done with them. float32 on the device, (16, height / 8, width / 8)."""

    latents: torch.Tensor
    plan: tuple[Evaluation, ...]
    table: torch.Tensor  # Coefficients, (evaluations, columns)
    positive: Conditioning
    negative: Conditioning | None  # None: no guidance
    loras: tuple[ScaledLora, ...]
    skip: SkipLayers | None
    given: Given | None
    forecasts: dict[BranchName, Forecast] | None  # None: every step is computed
    memory: torch.Tensor | None = None
    seen: tuple[torch.Tensor, torch.Tensor, float] | None = None  # latents, their velocity and noise level

    def branches(self, evaluation: int) -> list[Branch]:
        """Return what the transformer has to do for an evaluation."""
        return [self._branch(name, evaluation) for name in self._names(evaluation)]

    def work(self, evaluation: int) -> float:
        """Return how many branches an evaluation computes; predicted ones count little."""
        return sum(1.0 if self._computes(name, evaluation) else _PREDICTED_COST for name in self._names(evaluation))

    def record(self, name: BranchName, evaluation: int, features: torch.Tensor) -> None:
        """Take a branch's computed features, (patches, width), if some are to be predicted from them."""
        if self.forecasts is not None:
            self.forecasts[name].record(evaluation, features.clone())  # a part of the batch would hold all of it

    def _names(self, evaluation: int) -> tuple[BranchName, ...]:
        if self.negative is None:
            return ("positive",)
        if skips(self.skip, evaluation, self.plan[-1].step):
            return ("negative", "positive", "skipped")
        return ("negative", "positive")

    def _computes(self, name: BranchName, evaluation: int) -> bool:
        return self.forecasts is None or self.forecasts[name].computes(evaluation)

    def _branch(self, name: BranchName, evaluation: int) -> Branch:
        features = None
        if self.forecasts is not None and not self._computes(name, evaluation):
            features = self.forecasts[name].predict(evaluation)
        conditioning = self.negative if name == "negative" and self.negative is not None else self.positive
        skip_layers = frozenset(self.skip.layers) if name == "skipped" and self.skip is not None else frozenset[int]()
        timestep = self.table[evaluation, 0]
        return Branch(name, self.latents, timestep, conditioning, self.loras, skip_layers, features)


@dataclass(eq=False)
class Sd3Row:
    """What the engine holds. A closed one has no state any more."""

    bucket: Hashable
    size: int
    cost: float
    step_count: int
    state: State | None
    step: int = 0
    evaluation: int = 0  # evaluations done
    fault: Exception | None = field(default=None)  # why it came to nothing

    def close(self) -> None:
        self.state = None


def coefficients(plan: tuple[Evaluation, ...], parameters: Parameters) -> list[Coefficients[float]]:
    """Return the plan's numbers with the row's guidance."""
    lines = []
    for index, each in enumerate(plan):
        skipping = skips(parameters.skip_layers, index, plan[-1].step)
        memory = each.memory
        lines.append(
            Coefficients(
                timestep=each.timestep,
                guidance_scale=parameters.guidance_scale if parameters.guided else 1.0,
                skip_scale=parameters.skip_layers.scale if parameters.skip_layers and skipping else 0.0,
                latents=each.latents.latents,
                velocity=each.latents.velocity,
                memory=each.latents.memory,
                kept_latents=memory.latents if memory else 0.0,
                kept_velocity=memory.velocity if memory else 0.0,
            )
        )
    return lines
