"""Writes limner-sketch as an ordinary diffusers folder of SD3: `python -m training.sketch.export [--to DIR]`.

Weights have 16 bits. What stands in the folder is then written to the manifest of the weights that ship.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from transformers import PreTrainedTokenizerFast

from training.manifest import WEIGHTS, write_manifest
from training.sketch import sample
from training.sketch.network import Sketch, best
from training.sources import OUT


def pipeline(
    network: Sketch, tokenizer: PreTrainedTokenizerFast, vae: AutoencoderKL, shift: float = sample.SHIFT
) -> StableDiffusion3Pipeline:
    """Return the pipeline of a trained network, without T5. It shares the network's weights."""
    return StableDiffusion3Pipeline(
        transformer=network.transformer,
        text_encoder=network.text_encoder,
        text_encoder_2=network.text_encoder_2,
        text_encoder_3=None,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=None,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
    )


def export(
    network: Sketch, tokenizer: PreTrainedTokenizerFast, vae: Path, folder: Path, shift: float = sample.SHIFT
) -> int:
    """Write the folder anew and return its size in bytes. The network is turned to float16."""
    parts = pipeline(network, tokenizer, AutoencoderKL.from_pretrained(vae), shift)
    parts.vae.register_to_config(_name_or_path="")  # else the configuration names this machine's folder
    beside = folder.with_name(folder.name + ".new")
    shutil.rmtree(beside, ignore_errors=True)
    parts.to(dtype=torch.float16).save_pretrained(beside, safe_serialization=True)
    shutil.rmtree(folder, ignore_errors=True)
    beside.replace(folder)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main(arguments: Sequence[str] | None = None) -> None:
    """Export what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m training.sketch.export", description="Export a trained network.")
    parser.add_argument("--out", type=Path, default=OUT / "sketch/run", help="folder of the run (default: %(default)s)")
    parser.add_argument("--vae", type=Path, default=OUT / "sketch/vae", help="autoencoder (default: %(default)s)")
    parser.add_argument("--to", type=Path, default=WEIGHTS / "limner-sketch", help="folder (default: %(default)s)")
    parser.add_argument("--shift", type=float, default=sample.SHIFT, help="of the schedule (default: %(default)s)")
    given = parser.parse_args(arguments)
    network, tokenizer = best(given.out)
    size = export(network, tokenizer, given.vae, given.to, given.shift)
    print(f"{given.to}: {size:,} bytes")
    if given.to.parent.resolve() == WEIGHTS.resolve():
        write_manifest()


if __name__ == "__main__":
    main()
