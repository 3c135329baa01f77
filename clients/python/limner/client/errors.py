"""Why a call failed, as the caller sees it: built from gRPC's status and its details, knows no picture.

    RequestFailed
    ├── InvalidRequest     the request is at fault, and would be at any time: `violations` name the fields
    ├── NotFound           no model, blob or run of that name
    ├── Overloaded         too much work, memory or space is in use; `retry_after` says when to come again
    ├── Unavailable        nobody answers at the address, or no healthy server can do a step
    ├── TimedOut           the deadline has passed, or could not be met
    └── Cancelled          the run was cancelled

Whatever else a server answers, such as INTERNAL, is a plain RequestFailed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_DETAILS = "grpc-status-details-bin"
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True)
class Violation:
    """One fault of one field: `Violation("options.radius_px", "is 0; give 1 to 100")`."""

    field: str
    description: str


class RequestFailed(Exception):
    """A call or a run failed.

    `reason` is the name of a `limner.v1.ErrorReason` without its prefix, such as `BAD_MASK`, or empty where the answer
    did not come from Limner. `retry_after` is in seconds, None where trying again won't help.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        violations: tuple[Violation, ...] = (),
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.violations = violations
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after

    @property
    def step(self) -> str:
        """The step of the pipeline that failed; empty if it was none."""
        return self.metadata.get("step", "")

    def as_dict(self) -> dict[str, Any]:
        """All that is known of it, for reports and scripts."""
        return {
            "code": self.code.name,
            "reason": self.reason,
            "message": self.message,
            "step": self.step,
            "violations": [{"field": fault.field, "description": fault.description} for fault in self.violations],
            "retry_after_seconds": self.retry_after,
        }

    def __str__(self) -> str:
        where = f" in step {self.step!r}" if self.step else ""
        lines = [f"{self.reason or self.code.name}{where}: {self.message}"]
        for fault in self.violations:  # what the message says already isn't said again
            if fault.description not in self.message:
                lines.append(f"  {fault.field}: {fault.description}")
            elif fault.field not in self.message:
                lines.append(f"  {fault.field}")
        if self.retry_after is not None:
            lines.append(f"  try again in {self.retry_after:g} s")
        if "error_id" in self.metadata:
            lines.append(f"  look for {self.metadata['error_id']} in the server's log")
        return "\n".join(lines)


class InvalidRequest(RequestFailed):
    """The request is at fault."""


class NotFound(RequestFailed):
    """What was asked for by name is not there."""


class Overloaded(RequestFailed):
    """Something there is only so much of is used up."""


class Unavailable(RequestFailed):
    """Nobody there to do it."""


class TimedOut(RequestFailed):
    """The deadline has passed."""


class Cancelled(RequestFailed):
    """The run was cancelled."""


_KINDS: dict[grpc.StatusCode, type[RequestFailed]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.ALREADY_EXISTS: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
    grpc.StatusCode.CANCELLED: Cancelled,
}


def from_status(status: status_pb2.Status) -> RequestFailed:
    """The exception for a google.rpc.Status, such as RunFailed carries."""
    reason, retry_after = "", None
    metadata: dict[str, str] = {}
    violations: list[Violation] = []
    for detail in status.details:
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == "limner":
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            violations += [Violation(fault.field, fault.description) for fault in bad.field_violations]
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return _KINDS.get(code, RequestFailed)(
        code,
        status.message,
        reason=reason,
        violations=tuple(violations),
        metadata=metadata,
        retry_after=retry_after,
    )


def from_rpc_error(error: grpc.aio.AioRpcError, address: str) -> RequestFailed:
    """The exception for a call that ended with a status other than OK; `address` is where it went."""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS and isinstance(value, bytes):
            try:
                return from_status(status_pb2.Status.FromString(value))
            except DecodeError:  # somebody else's details
                break
    code, message = error.code(), error.details() or "no message"
    if code is grpc.StatusCode.UNAVAILABLE:
        message = f"no answer from {address} ({message}); start the services with `limner up` or give another address"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        message = f"the time was up before {address} had answered; allow more (--timeout, or `timeout`)"
    return _KINDS.get(code, RequestFailed)(code, message)


def is_lost_connection(failure: RequestFailed) -> bool:
    """True where the connection broke, false where a server said that it, or another one, is not available."""
    return isinstance(failure, Unavailable) and not failure.reason
