"""The published sizes of SD3.5 with random weights on one CUDA device, against diffusers' own pipeline eager and
compiled: `python -m bench.full_size [--model sd3.5-large|sd3.5-medium|tiny] [--steps N]`. The time a step takes doesn't
depend on the weights. `tiny` runs anywhere, to try the script. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch.utils.flop_counter import FlopCounterMode

from limner.diffusion import tiny
from limner.diffusion.lora.adapters import Adapters
from limner.diffusion.parameters import Parameters
from limner.diffusion.sd3.advance import advance
from limner.diffusion.sd3.batch import Batch
from limner.diffusion.sd3.capacity import Capacity
from limner.diffusion.sd3.latents import Autoencoder, draw_noise
from limner.diffusion.sd3.row import Bucket, Sd3Row, State, coefficients
from limner.diffusion.sd3.samplers import evaluations
from limner.diffusion.sd3.text import CLIP_LENGTH, Conditioning
from limner.diffusion.sd3.transformer import Transformer
from limner.diffusion.sd3.watch import Watch

PUBLISHED: dict[str, dict[str, Any]] = {
    "sd3.5-large": {
        "num_layers": 38,
        "num_attention_heads": 38,
        "caption_projection_dim": 2432,
        "pos_embed_max_size": 192,
    },
    "sd3.5-medium": {
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)),
    },
}
COMMON: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "qk_norm": "rms_norm",
}
TEXT_TOKENS = 333
GUIDANCE = 4.5
BATCHES = (1, 2, 4, 8)
TURNS = 3

Figures = dict[str, Any]


class Bench:
    """One model on one device, with the same random weights in both transformers, one after the other."""

    def __init__(self, model: str, side: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.config = _config(model)
        if model == "tiny":
            self.vae = tiny.vae(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609)
        else:
            self.vae = AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=16,
                use_quant_conv=False,
                use_post_quant_conv=False,
                scaling_factor=1.5305,
                shift_factor=0.0609,
            )
        self.vae = self.vae.to(self.device, self.dtype).eval()
        self.side = side

    def theirs(self, *, compiled: bool) -> Callable[[int, int, float], None]:
        """Return what makes so many pictures in so many steps with diffusers' pipeline."""
        transformer = self._random(SD3Transformer2DModel)
        if compiled:
            transformer = torch.compile(transformer, mode="max-autotune-no-cudagraphs")
        parts = dict.fromkeys(
            ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
        )
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        pipeline = StableDiffusion3Pipeline(transformer=transformer, vae=self.vae, scheduler=scheduler, **parts)
        pipeline.set_progress_bar_config(disable=True)

        def run(count: int, steps: int, guidance: float) -> None:
            text, pooled = self._prompts(count)
            pipeline(
                prompt_embeds=text,
                pooled_prompt_embeds=pooled,
                negative_prompt_embeds=text,
                negative_pooled_prompt_embeds=pooled,
                num_inference_steps=steps,
                guidance_scale=guidance,
                height=self.side,
                width=self.side,
                output_type="pt",
            )

        return run

    def ours(self, *, compiled: bool) -> Callable[[int, int, float], None]:
        """Return the same with the server's own step loop: rows, batches, samplers and the watch for faults."""
        transformer = self._fused(compiled=compiled)
        batch = Batch(transformer, Adapters({"transformer": transformer}), Capacity(), self.device, self.dtype)
        watch, autoencoder = Watch(self.device), Autoencoder(self.vae)

        def run(count: int, steps: int, guidance: float) -> None:
            rows = [self._row(seed, steps, guidance) for seed in range(count)]
            while rows[0].step < steps:
                watch.catch_up()
                advance(rows, batch, watch)
            for row in rows:
                assert row.state is not None
                autoencoder.decode(row.state.latents)

        return run

    def bare(self, *, compiled: bool) -> Callable[[int, int, float], None]:
        """Return the same in the barest loop there is around our transformer."""
        transformer = self._fused(compiled=compiled)
        autoencoder = Autoencoder(self.vae)

        def run(count: int, steps: int, guidance: float) -> None:
            text, pooled = self._prompts(count * (2 if guidance > 1 else 1))
            latents = torch.randn(count, 16, self.side // 8, self.side // 8, device=self.device)
            for each in evaluations("euler", step_count=steps, shift=3.0):
                both = latents.repeat(2, 1, 1, 1) if guidance > 1 else latents
                at = torch.full((both.shape[0],), each.timestep, device=self.device)
                velocity = transformer(both.to(self.dtype), at, text, pooled)[0].float()
                if guidance > 1:
                    negative, positive = velocity.chunk(2)
                    velocity = negative + guidance * (positive - negative)
                latents = latents + (each.sigma_after - each.sigma) * velocity
            for one in latents:
                autoencoder.decode(one)

        return run

    @staticmethod
    def operations_of(model: str, side: int) -> int:
        """Return the floating-point operations of one forward pass of the transformer for one picture."""
        config = _config(model)
        with torch.device("meta"):
            transformer = SD3Transformer2DModel(**config)
            latents = torch.empty(1, 16, side // 8, side // 8)
            text = torch.empty(1, TEXT_TOKENS, transformer.config.joint_attention_dim)
            pooled = torch.empty(1, transformer.config.pooled_projection_dim)
            with FlopCounterMode(display=False) as counter:
                transformer(latents, text, pooled, torch.empty(1))
        return int(counter.get_total_flops())

    def _prompts(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        shapes = (TEXT_TOKENS, self.config["joint_attention_dim"]), (self.config["pooled_projection_dim"],)
        text, pooled = (torch.randn(count, *shape, device=self.device, dtype=self.dtype) for shape in shapes)
        return text, pooled

    def _fused(self, *, compiled: bool) -> Transformer:
        transformer: Transformer = self._random(Transformer)
        transformer.fuse()
        if compiled:
            transformer.compile_blocks()
        return transformer

    def _row(self, seed: int, steps: int, guidance: float) -> Sd3Row:
        parameters = Parameters(
            prompt="",
            negative_prompt="",
            width=self.side,
            height=self.side,
            step_count=steps,
            guidance_scale=guidance,
            sampler="euler",
            shift=3.0,
            text_length=TEXT_TOKENS - CLIP_LENGTH,
            seed=seed,
        )
        plan = evaluations("euler", step_count=steps, shift=3.0)
        table = torch.tensor(coefficients(plan, parameters)).to(self.device)
        noise = draw_noise(torch.Generator().manual_seed(seed), self.side, self.side, 16).to(self.device)
        prompts = [Conditioning(*each) for each in zip(*self._prompts(2), strict=True)]
        negative = prompts[1] if parameters.guided else None
        state = State(noise, plan, table, prompts[0], negative, (), None, None, None)
        bucket = Bucket(self.side, self.side, parameters.text_length)
        return Sd3Row(bucket, 2 if parameters.guided else 1, 1.0, steps, state)

    def _random(self, kind: type) -> Any:
        torch.manual_seed(0)
        with torch.device("meta"):
            transformer = kind.from_config(self.config)  # type: ignore[attr-defined]
        transformer = transformer.to_empty(device=self.device).to(self.dtype).eval()
        for parameter in transformer.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        for buffer in transformer.buffers():
            torch.nn.init.normal_(buffer, std=0.02)
        return transformer


def _config(model: str) -> dict[str, Any]:
    """Return the transformer's configuration."""
    return dict(tiny.sd3_pipeline().transformer.config) if model == "tiny" else COMMON | PUBLISHED[model]


def timed(bench: Bench, run: Callable[[int, int, float], None], count: int, steps: int, guidance: float) -> float:
    """Return the median seconds of a run, which was done once before."""
    seconds = []
    for turn in range(1 + TURNS):
        _wait(bench)
        began = time.perf_counter()
        with torch.inference_mode():
            run(count, steps, guidance)
        _wait(bench)
        if turn:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _wait(bench: Bench) -> None:
    if bench.device.type == "cuda":
        torch.cuda.synchronize()


def measure(
    models: tuple[str, ...] = ("sd3.5-large", "sd3.5-medium"), steps: int = 28, side: int = 1024
) -> list[Figures]:
    """Return a row for each model and way to run it."""
    rows = []
    with torch.inference_mode():
        for model in models:
            bench = Bench(model, side)
            device = torch.cuda.get_device_name() if bench.device.type == "cuda" else "cpu"
            tera = Bench.operations_of(model, side) / 1e12
            for name, make in (("diffusers", bench.theirs), ("bare loop", bench.bare), ("limner", bench.ours)):
                for compiled in (False, True) if bench.device.type == "cuda" else (False,):
                    if bench.device.type == "cuda":
                        torch.cuda.reset_peak_memory_stats()
                    run = make(compiled=compiled)
                    image = timed(bench, run, 1, steps, GUIDANCE)
                    row: Figures = {
                        "model": model,
                        "device": device,
                        "way": f"{name} {'compiled' if compiled else 'eager'}",
                        "image_s": round(image, 3),
                        "turbo_4_steps_s": round(timed(bench, run, 1, 4, 1.0), 3),
                        "tflop_per_s": round(2 * steps * tera / image, 1),
                    }
                    if name == "limner":
                        row |= {
                            f"batch_{count}_s": round(timed(bench, run, count, steps, GUIDANCE), 3) for count in BATCHES
                        }
                    if bench.device.type == "cuda":
                        row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
                    rows.append(row)
                    del run
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.full_size", description=__doc__)
    parser.add_argument("--model", choices=[*PUBLISHED, "tiny"], default="sd3.5-large")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--side", type=int, default=1024)
    arguments = parser.parse_args()
    print(json.dumps(measure((arguments.model,), arguments.steps, arguments.side)))


if __name__ == "__main__":
    main()
