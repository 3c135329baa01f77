"""The models of this server by the names that requests use."""

from limner.segment.adapter import SegmenterSource
from limner.segment.models import grabcut, saliency_grabcut

MODELS: dict[str, SegmenterSource] = {"grabcut": grabcut, "saliency-grabcut": saliency_grabcut}
