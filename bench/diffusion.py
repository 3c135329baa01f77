"""How well the diffusion server does on a tiny SD3 pipeline: `python -m bench.diffusion [--quick] [--json]`.

The headline is `speedup_at_8`: pictures a second of eight concurrent calls, over those of diffusers' pipeline called
one by one for the same pictures, in turn in one run. Pictures are small, so that a step of one is bound by its many
small operations, as it is on a GPU; larger ones, which two cores are busy with anyway, are measured without --quick.
With a CUDA device, `bench.full_size` measures the published sizes with random weights too. Writes
out/bench/diffusion.json; --json prints it, as the last line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline

from bench import calls, full_size
from bench.cancel import seconds_to_start
from bench.figures import cpu_name, median_ms, rows_table, table
from limner.client.local import LocalServers
from limner.diffusion import tiny
from limner.diffusion.config import DiffusionConfig
from limner.diffusion.library import Library
from limner.diffusion.model import Request
from limner.diffusion.parameters import Parameters
from limner.engine.store import open_store
from limner.runtime.cpus import cpu_count
from limner.v1 import diffusion_pb2, diffusion_pb2_grpc

SIDE = 64
LARGER = (128, 256)
TEXT_LENGTH = 77  # tokens of T5
STEPS = 20
GUIDANCE = 5.0
PROMPT, NEGATIVE = "a red apple on a house", "the sea"
CROWDS = (1, 4, 8)
MAX_ACTIVE = 8
TARGET = 2.0
OUT = Path("out/bench/diffusion.json")

Figures = dict[str, Any]


class Theirs:
    """diffusers' pipeline, called one by one."""

    def __init__(self, folder: Path) -> None:
        self._pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
        self._pipeline.set_progress_bar_config(disable=True)

    def generate(self, count: int, side: int) -> None:
        """Make so many pictures, one after the other."""
        for seed in range(count):
            self._generate(seed, side)

    def _generate(self, seed: int, side: int) -> None:
        self._pipeline(
            PROMPT,
            negative_prompt=NEGATIVE,
            height=side,
            width=side,
            max_sequence_length=TEXT_LENGTH,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(seed),
        )


class Ours:
    """The server, called on bare stubs."""

    def __init__(self, address: str) -> None:
        self._channel = calls.channel(address)
        self._stub = diffusion_pb2_grpc.DiffusionServiceStub(self._channel)

    def start(
        self, *, side: int = SIDE, steps: int = STEPS, seed: int = 0, images: int = 1, previews: bool = False
    ) -> Any:
        """Return a call, an iterator over its responses."""
        options = diffusion_pb2.GenerateOptions(
            model="tiny",
            negative_prompt=NEGATIVE,
            width_px=side,
            height_px=side,
            text_length=TEXT_LENGTH,
            step_count=steps,
            guidance_scale=GUIDANCE,
            sampler="euler",
            seed=seed,
            image_count=images,
        )
        request = diffusion_pb2.GenerateRequest(prompt=PROMPT, options=options, previews=previews)
        return self._stub.Generate(request, timeout=300)

    def generate(self, seed: int, side: int = SIDE) -> None:
        """Make one picture, and read it to the end."""
        if not any(response.HasField("result") for response in list(self.start(side=side, seed=seed))):
            raise RuntimeError("the call ended without a picture")

    def crowd(self, count: int, side: int) -> None:
        """Make one picture in each of so many calls at the same time."""
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(partial(self.generate, side=side), range(count)))


# ---- what is measured ----------------------------------------------------------------------------------------------


def speedups(theirs: Theirs, ours: Ours, side: int, turns: int) -> list[Figures]:
    """Return pictures a second, theirs and ours, for crowds of each size. Both are warm."""
    ours.crowd(MAX_ACTIVE, side)
    theirs.generate(1, side)
    rows: list[Figures] = []
    for count in CROWDS:
        seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
        for _ in range(turns):
            seconds["theirs"].append(_timed(partial(theirs.generate, count, side)))
            seconds["ours"].append(_timed(partial(ours.crowd, count, side)))
        ratios = [their / our for their, our in zip(seconds["theirs"], seconds["ours"], strict=True)]
        rows.append(
            {
                "picture": f"{side} × {side}",
                "concurrent": count,
                "diffusers_per_s": round(count / statistics.median(seconds["theirs"]), 2),
                "limner_per_s": round(count / statistics.median(seconds["ours"]), 2),
                "speedup": round(statistics.median(ratios), 2),
            }
        )
    return rows


def first_preview(ours: Ours, turns: int) -> list[float]:
    """Return the seconds from a call to its first preview."""
    seconds = []
    for _ in range(turns):
        began = time.perf_counter()
        responses = ours.start(previews=True)
        for response in responses:
            if response.HasField("preview"):
                seconds.append(time.perf_counter() - began)
                break
        responses.cancel()
    return seconds


def cancel_latency(ours: Ours, turns: int) -> Figures:
    """Return how long a cancelled call that fills the server keeps another one from starting, also in its steps."""
    seconds, steps = [], []
    for _ in range(turns):
        full = ours.start(steps=1000, images=MAX_ACTIVE)
        ticks = [time.perf_counter() for _ in _steps(full, 6)]
        step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
        seconds.append(seconds_to_start(partial(ours.start, steps=1), full.cancel))
        steps.append(seconds[-1] / step)
    return {
        "cancel_ms": median_ms(seconds),
        "cancel_steps": round(statistics.median(steps), 2),
        "step_of_8_ms": round(step * 1000, 1),
    }


def loop_overhead(folder: Path, ours: Ours, turns: int) -> Figures:
    """Return what one call takes beyond the bare loop over the same model in this process."""
    library = Library(
        DiffusionConfig(sources={"tiny": str(folder)}, default_model="tiny", precision="fp32"), open_store(str(folder))
    )
    parameters = Parameters(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        width=SIDE,
        height=SIDE,
        step_count=STEPS,
        guidance_scale=GUIDANCE,
        sampler="euler",
        shift=3.0,
        text_length=TEXT_LENGTH,
        seed=0,
    )
    lease = library.lease("tiny")

    def bare() -> None:
        (row,) = lease.model.prepare(Request(parameters), lambda: None)
        while row.step < row.step_count:
            lease.model.advance([row])
        lease.model.decode(row)
        row.close()

    bares, wholes = [], []
    with torch.inference_mode():
        bare()
        for _ in range(turns):
            bares.append(_timed(bare))
            wholes.append(_timed(partial(ours.generate, 0)))
    lease.close()
    over = [whole / one - 1 for one, whole in zip(bares, wholes, strict=True)]
    return {
        "bare_loop_ms": median_ms(bares),
        "call_ms": median_ms(wholes),
        "overhead_percent": round(100 * statistics.median(over), 1),
    }


def _steps(responses: Iterator[Any], count: int) -> Iterator[int]:
    """Yield the first steps that a call tells of."""
    for response in responses:
        if response.HasField("progress") and response.progress.stage == "denoise" and response.progress.step:
            yield response.progress.step
            count -= 1
            if not count:
                return


def _timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


# ---- the command ---------------------------------------------------------------------------------------------------


def measure(*, quick: bool) -> Figures:
    """Return all figures of one run."""
    began, turns, larger = time.perf_counter(), 3 if quick else 9, () if quick else LARGER
    torch.set_num_threads(cpu_count())
    with tempfile.TemporaryDirectory(prefix="limner-bench-") as name:
        folder = tiny.write_sd3(Path(name) / "tiny")
        environment = {
            "LIMNER_MODEL_DIR": name,
            "LIMNER_DIFFUSION_SOURCES": f"tiny={folder}",
            "LIMNER_DIFFUSION_DEFAULT_MODEL": "tiny",
            "LIMNER_DIFFUSION_PRECISION": "fp32",
            "LIMNER_DIFFUSION_MAX_ACTIVE": str(MAX_ACTIVE),
        }
        with LocalServers(services=("diffusion",), environment=environment) as servers:
            ours, theirs = Ours(servers.address("diffusion")), Theirs(folder)
            ours.generate(0)
            crowds = speedups(theirs, ours, SIDE, turns)
            figures: Figures = {
                "speedup_at_8": crowds[-1]["speedup"],
                "target": TARGET,
                "picture": f"{SIDE} × {SIDE}, {STEPS} steps with guidance, tiny SD3, fp32",
                "first_preview_ms": median_ms(first_preview(ours, turns)),
                **cancel_latency(ours, turns),
                **loop_overhead(folder, ours, turns),
                "crowds": crowds + [row for side in larger for row in speedups(theirs, ours, side, turns)],
            }
    if torch.cuda.is_available() and not quick:
        figures["full_size"] = full_size.measure()
    figures["machine"] = {"cpu": cpu_name(), "cores": cpu_count(), "torch": torch.__version__}
    figures["seconds"] = round(time.perf_counter() - began, 1)
    return figures


def report(figures: Figures) -> str:
    """Return the figures as text."""
    single = {key: value for key, value in figures.items() if not isinstance(value, list | dict)}
    lists = [rows_table(value) for value in figures.values() if isinstance(value, list)]
    return "\n\n".join([table("diffusion", single), *lists])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.diffusion", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer turns, within a minute")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object, in the last line")
    arguments = parser.parse_args()
    figures = measure(quick=arguments.quick)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures) if arguments.json else report(figures))


if __name__ == "__main__":
    main()
