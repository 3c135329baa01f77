"""The models of this server by the names that requests use. As long as the configured default isn't installed, a
request without a name gets the first of them that is."""

from limner.inpaint.filler import FillerSource
from limner.inpaint.models import (
    anime_lama,
    fsr,
    lama,
    limner_erase,
    mat,
    migan,
    navier_stokes,
    patchmatch,
    telea,
    zits,
)

MODELS: dict[str, FillerSource] = {
    "patchmatch": patchmatch,
    "limner-erase": limner_erase,
    "fsr": fsr,
    "telea": telea,
    "navier-stokes": navier_stokes,
    "lama": lama,
    "anime-lama": anime_lama,
    "mat": mat,
    "migan": migan,
    "zits": zits,
}
