"""Errors to statuses and back."""

from __future__ import annotations

import logging

import grpc
import pytest
from google.rpc import error_details_pb2

from limner.core import errors
from limner.core.errors import FieldViolation, LimnerError
from limner.runtime import status
from limner.v1.errors_pb2 import ErrorReason


def every_class(base: type[LimnerError] = LimnerError) -> list[type[LimnerError]]:
    return [kind for child in base.__subclasses__() for kind in (child, *every_class(child))]


RAISED = [kind for kind in every_class() if hasattr(kind, "reason")]


def example(kind: type[LimnerError]) -> LimnerError:
    if kind is errors.UnknownModel:
        return errors.UnknownModel("lama2", available=["telea", "lama"])
    if issubclass(kind, errors.InvalidInput):
        violations = [FieldViolation("image", "ist kein Bild – gib eins"), FieldViolation("options.radius_px", "is 0")]
        return kind("zwei Fehler: größer, Ω", violations=violations, metadata={"limit": "3"})
    if issubclass(kind, errors.Exhausted):
        return kind("full", retry_after=1.25, metadata={"a": "b"})
    return kind("so it is", metadata={"a": "b"})


class Ended(grpc.RpcError, grpc.Call):
    """A call that has ended, as a client sees it."""

    def __init__(self, code, details, trailers=()):
        self._code, self._details, self._trailers = code, details, trailers

    code = lambda self: self._code  # noqa: E731
    details = lambda self: self._details  # noqa: E731
    trailing_metadata = lambda self: self._trailers  # noqa: E731


Ended.__abstractmethods__ = frozenset()


def ended(error: BaseException) -> Ended:
    told = status.to_status(error)
    return Ended(status.status_code(told), told.message, status.trailers(told))


@pytest.mark.parametrize("kind", every_class(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_code(kind):
    assert isinstance(status.code_of(kind.__new__(kind)), grpc.StatusCode)


def test_every_reason_of_the_contract_has_exactly_one_class():
    reasons = [name.removeprefix("ERROR_REASON_") for name, value in ErrorReason.items() if value]
    assert sorted(kind.reason for kind in RAISED) == sorted(reasons)


def test_the_contract_says_the_code_that_each_reason_comes_with():
    """The comments of errors.proto are the promise; they are read from the source, as stubs carry no comments."""
    import re
    from pathlib import Path

    proto = Path(__file__).parents[2] / "protos/limner/v1/errors.proto"
    promised = re.findall(
        r"// ([A-Z_]+):(?:(?!ERROR_REASON_).)*?ERROR_REASON_([A-Z_]+) = \d+;", proto.read_text(), re.S
    )
    assert {reason: code for code, reason in promised} == {
        kind.reason: status.code_of(example(kind)).name for kind in RAISED
    }


@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
def test_an_error_comes_out_of_a_status_as_it_went_in(kind):
    sent = example(kind)
    got = status.from_status(ended(sent))
    assert type(got) is kind
    assert (got.message, got.metadata) == (sent.message, sent.metadata)
    assert getattr(got, "violations", ()) == getattr(sent, "violations", ())
    assert getattr(got, "retry_after", None) == getattr(sent, "retry_after", None)


def test_an_unknown_exception_tells_only_an_id_that_is_in_the_log_with_the_traceback(caplog):
    with caplog.at_level(logging.ERROR, "limner.errors"):
        try:
            raise ZeroDivisionError("secret /home/path")
        except ZeroDivisionError as error:
            told = status.to_status(error)
    error_id = status.from_status_proto(told).metadata["error_id"]
    assert status.status_code(told) is grpc.StatusCode.INTERNAL
    assert "secret" not in told.message
    assert "internal error" in told.message
    assert error_id in caplog.text
    assert "ZeroDivisionError: secret /home/path" in caplog.text


def test_an_error_of_a_base_class_without_reason_is_an_internal_fault():
    assert status.status_code(status.to_status(errors.NotFound("what?"))) is grpc.StatusCode.INTERNAL


def _foreign(module: str, text: str) -> Exception:
    return type("Fail", (Exception,), {"__module__": module})(text)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        _foreign("onnxruntime.capi.onnxruntime_pybind11_state", "Failed to allocate memory for requested buffer"),
        RuntimeError("Exception from src/inference: std::bad_alloc"),
        RuntimeError("[GPU] CL_OUT_OF_RESOURCES"),
        _foreign("cv2", "OpenCV(4.11) error: (-4:Insufficient memory) Failed to allocate 9 bytes"),
    ],
    ids=lambda error: str(error) or type(error).__name__,
)
def test_failed_allocations_are_out_of_memory(error):
    assert isinstance(status.as_limner_error(error), errors.OutOfMemory)


def test_pushback_says_when_to_come_again_and_forbids_it_where_that_is_no_use():
    soon = dict(ended(errors.Overloaded("full", retry_after=0.75)).trailing_metadata())
    never = dict(ended(errors.OutOfMemory("too small")).trailing_metadata())
    assert soon["grpc-retry-pushback-ms"] == "750"
    assert never["grpc-retry-pushback-ms"] == "-1"


def test_trailers_stay_below_what_clients_accept():
    violations = [FieldViolation(f"pipeline.steps[{i}].name", "ist schon da – nenn ihn anders " * 9) for i in range(64)]
    error = errors.BadPipeline("ü" * 9000, violations=violations, metadata={str(i): "ä" * 2000 for i in range(9)})
    told = status.to_status(error)
    on_the_wire = 3 * len(told.message.encode()) + 4 / 3 * sum(len(value) for _, value in status.trailers(told))
    assert on_the_wire < 7800
    got = status.from_status_proto(told)
    assert len(got.violations) > 2
    assert got.violations[-1].description == f"and {64 - (len(got.violations) - 1)} more"


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "failed to connect", errors.ServerUnavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", errors.DeadlineExceeded),
        (grpc.StatusCode.CANCELLED, "Locally cancelled", errors.Cancelled),
        (grpc.StatusCode.UNIMPLEMENTED, "Method not found!", errors.InternalFault),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "CLIENT: Received message larger than max (9000000 vs. 4194304)",
            errors.ImageTooLarge,
        ),
    ],
)
def test_what_grpc_itself_says_is_taken_by_its_code(code, details, kind):
    assert type(status.from_status(Ended(code, details))) is kind


def test_broken_or_foreign_details_do_not_hide_the_code():
    broken = Ended(grpc.StatusCode.UNAVAILABLE, "x", ((status.DETAILS_KEY, b"\xff\xff"),))
    foreign = status.to_status(errors.BadImage("no image"))
    foreign.details[0].Pack(error_details_pb2.ErrorInfo(reason="BAD_IMAGE", domain="example.com"))
    assert type(status.from_status(broken)) is errors.ServerUnavailable
    assert type(status.from_status_proto(foreign)) is errors.BadArgument
