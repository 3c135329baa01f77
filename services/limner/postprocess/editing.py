"""Mask edits: what an EditMaskRequest's options say, checked and turned into functions. Knows no server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

from limner.core.errors import BadArgument, FieldViolation
from limner.core.mask import Mask, feather, grow, invert, shrink, threshold
from limner.runtime.messages import check_enum
from limner.v1 import postprocess_pb2

Combination = Literal["union", "intersection", "difference"]
Operation = Callable[[Mask], Mask]

COMBINATIONS: dict[int, Combination] = {
    postprocess_pb2.MASK_COMBINATION_UNSPECIFIED: "union",
    postprocess_pb2.MASK_COMBINATION_UNION: "union",
    postprocess_pb2.MASK_COMBINATION_INTERSECTION: "intersection",
    postprocess_pb2.MASK_COMBINATION_DIFFERENCE: "difference",
}
DISCS = {"grow": grow, "shrink": shrink, "feather": feather}
MASK_LIMIT = 16
OPERATION_LIMIT = 32
RADIUS_RANGE = (1, 1024)
LEVEL_LIMIT = 254
DEFAULT_LEVEL = 127


def combination(options: postprocess_pb2.EditMaskOptions) -> Combination:
    """Return how masks become one. Raises BadArgument for a value that isn't known."""
    check_enum(postprocess_pb2.MaskCombination, options.combination, field="options.combination")
    return COMBINATIONS[options.combination]


def operations(options: postprocess_pb2.EditMaskOptions) -> list[Operation]:
    """Return what is done to the mask, in order. Raises BadArgument with every fault as a violation, each with its
    path: `options.operations[1].grow.radius_px`."""
    violations: list[FieldViolation] = []
    if len(options.operations) > OPERATION_LIMIT:
        violations.append(
            FieldViolation("options.operations", f"has {len(options.operations)}; give at most {OPERATION_LIMIT}")
        )
    wanted = []
    for index, message in enumerate(options.operations):
        path = f"options.operations[{index}]"
        kind = message.WhichOneof("operation")
        if kind is None:
            names = ", ".join(field.name for field in message.DESCRIPTOR.oneofs_by_name["operation"].fields)
            violations.append(FieldViolation(path, f"says no operation; give one of {names}"))
            continue
        detail = getattr(message, kind)
        violations += _faults(kind, detail, path)
        wanted.append(_operation(kind, detail))
    if violations:
        raise_violations(violations)
    return wanted


def raise_violations(violations: Iterable[FieldViolation]) -> None:
    """Raise BadArgument with all of them, in the message too."""
    faults = list(violations)
    raise BadArgument("; ".join(f"{fault.field} {fault.description}" for fault in faults), violations=faults)


def _faults(kind: str, detail: Any, path: str) -> list[FieldViolation]:
    if kind in DISCS and not RADIUS_RANGE[0] <= detail.radius_px <= RADIUS_RANGE[1]:
        low, high = RADIUS_RANGE
        return [FieldViolation(f"{path}.{kind}.radius_px", f"is {detail.radius_px}; give {low} to {high}")]
    if kind == "threshold" and detail.level > LEVEL_LIMIT:
        return [FieldViolation(f"{path}.threshold.level", f"is {detail.level}; give 0 to {LEVEL_LIMIT}")]
    return []


def _operation(kind: str, detail: Any) -> Operation:
    if kind == "invert":
        return invert
    if kind == "threshold":
        return partial(threshold, level=detail.level if detail.HasField("level") else DEFAULT_LEVEL)
    return partial(DISCS[kind], radius=detail.radius_px)
