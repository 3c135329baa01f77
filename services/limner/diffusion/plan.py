"""Decides in which precision a diffusion model is loaded and which of its parts are where, from the memory there is.

Pure: everything it knows of the model is in its `Shape`, everything of the machine in its `Hardware`. Knows no torch.

Weights are counted exactly. What is computed is estimated by formulas whose constants were read off the published
networks at their full size on torch's meta device: every tensor that lived at the same time, attention as one kernel
that keeps no scores. Steps and the VAE may run at the same time, for different calls, and so both are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from limner.core.errors import BadArgument, OutOfMemory
from limner.core.placement import Placement
from limner.diffusion.hardware import Hardware
from limner.diffusion.shape import Part, Shape
from limner.diffusion.tiling import TILE_SIDE
from limner.engine.budget import out_of_memory

Dtype = Literal["bf16", "fp16", "fp32"]
Quantisation = Literal["none", "int8", "fp8", "nf4"]
TextEncoders = Literal["device", "offload", "cpu"]

PRECISIONS = ("auto", "fp32", "fp16", "bf16")

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
T5_WAYS: tuple[Quantisation, ...] = ("none", "int8", "nf4")

QUANTISED_BYTES = {"int8": 1.0, "fp8": 1.0, "nf4": 0.5 + 2 / 64}
"""Of a weight; nf4 with a scale in 16 bits for 64 of them. The scales of the others are one a row, next to nothing."""

STEP_VALUES = {"sd3": 16, "sdxl": 20, "sd1": 33}
"""What lives at the peak of an evaluation: values for each token and channel of a transformer, 10.6 to 15.3 on the meta
device, or for each latent pixel and channel of a UNet, 15.8 and 26 there, and a quarter more for convolutions."""

PIXELS_PER_TOKEN = {"sd3": 256, "sdxl": 64, "sd1": 64}
CLIP_TOKENS = 77
DECODE_VALUES = 8
"""Values for each pixel and channel of the VAE's level of full size: 6 on the meta device; 6.4 in fp32 and 7.3 in bf16
were measured on a CPU, whose convolutions take room of their own."""

TILE_PIXELS = TILE_SIDE**2  # of the picture that is decoded at once, when that is done in tiles
TEXT_BYTES = 96 << 20  # what T5 computes with at its most tokens, in 16 bits
T5_KEPT_IN_FP32 = (
    0.22  # of its matrices, where the rest is in fp16: their products overflow, and transformers keeps them
)
BLOCKS_AT_ONCE = 3  # on the device, when they come one by one: at work, on its way, and not yet let go
RESERVE_BYTES = {"cpu": 512 << 20, "mps": 512 << 20, "cuda": 768 << 20}
"""What libraries, and allocators that give back late, take beside. A guess."""


@dataclass(frozen=True)
class Plan:
    """How a model is loaded. All sizes are estimates in bytes."""

    placement: Placement  # device, precision, and the reason for people
    dtype: Dtype  # of the weights that aren't quantised, and of what is computed
    quantisation: Quantisation  # of the Linear layers in the denoiser's blocks
    t5_quantisation: Quantisation  # of T5's: `none`, `int8` or `nf4`
    text_encoders: TextEncoders  # `offload`: on the CPU, moved to the device while prompts are encoded, one by one
    text_dtype: Dtype  # of the text encoders: another one where the CPU runs them
    vae_dtype: Dtype
    t5: bool  # whether the T5 encoder is loaded
    group_offload: bool  # the denoiser's blocks are on the CPU, and on the device one after the other
    vae_tiling: bool  # pictures are decoded in overlapping tiles
    needed_bytes: int  # of the device's memory at the peak
    cpu_needed_bytes: int  # of main memory, for what is kept there; 0 where the device's memory is main memory
    parts: dict[str, int]  # what `needed_bytes` is made of: `denoiser`, `text encoders`, `vae`, `step`, ...


@dataclass(frozen=True)
class _Choice:
    """What can be chosen to save memory."""

    quantisation: Quantisation = "none"
    group_offload: bool = False
    text_encoders: TextEncoders = "device"
    t5_quantisation: Quantisation = "none"
    vae_tiling: bool = False


@dataclass(frozen=True)
class _Load:
    """What is to be loaded and done."""

    shape: Shape
    hardware: Hardware
    dtype: Dtype
    t5: bool
    pixels: int
    rows: int
    text_length: int


def plan(
    shape: Shape,
    hardware: Hardware,
    *,
    precision: str = "auto",
    quantisation: str = "auto",
    text_encoders: str = "auto",
    t5: bool = True,
    pixels: int = 1024 * 1024,
    rows: int = 2,
    text_length: int = 256,
) -> Plan:
    """Return how to load a model so that `rows` of the denoiser's batch (two are a picture with guidance), pictures of
    `pixels` and texts of `text_length` T5 tokens fit the hardware: as exactly and as fast as they do.

    What is `auto` is chosen. In this order it is given up: text encoders on the device while they don't encode, T5's
    full precision, text encoders on the device at all; the denoiser's precision (int8, then nf4), with the same of
    texts once more; and at last the denoiser's place on the device. In each case the decoding of pictures at one go
    goes first. fp8 is never chosen: it takes what int8 does and is less exact.

    Raises BadArgument for what can't be had there, OutOfMemory with the figures of the smallest plan if none fits.
    """
    dtype, why = _dtype(shape, hardware, precision)
    _check(hardware, dtype, quantisation, text_encoders)
    load = _Load(shape, hardware, dtype, t5 and shape.t5 is not None, pixels, rows, text_length)
    first: Plan | None = None
    smallest: Plan | None = None
    for choice in _choices(load, quantisation, text_encoders):
        found = _weighed(load, choice, why, first)
        if found.needed_bytes <= hardware.free_bytes and found.cpu_needed_bytes <= hardware.cpu_free_bytes:
            return found
        first = first or found
        if smallest is None or _lack(found, hardware) < _lack(smallest, hardware):
            smallest = found
    assert smallest is not None  # there always is a choice
    raise _shortage(load, smallest, quantisation, text_encoders)


def _dtype(shape: Shape, hardware: Hardware, precision: str) -> tuple[Dtype, str]:
    """Return the dtype and why."""
    if precision not in PRECISIONS:
        mend = "; quantisation = int8 is what you may want" if precision == "int8" else ""
        raise BadArgument(
            f"precision {precision!r} can't be had for diffusion; give one of {', '.join(PRECISIONS)}{mend}",
            field="precision",
        )
    on_cpu = hardware.device == "cpu"
    if precision == "auto":
        if on_cpu:
            return ("bf16", f"bf16, as {hardware.bf16}") if hardware.bf16 else ("fp32", f"fp32, as {hardware.doubt}")
        if shape.family != "sd3" or not hardware.bf16:
            doubt = f", as {hardware.doubt}" if shape.family == "sd3" and hardware.doubt else ""
            return "fp16", f"fp16{doubt or ', in which such models are published'}"
        return "bf16", f"bf16, as {hardware.bf16}" + (f" ({hardware.doubt})" if hardware.doubt else "")
    if (precision == "fp16" and on_cpu) or (precision == "bf16" and not hardware.bf16 and hardware.device != "mps"):
        because = "no CPU gains by it" if precision == "fp16" else hardware.doubt
        raise BadArgument(f"{precision} can't be had here: {because}; set precision to auto or fp32", field="precision")
    chosen: Dtype = "fp32" if precision == "fp32" else "fp16" if precision == "fp16" else "bf16"
    return chosen, f"{precision}, as was asked for"


def _check(hardware: Hardware, dtype: Dtype, quantisation: str, text_encoders: str) -> None:
    """Raise BadArgument for settings that the device can't have."""
    if quantisation not in ("auto", "none", *QUANTISED_BYTES):
        raise BadArgument(
            f"quantisation {quantisation!r} is unknown; give auto, none, {', '.join(QUANTISED_BYTES)}",
            field="quantisation",
        )
    if text_encoders not in ("auto", "device", "offload", "cpu"):
        raise BadArgument(
            f"text_encoder_placement {text_encoders!r} is unknown; give auto, device, offload, cpu",
            field="text_encoder_placement",
        )
    why = ""
    if hardware.device == "mps" and quantisation not in ("auto", "none"):
        why = "on mps weights are not quantised"
    elif quantisation == "fp8" and not hardware.fp8:
        why = "fp8 takes a CUDA device of compute capability 8.9 or more, of 2022 or later"
    elif quantisation == "fp8" and dtype != "bf16":
        why = f"fp8 is multiplied into bf16, and the precision is {dtype}"
    if why:
        raise BadArgument(f"quantisation {quantisation} can't be had here: {why}; set it to auto", field="quantisation")


def _choices(load: _Load, quantisation: str, text_encoders: str) -> Iterator[_Choice]:
    """What to try, the best first."""
    on_cuda = load.hardware.device.startswith("cuda")
    ways: list[tuple[Quantisation, bool]] = [("none", False), ("int8", False), ("nf4", False)]
    if on_cuda and load.shape.denoiser.block:
        ways += [("none", True), ("int8", True)]
    if load.hardware.device == "mps":
        ways = [("none", False)]
    if quantisation == "fp8":
        ways = [("fp8", False)]
    elif quantisation != "auto":
        ways = [way for way in ways if way[0] == quantisation]
    if not on_cuda or load.shape.family != "sd3":  # others' encoders are small, and there is one memory on the CPU
        placements: tuple[TextEncoders, ...] = ("device",)
    elif text_encoders == "auto":
        placements = ("device", "offload", "cpu")
    else:
        placements = tuple(each for each in ("device", "offload", "cpu") if each == text_encoders)
    for way, group_offload in ways:
        texts = [(place, t5) for place in placements for t5 in _t5_ways(load, way, quantisation)]
        # A quantised T5 on the device rather than a full one on the CPU, where it takes seconds for every new prompt.
        texts.sort(key=lambda text: (text[0] == "cpu", T5_WAYS.index(text[1])))
        for place, t5 in texts:
            for vae_tiling in (False, True):
                yield _Choice(way, group_offload, place, t5, vae_tiling)


def _t5_ways(load: _Load, way: Quantisation, asked: str) -> tuple[Quantisation, ...]:
    """What may become of T5, the best first: four bits only where the denoiser has no more."""
    if not load.t5 or load.hardware.device == "mps" or asked == "none":
        return ("none",)
    return T5_WAYS if way == "nf4" else T5_WAYS[:2]


def _weighed(load: _Load, choice: _Choice, why: str, first: Plan | None) -> Plan:
    """Return the plan of a choice. `first` is that of the best choice, which didn't fit."""
    shape, device = load.shape, load.hardware.device
    text_dtype = _text_dtype(load, choice)
    vae_dtype: Dtype = "fp32" if shape.family == "sdxl" and load.dtype == "fp16" else load.dtype  # it overflows
    denoiser = _part_bytes(shape.denoiser, load.dtype, choice.quantisation)
    texts = [_part_bytes(part, text_dtype) for part in shape.clip]
    if load.t5 and shape.t5 is not None:
        texts.append(_t5_bytes(shape.t5, text_dtype, choice.t5_quantisation))
    on_device = {"device": sum(texts), "offload": 0, "cpu": 0}[choice.text_encoders]
    computed = TEXT_BYTES * BYTES[text_dtype] // 2
    encoding = {"device": computed, "offload": max(texts, default=0) + computed, "cpu": 0}[choice.text_encoders]
    at_once = min(load.pixels, TILE_PIXELS) if choice.vae_tiling else load.pixels
    decoding = DECODE_VALUES * shape.vae_width * at_once * BYTES[vae_dtype]
    parts = {
        "denoiser": _resident(load, choice, denoiser),
        "text encoders": on_device,
        "vae": _part_bytes(shape.vae, vae_dtype),
        "step": _step_bytes(load, choice),
        "text and VAE at work": max(encoding, decoding),
        "reserve": RESERVE_BYTES[device.partition(":")[0]],
    }
    in_main_memory = (sum(texts) - on_device) + (denoiser if choice.group_offload else 0)
    if choice.text_encoders == "cpu":
        in_main_memory += computed
    needed = sum(parts.values())
    reason = _reason(choice, why, first, needed, load.hardware.free_bytes)
    return Plan(
        placement=Placement(device, load.dtype, "torch", reason),
        dtype=load.dtype,
        quantisation=choice.quantisation,
        t5_quantisation=choice.t5_quantisation,
        text_encoders=choice.text_encoders,
        text_dtype=text_dtype,
        vae_dtype=vae_dtype,
        t5=load.t5,
        group_offload=choice.group_offload,
        vae_tiling=choice.vae_tiling,
        needed_bytes=needed,
        cpu_needed_bytes=in_main_memory,
        parts=parts,
    )


def _text_dtype(load: _Load, choice: _Choice) -> Dtype:
    """A CPU that has nothing for 16 bits multiplies in 32."""
    if choice.text_encoders != "cpu":
        return load.dtype
    return "bf16" if load.hardware.cpu_bf16 else "fp32"


def _part_bytes(part: Part, dtype: Dtype, quantisation: Quantisation = "none") -> int:
    if quantisation == "none":
        return part.values * BYTES[dtype]
    return round((part.values - part.linear) * BYTES[dtype] + part.linear * QUANTISED_BYTES[quantisation])


def _t5_bytes(part: Part, dtype: Dtype, quantisation: Quantisation) -> int:
    kept = T5_KEPT_IN_FP32 if dtype == "fp16" and quantisation == "none" else 0
    return _part_bytes(part, dtype, quantisation) + round(part.linear * kept * (BYTES["fp32"] - BYTES["fp16"]))


def _resident(load: _Load, choice: _Choice, denoiser: int) -> int:
    """Return what of the denoiser is on the device."""
    if not choice.group_offload:
        return denoiser
    part, share = load.shape.denoiser, QUANTISED_BYTES.get(choice.quantisation, BYTES[load.dtype])
    return round((part.values - part.linear) * BYTES[load.dtype] + BLOCKS_AT_ONCE * part.block * share)


def _step_bytes(load: _Load, choice: _Choice) -> int:
    shape, size = load.shape, BYTES[load.dtype]
    tokens = load.pixels // PIXELS_PER_TOKEN[shape.family]
    if shape.family == "sd3":
        tokens += CLIP_TOKENS + load.text_length
    computed = STEP_VALUES[shape.family] * tokens * shape.width * load.rows * size
    # The largest matrix of a block, in the dtype that it is multiplied in.
    return computed if choice.quantisation == "none" else computed + 4 * shape.width**2 * size


def _reason(choice: _Choice, why: str, first: Plan | None, needed: int, free: int) -> str:
    """Return what was chosen and why, for people."""
    saved = [
        f"{choice.quantisation} weights" if choice.quantisation != "none" else "",
        f"T5 in {choice.t5_quantisation}" if choice.t5_quantisation != "none" else "",
        {"offload": "text encoders on the device only while they encode", "cpu": "text encoders on the CPU"}.get(
            choice.text_encoders, ""
        ),
        "the denoiser's blocks on the device one by one" if choice.group_offload else "",
        "pictures decoded in tiles" if choice.vae_tiling else "",
    ]
    measures = ", ".join(measure for measure in saved if measure)
    if first is None:
        return "; ".join((why, *((f"{measures}, as was asked for",) if measures else ()), f"about {gib(needed)}"))
    return (
        f"{why}; {measures}, which makes it about {gib(needed)} instead of {gib(first.needed_bytes)}: {gib(free)} "
        "are to be had"
    )


def _lack(plan: Plan, hardware: Hardware) -> int:
    return max(plan.needed_bytes - hardware.free_bytes, 0) + max(plan.cpu_needed_bytes - hardware.cpu_free_bytes, 0)


def _shortage(load: _Load, smallest: Plan, quantisation: str, text_encoders: str) -> OutOfMemory:
    """Return the error that says what the smallest plan lacks, and how to mend it."""
    hardware = load.hardware
    mends = [
        "set t5 = false, which then reads 77 tokens of a prompt" if load.t5 else "",
        "set quantisation = auto" if quantisation != "auto" else "",
        "set text_encoder_placement = auto" if text_encoders not in ("auto", "cpu") else "",
        "take a smaller model, or end other programs",
    ]
    mend = "; or ".join(each for each in mends if each)
    if smallest.needed_bytes > hardware.free_bytes:
        what, needed, free = f"on {hardware.device}", smallest.needed_bytes, hardware.free_bytes
    else:
        what, needed, free = "of main memory", smallest.cpu_needed_bytes, hardware.cpu_free_bytes
    parts = ", ".join(f"{name} {_exact(count)}" for name, count in smallest.parts.items() if count)
    made_of = parts if needed == smallest.needed_bytes else "what is not on the device"
    return out_of_memory(
        f"{load.shape.name} needs about {_exact(needed)} {what} at least ({made_of}), and {_exact(free)} are to be "
        f"had; {mend}",
        needed,
        free,
    )


def _exact(count: int) -> str:
    """Return a size where what is missing may be little."""
    return f"{count >> 20} MiB" if count < 100 << 30 else gib(count)


def gib(count: int) -> str:
    """Return a size for people: `7.4 GiB`."""
    return f"{count / (1 << 30):.1f} GiB"
