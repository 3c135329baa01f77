"""SD3 and SD3.5 as the engine steps them: rows with schedules, guidance and LoRAs of their own go through the
transformer together. Keeps nothing of a row."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TypeVar, cast

import torch

from limner.core.errors import UnknownModel
from limner.diffusion.faults import no_numbers
from limner.diffusion.lora.adapters import Adapters
from limner.diffusion.lora.lora import ScaledLora
from limner.diffusion.lora.store import LoraStore
from limner.diffusion.memory import is_out_of_memory, release, shortage_told
from limner.diffusion.model import Pixels, Request, Row
from limner.diffusion.parameters import LoraUse, Parameters
from limner.diffusion.sd3.advance import advance
from limner.diffusion.sd3.batch import Batch
from limner.diffusion.sd3.capacity import LEAST, Capacity
from limner.diffusion.sd3.components import Components
from limner.diffusion.sd3.forecast import Forecast
from limner.diffusion.sd3.latents import Autoencoder, Distribution, cells, draw_noise, noised
from limner.diffusion.sd3.preview import Decoder, painted
from limner.diffusion.sd3.row import (
    BranchName,
    Bucket,
    Given,
    Sd3Row,
    State,
    coefficients,
)
from limner.diffusion.sd3.samplers import evaluations
from limner.diffusion.sd3.text import Conditioning, TextEncoder
from limner.diffusion.sd3.watch import Watch
from limner.diffusion.variant import Variant

_log = logging.getLogger("limner.models")

A = TypeVar("A")
T = TypeVar("T")

_PROFILED_LAYERS = 2  # of the transformer's, which are all about alike
_PROFILE_S = 5.0


class Sd3Model:
    """Implements `limner.diffusion.model.Model`.

    Sd3Model(components, variant, loras=store, prompt_cache_bytes=256 << 20)
    Sd3Model(components, variant, loras=None, prompt_cache_bytes=0, vae_tiling=True)    # no LoRAs, little memory
    """

    def __init__(
        self,
        components: Components,
        variant: Variant,
        *,
        loras: LoraStore | None,
        prompt_cache_bytes: int,
        vae_tiling: bool = False,
    ) -> None:
        self._device = components.device
        self._layer_count = len(components.transformer.transformer_blocks)
        self._usual = Bucket(variant.width, variant.height, variant.text_length)
        self._loras = loras
        self._adapters = Adapters(
            {
                "transformer": components.transformer,
                "text_encoder": components.text_encoder,
                "text_encoder_2": components.text_encoder_2,
                "text_encoder_3": components.text_encoder_3,
            }
        )
        self._text = TextEncoder(components, cache_bytes=prompt_cache_bytes, adapters=self._adapters)
        self._autoencoder = Autoencoder(components.vae, tiling=vae_tiling)
        # The matrix and tiny autoencoders read SD3's latents alone.
        self._preview_decoder: Decoder | None = (
            components.preview_decoder if self._autoencoder.is_sd3s else self._autoencoder
        )
        self._capacity = Capacity()
        self._batch = Batch(components.transformer, self._adapters, self._capacity, components.device, components.dtype)
        self._watch = Watch(self._device)

    @torch.inference_mode()
    def profile(self) -> None:
        """Find out how many rows a run should take, in about five seconds. Once, when the model is loaded, and before
        its blocks are compiled."""
        width, height, text_length = self._usual
        small = Bucket(max(width // 64, 1) * 16, max(height // 64, 1) * 16, text_length)
        begin = time.perf_counter()
        self._batch.try_out(small, 1, _PROFILED_LAYERS)
        expected_s = (time.perf_counter() - begin) * self._usual.tokens / small.tokens
        if expected_s > _PROFILE_S:
            self._capacity.assume(self._usual, LEAST)  # steps are so long that more would be too long anyway
            return
        share = min(_PROFILED_LAYERS / self._layer_count, 1.0)

        def run(rows: int) -> bool:
            return self._batch.try_out(self._usual, rows, _PROFILED_LAYERS)

        self._capacity.measure(self._usual, run, share=share, budget_s=_PROFILE_S)
        _log.info("%d rows of %d × %d are run at once", self._capacity.of(self._usual), width, height)

    @torch.inference_mode()
    def prepare(self, request: Request, check: Callable[[], None]) -> Sequence[Row]:
        """Return a row for each picture, as `Model` says."""
        with shortage_told("prepare the pictures", self._device):
            return self._prepared(request, check)

    def most_at_once(self, bucket: Hashable) -> int:
        """Return how many of the rows' sizes a run takes."""
        return max(self._capacity.of(cast(Bucket, bucket)), LEAST)

    @torch.inference_mode()
    def advance(self, rows: Sequence[Row]) -> Sequence[Exception | None]:
        """Do one evaluation for each row of a bucket, as `Model` says."""
        ours = cast(Sequence[Sd3Row], rows)
        self._watch.catch_up()
        with shortage_told("take a step", self._device):
            advance([row for row in ours if row.fault is None], self._batch, self._watch)
        return [row.fault for row in ours]

    def preview(self, row: Row) -> Callable[[], Pixels] | None:
        """Return what paints the row's picture without its noise, an eighth as large unless a decoder does."""
        state = cast(Sd3Row, row).state
        if state is None or state.seen is None:
            return None
        return partial(_painted, *state.seen, state.given, self._preview_decoder)

    @torch.inference_mode()
    def decode(self, row: Row) -> Pixels:
        """Return the picture of a row that is done, (height, width, 3)."""
        ours = cast(Sd3Row, row)
        if ours.state is None:
            raise ValueError("the row is closed")
        latents = ours.state.latents
        if not bool(torch.isfinite(latents).all()):
            raise ours.fault or no_numbers(ours.step, ours.step_count)
        return self._in_less_memory(self._autoencoder.decode, latents)

    def _prepared(self, request: Request, check: Callable[[], None]) -> Sequence[Row]:
        parameters = request.parameters
        plan = evaluations(
            parameters.sampler,
            step_count=parameters.step_count,
            shift=parameters.shift,
            strength=1.0 if request.image is None else parameters.strength,
        )
        loras = self._scaled(parameters.loras)
        check()
        positive = self._encoded(parameters, parameters.prompt, loras, "prompt")
        negative = None
        if parameters.guided:
            check()
            negative = self._encoded(parameters, parameters.negative_prompt, loras, "options.negative_prompt")
        check()
        image = None if request.image is None else self._in_less_memory(self._autoencoder.encode, request.image)
        mask = None if request.mask is None else cells(request.mask, self._device)
        table = torch.tensor(coefficients(plan, parameters), dtype=torch.float32).to(self._device)
        rows = []
        for index in range(parameters.image_count):
            check()
            latents, given = self._start(parameters, parameters.seed + index, plan[0].sigma, image, mask)
            forecasts = _forecasts(parameters)
            state = State(latents, plan, table, positive, negative, loras, parameters.skip_layers, given, forecasts)
            rows.append(_row(parameters, state))
        return rows

    def _encoded(self, parameters: Parameters, prompt: str, loras: Sequence[ScaledLora], field: str) -> Conditioning:
        return self._text.encode(
            prompt, text_length=parameters.text_length, truncate=parameters.truncate_prompt, loras=loras, field=field
        )

    def _scaled(self, uses: Sequence[LoraUse]) -> tuple[ScaledLora, ...]:
        """Return the LoRAs themselves. Raises BadArgument for those that don't fit the model."""
        if not uses:
            return ()
        if self._loras is None:
            raise UnknownModel(uses[0].name, available=(), kind="LoRA")
        scaled = self._loras.uses(uses)
        for each in scaled:
            self._adapters.attach(each.lora)
        return scaled

    def _start(
        self,
        parameters: Parameters,
        seed: int,
        sigma: float,
        distribution: Distribution | None,
        mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, Given | None]:
        """Return a picture's first latents, and what of it stays. A seed's numbers are the picture's first, then the
        noise's, as in diffusers' pipelines."""
        generator = torch.Generator().manual_seed(seed)
        image = None if distribution is None else self._autoencoder.draw(distribution, generator)
        channels = self._autoencoder.channels
        noise = draw_noise(generator, parameters.width, parameters.height, channels).to(self._device)
        if image is None:
            return noise, None
        return noised(image, noise, sigma), None if mask is None else Given(image, noise, mask)

    def _in_less_memory(self, work: Callable[[A], T], argument: A) -> T:
        """Return `work(argument)` of the autoencoder; in tiles, from now on, if memory is not enough for the whole."""
        try:
            return work(argument)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        release(self._device)
        self._autoencoder.work_in_tiles()
        with shortage_told("make latents of a picture, or a picture of them", self._device):
            return work(argument)


@torch.inference_mode()
def _painted(
    latents: torch.Tensor, velocity: torch.Tensor, sigma: float, given: Given | None, decoder: Decoder | None
) -> Pixels:
    clean = latents - sigma * velocity
    return painted(clean if given is None else given.under(clean, 0.0), decoder)


def _row(parameters: Parameters, state: State) -> Sd3Row:
    bucket = Bucket(parameters.width, parameters.height, parameters.text_length)
    return Sd3Row(
        bucket=bucket,
        size=1 if state.negative is None else 2,
        cost=state.work(0) * bucket.tokens,
        step_count=state.plan[-1].step,
        state=state,
    )


def _forecasts(parameters: Parameters) -> dict[BranchName, Forecast] | None:
    cache = parameters.step_cache
    if cache is None:
        return None
    names: tuple[BranchName, ...] = ("negative", "positive", "skipped")
    return {name: Forecast(cache) for name in names}
