"""Errors to gRPC statuses with details, and back. The only place that knows both.

A failed call carries a google.rpc.Status with ErrorInfo{reason, domain "limner", metadata}, BadRequest where fields are
at fault and RetryInfo where another try may succeed, and `grpc-retry-pushback-ms` for gRPC's own retries.
"""

from __future__ import annotations

import logging
import re
import secrets
from typing import Any, TypeVar, cast

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

from limner.core import errors
from limner.core.errors import FieldViolation, LimnerError

DOMAIN = "limner"
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"

# Clients refuse trailers over 8 KiB and then see no reason at all. The message travels twice, once percent-encoded at
# up to 3 bytes a byte, and the details in base64. All in bytes.
MESSAGE_LIMIT = 800
METADATA_LIMIT = 700  # of one value
DETAILS_LIMIT = 3500
LEFT_FOR_VIOLATIONS = 2000  # of the details, at least

CODES: dict[type[LimnerError], grpc.StatusCode] = {
    errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.ModelNotInstalled: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RequestIdConflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.InternalFault: grpc.StatusCode.INTERNAL,
}

# What a status that says no reason is taken for: one from gRPC itself, or from a server that is not Limner's.
_FALLBACKS: dict[grpc.StatusCode, type[LimnerError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.BadArgument,
    grpc.StatusCode.OUT_OF_RANGE: errors.BadArgument,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.UNAVAILABLE: errors.ServerUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: errors.Cancelled,
}

_OUT_OF_MEMORY = re.compile(
    r"out of memory|bad_alloc|failed to allocate|cannot allocate|insufficient memory|not enough memory"
    r"|OUT_OF_(HOST|DEVICE)_MEMORY|OUT_OF_RESOURCES|MEM_OBJECT_ALLOCATION_FAILURE",
    re.IGNORECASE,
)
_TOO_LARGE = re.compile(r"message (?:length )?larger than max \((\d+) vs\. (\d+)\)", re.IGNORECASE)

_log = logging.getLogger("limner.errors")

M = TypeVar("M", bound=message.Message)


def code_of(error: LimnerError) -> grpc.StatusCode:
    """Return the status code of an error."""
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def as_limner_error(error: BaseException) -> LimnerError:
    """Return the error as Limner tells it. One that nobody meant to raise is logged with its traceback and an id, and
    becomes an InternalFault that names the id and nothing else."""
    if isinstance(error, LimnerError) and hasattr(error, "reason"):  # a base class of the tree has none
        return error
    if isinstance(error, grpc.RpcError):
        return from_status(error)
    if _is_out_of_memory(error):
        _log.warning("out of memory: %s", error)
        return errors.OutOfMemory("not enough memory on the device: send a smaller picture, or try again later")
    error_id = secrets.token_hex(6)
    _log.error("internal error %s", error_id, exc_info=(type(error), error, error.__traceback__))
    return errors.InternalFault(f"internal error {error_id}", metadata={"error_id": error_id})


def _is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an allocation failed. ONNX Runtime, OpenVINO, OpenCV and torch say so in RuntimeErrors or in types
    of their own, which this module cannot import."""
    if isinstance(error, MemoryError):
        return True
    foreign = type(error).__module__.split(".")[0] in ("onnxruntime", "openvino", "cv2", "torch")
    return (foreign or isinstance(error, RuntimeError)) and bool(_OUT_OF_MEMORY.search(str(error)))


def to_status(error: BaseException) -> status_pb2.Status:
    """Return the google.rpc.Status that tells of an error, small enough for trailers."""
    told = as_limner_error(error)
    status = status_pb2.Status(code=code_of(told).value[0], message=_cut(told.message, MESSAGE_LIMIT))
    info = error_details_pb2.ErrorInfo(reason=told.reason, domain=DOMAIN)
    for key, value in told.metadata.items():
        if status.ByteSize() + info.ByteSize() < DETAILS_LIMIT - LEFT_FOR_VIOLATIONS:
            info.metadata[key] = _cut(value, METADATA_LIMIT)
    status.details.append(_packed(info))
    if isinstance(told, errors.Exhausted) and told.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(told.retry_after * 1000))
        status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    if isinstance(told, errors.InvalidInput) and told.violations:
        status.details.append(_packed(_bad_request(told.violations, DETAILS_LIMIT - status.ByteSize())))
    return status


def _bad_request(violations: tuple[FieldViolation, ...], limit: int) -> error_details_pb2.BadRequest:
    """Return as many violations as fit into `limit` bytes, at least one; the last one says how many are left out."""
    request = error_details_pb2.BadRequest()
    for index, violation in enumerate(violations):
        if index and request.ByteSize() > limit:
            del request.field_violations[-1]
            request.field_violations.add(description=f"and {len(violations) - index + 1} more")
            break
        request.field_violations.add(field=_cut(violation.field, 200), description=_cut(violation.description, 500))
    return request


def status_code(status: status_pb2.Status) -> grpc.StatusCode:
    """Return gRPC's code of a google.rpc.Status; one that gRPC does not know is UNKNOWN."""
    return next((code for code in grpc.StatusCode if code.value[0] == status.code), grpc.StatusCode.UNKNOWN)


def trailers(status: status_pb2.Status) -> tuple[tuple[str, str | bytes], ...]:
    """Return the trailing metadata of a call that ends with `status`."""
    metadata: list[tuple[str, str | bytes]] = [(DETAILS_KEY, status.SerializeToString())]
    if status_code(status) is grpc.StatusCode.RESOURCE_EXHAUSTED:
        retry = _unpacked(status, error_details_pb2.RetryInfo)
        # A negative pushback forbids gRPC to try again by itself.
        metadata.append((PUSHBACK_KEY, str(retry.retry_delay.ToMilliseconds()) if retry else "-1"))
    return tuple(metadata)


def from_status(error: grpc.RpcError) -> LimnerError:
    """Return the LimnerError that a failed call tells of: reason, message, violations, metadata and retry as sent.

    A status without a reason that Limner knows, such as one that gRPC itself made, is taken by its code.
    """
    call = cast(grpc.Call, error)
    for key, value in call.trailing_metadata() or ():
        if key == DETAILS_KEY:
            try:
                return from_status_proto(status_pb2.Status.FromString(cast(bytes, value)))
            except message.DecodeError:
                break
    return _without_reason(call.code(), call.details() or "")


def from_status_proto(status: status_pb2.Status) -> LimnerError:
    """Return the LimnerError that a google.rpc.Status tells of."""
    info = _unpacked(status, error_details_pb2.ErrorInfo)
    kind = _kinds().get(info.reason) if info and info.domain == DOMAIN else None
    if info is None or kind is None:
        return _without_reason(status_code(status), status.message)
    retry = _unpacked(status, error_details_pb2.RetryInfo)
    request = _unpacked(status, error_details_pb2.BadRequest)
    return _made(
        kind,
        status.message,
        dict(info.metadata),
        tuple(FieldViolation(each.field, each.description) for each in request.field_violations) if request else (),
        retry.retry_delay.ToMilliseconds() / 1000 if retry else None,
    )


def _without_reason(code: grpc.StatusCode, details: str) -> LimnerError:
    too_large = _TOO_LARGE.search(details)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and too_large:
        actual, limit = too_large.groups()
        return errors.ImageTooLarge(
            f"a message of {actual} bytes, and at most {limit} are taken: send a smaller picture or a denser format",
            metadata={"limit": limit, "actual": actual},
        )
    kind = _FALLBACKS.get(code, errors.InternalFault)
    return _made(kind, details or code.name, {"grpc_code": code.name}, (), None)


def _kinds() -> dict[str, type[LimnerError]]:
    """Return the error classes by their reasons."""
    found: dict[str, type[LimnerError]] = {}
    waiting = [LimnerError]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            waiting.append(kind)
            if reason := getattr(kind, "reason", ""):
                found[reason] = kind
    return found


def _made(
    kind: type[LimnerError],
    text: str,
    metadata: dict[str, str],
    violations: tuple[FieldViolation, ...],
    retry_after: float | None,
) -> LimnerError:
    """Return an error of any class as it was sent; their own constructors would compose the message anew."""
    error = kind.__new__(kind)
    LimnerError.__init__(error, text, metadata=metadata)
    if isinstance(error, errors.InvalidInput):
        error.violations = violations
    if isinstance(error, errors.Exhausted):
        error.retry_after = retry_after
    return error


def _cut(text: str, limit: int) -> str:
    """Return a text of at most `limit` bytes."""
    data = text.encode("utf-8", "replace")
    return data.decode() if len(data) <= limit else data[: limit - 3].decode("utf-8", "ignore") + "…"


def _packed(detail: message.Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _unpacked(status: status_pb2.Status, kind: type[M]) -> M | None:
    for detail in status.details:
        found: Any = kind()
        if detail.Unpack(found):
            return cast(M, found)
    return None
