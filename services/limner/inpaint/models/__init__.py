"""The models of this server by the names that requests use. The first one needs no weights, and is what a request
without a name gets as long as the default network isn't installed."""

from limner.inpaint.filler import FillerSource
from limner.inpaint.models import anime_lama, fsr, lama, mat, migan, navier_stokes, patchmatch, telea, zits

MODELS: dict[str, FillerSource] = {
    "patchmatch": patchmatch,
    "fsr": fsr,
    "telea": telea,
    "navier-stokes": navier_stokes,
    "lama": lama,
    "anime-lama": anime_lama,
    "mat": mat,
    "migan": migan,
    "zits": zits,
}
