"""What the cards of the SD3 family have in common."""

from __future__ import annotations

LICENCE = "Stability AI Community License"  # free below a yearly revenue of one million US dollars
PRECISIONS = ("fp32", "bf16", "fp16")
SIZE_MULTIPLE = 16  # the VAE reduces by 8, and patches are of two
SHIFT = 3.0
TEXT_LENGTH = 256  # tokens of T5, as StableDiffusion3Pipeline's default
MAX_TEXT_LENGTH = 512
MEGAPIXEL = 1 << 20
TEXT_AND_VAE = 5_664_000_000  # parameters of both CLIPs, T5 and the VAE together, about


def memory(transformer_parameters: int) -> int:
    """Return what a model of the family takes in bytes, in fp32."""
    return 4 * (transformer_parameters + TEXT_AND_VAE)


def download(transformer_parameters: int) -> int:
    """Return about how many bytes of it are fetched; the published files are in 16 bits."""
    return 2 * (transformer_parameters + TEXT_AND_VAE)
