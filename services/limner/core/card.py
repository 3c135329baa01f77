"""What is known of a model before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WeightFile:
    """One file of weights that can be fetched.

    `url` is http(s), `file:`, or `package:import_name/path/in/it` for weights that an optional Python package carries;
    `digest` is `sha256:` or, where the publisher gives no better, `md5:`, and lower-case hexadecimal. `size_bytes` is 0
    if it isn't known.
    """

    name: str
    url: str
    digest: str
    size_bytes: int = 0


@dataclass(frozen=True)
class ModelCard:
    """A model's name, purpose, origin and needs."""

    name: str  # what requests use, such as `telea`
    task: str  # `inpaint`, `segment`, `remove-background`, `upscale`, `generate`, `edit`, `lora`
    description: str  # one or two sentences for people
    licence: str  # of the weights, or of the algorithm's code; an SPDX id where one exists
    source: str  # where weights or method come from: URL, package, paper
    files: tuple[WeightFile, ...] = ()  # what `limner models pull` fetches; empty for algorithms
    exports: tuple[str, ...] = ()  # the ONNX files made of `files`, which are what is kept; empty: `files` are served
    digest: str = ""  # sha256 of the weights as served; empty for algorithms
    needs_acceptance: bool = False  # the licence isn't free: pulling asks for consent
    tried: bool = True  # False: the URL or digest could not be tried by us
    size_multiple: int = 1  # sides are padded to multiples of this
    minimum_side: int = 1  # smaller pictures are padded to this
    precisions: tuple[str, ...] = ("native",)
    memory_estimate_bytes: int = 0  # of the loaded model, fp32
    memory_per_pixel_bytes: int = 0  # of one call at its peak, for each pixel that the network sees, fp32
    engine: str = "opencv"  # what runs an algorithm; a network's is picked by `limner.engine.placement`
    hub: str = ""  # `owner/name` on the Hugging Face hub of a pipeline of several parts, instead of `files`
    hub_bytes: int = 0  # about what of it is fetched
