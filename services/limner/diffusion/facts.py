"""What a model's own files say of it: sizes, defaults, layers. Reads configurations and headers; knows no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from limner.core.errors import ModelNotInstalled
from limner.diffusion.models import MODELS
from limner.diffusion.models._samplers import LEGACY_SAMPLERS, SD3_SAMPLERS, first
from limner.diffusion.sources import SINGLE_FILE_PREFIX, Place, Tensor
from limner.diffusion.variant import Variant

STEP_COUNT = 28  # of SD3 models that are none of the published ones, as StableDiffusion3Pipeline's
GUIDANCE_SCALE = 7.0
LATENT_CHANNELS = 4  # of SD 1 and SDXL
MOST_PIXELS_OF_USUAL = 4  # other models take pictures of at most so many times their usual size


@dataclass(frozen=True)
class Architecture:
    """What tells the published SD3 transformers from each other, and from others."""

    layer_count: int
    width: int  # channels
    dual_attention: tuple[int, ...]  # layers with a second attention
    qk_norm: bool


LARGE = Architecture(38, 2432, (), True)
MEDIUM = Architecture(24, 1536, tuple(range(13)), True)
SD3_MEDIUM = Architecture(24, 1536, (), False)
SKETCH = Architecture(6, 256, (), True)

KNOWN = {LARGE: "sd3.5-large", MEDIUM: "sd3.5-medium", SD3_MEDIUM: "sd3-medium", SKETCH: "limner-sketch"}


def variant_of(place: Place) -> Variant:
    """Return the facts of a model that is here. A model of a published architecture has that one's sizes and defaults;
    the four-step ones, which are of Large's architecture, are known by `turbo` in the name of the model or its place.

    Raises ModelNotInstalled if its configurations can't be read."""
    try:
        return _sd3(place) if place.family == "sd3" else _legacy(place)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelNotInstalled(
            f"{place.name} can't be used: the configurations in {place.path} lack something, or have it in another "
            f"form ({type(error).__name__}: {error}); fetch the model anew",
            metadata={"model": place.name},
        ) from error


def _sd3(place: Place) -> Variant:
    architecture, positions = (_of_file if place.is_file else _of_folder)(place)
    known = KNOWN.get(architecture)
    shift = place.config("scheduler").get("shift") if not place.is_file else None
    if known is not None:
        is_turbo = architecture == LARGE and "turbo" in f"{place.name} {_told(place)}".lower()
        facts = MODELS["sd3.5-large-turbo" if is_turbo else known].VARIANT
        return replace(facts, name=place.name, shift=shift or facts.shift)
    vae = place.config("vae") if not place.is_file else {}
    reduction = 2 ** (len(vae.get("block_out_channels", (0,) * 4)) - 1)
    multiple = 2 * reduction
    max_side = positions * multiple
    usual = place.config("transformer").get("sample_size", 128) * reduction if not place.is_file else 1024
    usual = max(min(usual, max_side) // multiple * multiple, multiple)
    return Variant(
        name=place.name,
        family="sd3",
        tasks=frozenset(("generate", "edit")),
        width=usual,
        height=usual,
        size_multiple=multiple,
        min_pixels=4 * multiple**2,
        max_pixels=min(max_side**2, MOST_PIXELS_OF_USUAL * usual**2),
        step_count=STEP_COUNT,
        guidance_scale=GUIDANCE_SCALE,
        samplers=SD3_SAMPLERS,
        shift=shift or 3.0,
        text_length=256,
        max_text_length=512,
        layer_count=architecture.layer_count,
        max_side=max_side,
    )


def _of_folder(place: Place) -> tuple[Architecture, int]:
    config = place.config("transformer")
    if config["patch_size"] != 2:
        raise ValueError(f"patch_size is {config['patch_size']}, not 2")
    return (
        Architecture(
            config["num_layers"],
            config["num_attention_heads"] * config["attention_head_dim"],
            tuple(config.get("dual_attention_layers", ())),
            config.get("qk_norm") is not None,
        ),
        config["pos_embed_max_size"],
    )


def _of_file(place: Place) -> tuple[Architecture, int]:
    header = {key.removeprefix(SINGLE_FILE_PREFIX): tensor for key, tensor in place.header.items()}
    return architecture_of(header), math.isqrt(header["pos_embed"].shape[1])


def architecture_of(header: dict[str, Tensor]) -> Architecture:
    """Return what the tensors of Stability's MMDiT, without prefix, say of it."""
    layers = sorted({int(key.split(".")[1]) for key in header if key.startswith("joint_blocks.")})
    dual = tuple(layer for layer in layers if f"joint_blocks.{layer}.x_block.attn2.qkv.weight" in header)
    return Architecture(
        len(layers),
        header["x_embedder.proj.weight"].shape[0],
        dual,
        "joint_blocks.0.x_block.attn.ln_q.weight" in header,
    )


def _told(place: Place) -> str:
    """Return what the place is called: a file's or folder's name, or the repository of a snapshot."""
    if place.path.parent.name == "snapshots":
        return place.path.parent.parent.name
    return place.path.name


def _legacy(place: Place) -> Variant:
    facts = MODELS["sdxl-inpaint" if place.family == "sdxl" else "sd1.5-inpaint"].VARIANT
    usual = facts.width
    default = facts.sampler
    if place.is_file:
        channels = place.header[f"{SINGLE_FILE_PREFIX}input_blocks.0.0.weight"].shape[1]
    else:
        channels = place.config("unet")["in_channels"]
        reduction = 2 ** (len(place.config("vae")["block_out_channels"]) - 1)
        usual = place.config("unet")["sample_size"] * reduction
        default = {"PNDMScheduler": "PNDM", "EulerDiscreteScheduler": "Euler", "DDIMScheduler": "DDIM"}.get(
            place.config("scheduler").get("_class_name", ""), default
        )
    if channels == LATENT_CHANNELS:  # with those of a masked picture beside them, it knows nothing but masks
        facts = replace(facts, tasks=frozenset(("generate", "edit")))
    facts = replace(facts, name=place.name, samplers=first(default, LEGACY_SAMPLERS))
    if usual == facts.width:
        return facts
    return replace(
        facts,
        width=usual,
        height=usual,
        min_pixels=min(facts.min_pixels, (usual // 2) ** 2),
        max_pixels=MOST_PIXELS_OF_USUAL * usual**2,
    )
