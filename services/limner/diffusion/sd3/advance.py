"""One evaluation for several rows: the transformer's runs, guidance, and each sampler's update, all rows at once. Knows
no prompts and no pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from limner.core.errors import OutOfMemory
from limner.diffusion.memory import is_out_of_memory
from limner.diffusion.sd3.batch import Batch, Predicted, too_large
from limner.diffusion.sd3.guidance import guided
from limner.diffusion.sd3.row import BranchName, Bucket, Coefficients, Sd3Row, State
from limner.diffusion.sd3.samplers import Evaluation
from limner.diffusion.sd3.watch import Watch


def advance(rows: Sequence[Sd3Row], batch: Batch, watch: Watch) -> None:
    """Take rows of one bucket one evaluation further. A row that memory is not enough for gets a `fault`; one whose
    values are no numbers gets it now or at a later step. If it raises, no row has changed."""
    going = [each for each in _predicted(rows, batch) if each.remembered()]
    if not going:
        return
    numbers = _numbers(going)
    before = torch.stack([each.state.latents for each in going])
    velocity = _velocity(going, numbers)
    latents = _latents(going, numbers, before, velocity)
    memory = numbers.kept_latents * before + numbers.kept_velocity * velocity if _remembers(going) else before
    for each, *tensors in zip(going, latents, memory, before, velocity, strict=True):
        each.move(*tensors)
    watch.see([each.row for each in going], latents)


@dataclass(frozen=True)
class _Going:
    """A row with what the transformer made of its branches."""

    row: Sd3Row
    state: State
    found: Mapping[BranchName, Predicted]
    computed: Sequence[BranchName]

    @property
    def evaluation(self) -> Evaluation:
        """What is done now."""
        return self.state.plan[self.row.evaluation]

    def velocity(self, name: BranchName) -> torch.Tensor:
        """Return a branch's velocity, or the positive one's if there is no such branch."""
        return self.found.get(name, self.found["positive"]).velocity

    def remembered(self) -> bool:
        """Keep what later steps are predicted from. Returns False, and the row has a `fault`, if memory is not enough
        for that."""
        try:
            for name in self.computed:
                self.state.record(name, self.row.evaluation, self.found[name].features)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.row.fault = too_large(cast(Bucket, self.row.bucket))
            return False
        return True

    def move(self, latents: torch.Tensor, memory: torch.Tensor, before: torch.Tensor, velocity: torch.Tensor) -> None:
        """Let the row have its new latents."""
        row, state, evaluation = self.row, self.state, self.evaluation
        state.latents = latents
        state.memory = memory if evaluation.memory else None
        state.seen = (before, velocity, evaluation.sigma)
        row.evaluation += 1
        row.step = evaluation.step
        if row.evaluation < len(state.plan):
            row.cost = state.work(row.evaluation) * cast(Bucket, row.bucket).tokens


def _predicted(rows: Sequence[Sd3Row], batch: Batch) -> list[_Going]:
    """Run the transformer for the rows' branches. Returns the rows that memory was enough for."""
    states = [(row, row.state) for row in rows if row.state is not None]
    branches = [state.branches(row.evaluation) for row, state in states]
    if not branches:
        return []
    results = iter(batch.run(cast(Bucket, rows[0].bucket), [each for of_row in branches for each in of_row]))
    going = []
    for (row, state), of_row in zip(states, branches, strict=True):
        found: dict[BranchName, Predicted] = {}
        for branch in of_row:
            result = next(results)
            if isinstance(result, OutOfMemory):
                row.fault = result
            else:
                found[branch.name] = result
        if row.fault is None:
            going.append(_Going(row, state, found, [each.name for each in of_row if each.features is None]))
    return going


def _numbers(going: Sequence[_Going]) -> Coefficients[torch.Tensor]:
    """Return the rows' coefficients, (rows, 1, 1, 1) each."""
    lines = torch.stack([each.state.table[each.row.evaluation] for each in going])
    return Coefficients(*(column[:, None, None, None] for column in lines.unbind(1)))


def _velocity(going: Sequence[_Going], numbers: Coefficients[torch.Tensor]) -> torch.Tensor:
    """Return the guided velocities, (rows, 16, height / 8, width / 8) float32."""
    positive = torch.stack([each.velocity("positive") for each in going]).float()
    if all(len(each.found) == 1 for each in going):
        return positive
    negative = torch.stack([each.velocity("negative") for each in going]).float()
    skipped = torch.stack([each.velocity("skipped") for each in going]).float()
    return guided(negative, positive, skipped, numbers.guidance_scale, numbers.skip_scale)


def _latents(
    going: Sequence[_Going], numbers: Coefficients[torch.Tensor], before: torch.Tensor, velocity: torch.Tensor
) -> torch.Tensor:
    """Return the rows' new latents, (rows, 16, height / 8, width / 8) float32."""
    latents = numbers.latents * before + numbers.velocity * velocity
    if any(each.evaluation.latents.memory for each in going):
        remembered = [each.state.latents if each.state.memory is None else each.state.memory for each in going]
        latents += numbers.memory * torch.stack(remembered)
    for index, each in enumerate(going):
        if each.state.given is not None:
            latents[index] = each.state.given.under(latents[index], each.evaluation.sigma_after)
    return latents


def _remembers(going: Sequence[_Going]) -> bool:
    return any(each.evaluation.memory for each in going)
