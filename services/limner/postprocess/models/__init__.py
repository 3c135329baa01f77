"""The models of this server by the names that requests use. `lanczos` needs no weights, and comes before the
larger networks as a request without a name gets it where the default one isn't installed."""

from limner.postprocess.models import lanczos
from limner.postprocess.models.realesrgan import ANIMEVIDEO, X4PLUS, X4PLUS_ANIME
from limner.postprocess.upscaler import UpscalerSource

MODELS: dict[str, UpscalerSource] = {
    "realesrgan-animevideov3": ANIMEVIDEO,
    "lanczos": lanczos,
    "realesrgan-x4plus": X4PLUS,
    "realesrgan-x4plus-anime": X4PLUS_ANIME,
}
