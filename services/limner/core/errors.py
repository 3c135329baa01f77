"""Everything that can go wrong, as Limner tells it. Knows no gRPC: `limner.runtime.status` turns these into statuses.

    LimnerError
    ├── InvalidInput            the request is at fault; names the field
    │   ├── BadImage            no image, cut off, damaged
    │   ├── ImageTooLarge       more bytes or pixels than accepted
    │   ├── BadMask             another size than the picture, or empty
    │   ├── BadArgument         number, enum value, format, missing field
    │   └── BadPipeline         every fault of a pipeline at once
    ├── NotFound
    │   ├── UnknownModel        lists the names that exist
    │   ├── BlobNotFound
    │   └── RunNotFound
    ├── ModelNotInstalled       weights or an optional package missing
    ├── RequestIdConflict       one request_id, two contents
    ├── Exhausted
    │   ├── Overloaded          the queue is full; says when to come again
    │   ├── OutOfMemory
    │   └── BlobStoreFull
    ├── Unavailable
    │   ├── ServerUnavailable   no healthy server of a kind
    │   └── Stopping            the server takes no new work
    ├── DeadlineExceeded
    ├── Cancelled
    └── InternalFault           a fault of Limner's own, as another server told it

A message says what was wrong, where, and how to mend it, in one or two sentences.
Anything else that is raised is a fault of Limner's own and reaches the caller as "internal error" with an id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class FieldViolation:
    """One fault of one field: `FieldViolation("options.radius_px", "is 0; give 1 to 100")`."""

    field: str
    description: str


class LimnerError(Exception):
    """The base. `reason` is the name of a `limner.v1.ErrorReason` without its prefix."""

    reason: ClassVar[str]

    def __init__(self, message: str, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})


class InvalidInput(LimnerError):
    """The request is at fault, and would be at any time."""

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        violations: Iterable[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, metadata=metadata)
        self.violations = tuple(violations) or ((FieldViolation(field, message),) if field else ())


class BadImage(InvalidInput):
    """The bytes are no image, are cut off, or are damaged."""

    reason = "BAD_IMAGE"


class ImageTooLarge(InvalidInput):
    """More bytes or pixels than accepted; metadata `limit` and `actual`."""

    reason = "IMAGE_TOO_LARGE"


class BadMask(InvalidInput):
    """The mask is of another size than the picture, or selects nothing."""

    reason = "BAD_MASK"


class BadArgument(InvalidInput):
    """A number, enum value, format or combination of fields that is not accepted, or a field that is missing."""

    reason = "BAD_ARGUMENT"


class BadPipeline(InvalidInput):
    """Every fault of a pipeline at once, as violations."""

    reason = "BAD_PIPELINE"


class NotFound(LimnerError):
    """What was asked for by name is not there."""


class UnknownModel(NotFound):
    """No model of that name: `UnknownModel("lama2", available=["lama", "telea"])`. `kind` is what was asked for, and
    `that` what those available do, if others are here too: `that="edits"`."""

    reason = "UNKNOWN_MODEL"

    def __init__(self, name: str, *, available: Iterable[str], kind: str = "model", that: str = "") -> None:
        names = sorted(available)
        super().__init__(
            f"no {kind} {name!r} here{that and f' that {that}'}; there are: {', '.join(names) or 'none'}",
            metadata={"model": name, "available": ",".join(names)},
        )


class BlobNotFound(NotFound):
    """The blob was never there, was deleted or has expired."""

    reason = "BLOB_NOT_FOUND"


class RunNotFound(NotFound):
    """No run of that id."""

    reason = "RUN_NOT_FOUND"


class ModelNotInstalled(LimnerError):
    """The model's weights, or a package it needs, are not on this machine."""

    reason = "MODEL_NOT_INSTALLED"


class RequestIdConflict(LimnerError):
    """The request_id was used for a request with other content."""

    reason = "REQUEST_ID_CONFLICT"


class Exhausted(LimnerError):
    """Something there is only so much of is used up. `retry_after` is in seconds; None: trying again won't help."""

    def __init__(
        self, message: str, *, retry_after: float | None = None, metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, metadata=metadata)
        self.retry_after = retry_after


class Overloaded(Exhausted):
    """The queue is full."""

    reason = "OVERLOADED"


class OutOfMemory(Exhausted):
    """The device has not enough memory."""

    reason = "OUT_OF_MEMORY"


class BlobStoreFull(Exhausted):
    """The blob store is full of blobs that are in use."""

    reason = "BLOB_STORE_FULL"


class Unavailable(LimnerError):
    """The service is not there at the moment."""


class ServerUnavailable(Unavailable):
    """No healthy server of the kind, or it went away in the middle of a call."""

    reason = "SERVER_UNAVAILABLE"


class Stopping(Unavailable):
    """The server takes no new work."""

    reason = "STOPPING"


class DeadlineExceeded(LimnerError):
    """The deadline has passed, or cannot be met."""

    reason = "DEADLINE_EXCEEDED"


class Cancelled(LimnerError):
    """The caller ended the work."""

    reason = "CANCELLED"


class InternalFault(LimnerError):
    """A fault of Limner's own, as another server told it; metadata `error_id` is in that server's log.

    Nobody raises it for a fault of their own: whatever is raised by mistake becomes one at the edge.
    """

    reason = "INTERNAL"
