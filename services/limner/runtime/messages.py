"""Small conversions between Limner's values and the protos that every server uses. Knows no pixels."""

from __future__ import annotations

from typing import Any

from google.protobuf import duration_pb2

from limner.core.errors import BadArgument
from limner.core.placement import Placement
from limner.v1 import progress_pb2


def duration(seconds: float) -> duration_pb2.Duration:
    """Return seconds as a Duration; what is below zero counts as zero."""
    message = duration_pb2.Duration()
    message.FromNanoseconds(round(max(seconds, 0.0) * 1e9))
    return message


def placement_to_proto(placement: Placement) -> progress_pb2.Placement:
    """Return a placement for the wire."""
    return progress_pb2.Placement(
        device=placement.device, precision=placement.precision, engine=placement.engine, reason=placement.reason
    )


def check_enum(enum: Any, value: int, *, field: str) -> None:
    """Raise BadArgument unless `value` is one of a proto enum's: `check_enum(InpaintStrategy, request.strategy, …)`.

    proto3 hands on numbers that it does not know, such as those of a newer client.
    """
    if value not in enum.values():
        known = ", ".join(enum.keys())
        raise BadArgument(f"{field} is {value}, which this server does not know; give one of {known}", field=field)
