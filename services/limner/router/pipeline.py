"""Checks a pipeline before anything runs, tells every fault at once, and puts the steps in order.

Knows names, kinds and the shape of the graph. What a model accepts (a radius, a scale) its server knows and says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from limner.core.errors import BadPipeline, BlobNotFound, FieldViolation
from limner.router.blobs import is_blob_id
from limner.router.steps import (
    IMAGE,
    MASK,
    OPERATIONS,
    Slot,
    gives,
    message_of,
    operation_name,
    operation_of,
    slots_of,
)
from limner.v1 import images_pb2, router_pb2

MAX_STEPS = 64
MAX_INPUTS = 64
MAX_MASKS = 64  # of one step
MAX_PIPELINE_BYTES = 256 << 10  # checking takes time for each name and number, and nobody else is served meanwhile
MAX_CYCLES = 32  # that are told: more don't fit into an answer
SHOWN_NAMES = 500  # characters of names that a message lists
FORMATS = ("raw", "png", "jpeg", "webp", "tiff", "bmp")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_KIND_NAMES = {IMAGE: "a picture", MASK: "a mask"}


@dataclass(frozen=True)
class PlannedStep:
    """A step with its place."""

    index: int  # in the request's list, for field paths
    step: router_pb2.Step
    slots: tuple[Slot, ...]
    wanted: bool  # the caller gets the result
    taken: int  # how many slots of other steps take the result

    @property
    def name(self) -> str:
        """Return the step's name."""
        return self.step.name

    @property
    def path(self) -> str:
        """Return where it is in the request: `pipeline.steps[2]`."""
        return f"pipeline.steps[{self.index}]"


@dataclass(frozen=True)
class Plan:
    """A pipeline that may run: its steps, each after those that it takes from."""

    steps: tuple[PlannedStep, ...]
    inputs: frozenset[str]  # names of the pictures that some step takes

    @property
    def names(self) -> list[str]:
        """Return the steps' names in order."""
        return [step.name for step in self.steps]


def plan(request: router_pb2.RunRequest, has_blob: Callable[[str], bool]) -> Plan:
    """Check a request's pipeline and inputs and return the plan.

    Raises BadPipeline with every fault, or BlobNotFound if the only fault is blobs that aren't there: those the caller
    can upload and then repeat the request as it is.
    """
    unbounded = list(_size_faults(request))
    if unbounded:
        raise _bad(unbounded)
    steps = list(request.pipeline.steps)
    faults = [
        *_input_faults(request),
        *_name_faults(steps, request.inputs),
        *(fault for i, step in enumerate(steps) for fault in _step_faults(i, step)),
        *_source_faults(steps, request.inputs),
        *_output_faults(request),
    ]
    order, cycles = _order(steps, request.inputs)
    faults += cycles
    gone = _gone_blobs(request, has_blob)
    if faults:
        raise _bad([*faults, *(FieldViolation(field, "is not here; upload it again") for field in gone)])
    if gone:
        raise BlobNotFound(
            f"the blobs of {', '.join(gone)} are not here: they were never uploaded, or have expired or been deleted; "
            "upload them and repeat the request",
            metadata={"blob_id": ",".join(gone.values()), "fields": ",".join(gone)},
        )
    return _planned(request, steps, order)


def _bad(faults: list[FieldViolation]) -> BadPipeline:
    shown = "; ".join(f"{fault.field} {fault.description}" for fault in faults[:3])
    more = f"; and {len(faults) - 3} more, see the field violations" if len(faults) > 3 else ""
    return BadPipeline(f"the pipeline can't run: {shown}{more}", violations=faults)


def _size_faults(request: router_pb2.RunRequest) -> Iterator[FieldViolation]:
    """Yield what is too much to be looked at any closer, or nothing at all."""
    pipeline = request.pipeline
    if not pipeline.steps:
        yield FieldViolation("pipeline.steps", "is empty; give at least one step")
    for field, items, limit in (
        ("pipeline.steps", pipeline.steps, MAX_STEPS),
        ("pipeline.outputs", pipeline.outputs, MAX_STEPS),
        ("inputs", request.inputs, MAX_INPUTS),
        *((f"pipeline.steps[{i}].mask.masks", step.mask.masks, MAX_MASKS) for i, step in enumerate(pipeline.steps)),
    ):
        if len(items) > limit:
            yield FieldViolation(field, f"has {len(items)} items; give at most {limit}")
    if pipeline.ByteSize() > MAX_PIPELINE_BYTES:
        yield FieldViolation("pipeline", f"takes {pipeline.ByteSize()} bytes; it may take {MAX_PIPELINE_BYTES}")


def _listed(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return listed if len(listed) <= SHOWN_NAMES else f"{listed[:SHOWN_NAMES]}…"


def _input_faults(request: router_pb2.RunRequest) -> Iterator[FieldViolation]:
    for name in sorted(request.inputs):
        field, image = f"inputs[{name}]", request.inputs[name]
        if not _NAME.match(name):
            yield FieldViolation(field, "is no name; give 1 to 64 letters, digits, - and _")
        source = image.WhichOneof("source")
        if source is None or (source == "encoded" and not image.encoded):
            yield FieldViolation(field, "holds no picture; give encoded bytes, raw pixels or a blob_id")
        if source == "blob_id" and not is_blob_id(image.blob_id):
            yield FieldViolation(f"{field}.blob_id", "is no blob id; give 64 lower-case hexadecimal digits")


def _gone_blobs(request: router_pb2.RunRequest, has_blob: Callable[[str], bool]) -> dict[str, str]:
    """Return field -> blob id of every input whose blob isn't there."""
    return {
        f"inputs[{name}].blob_id": request.inputs[name].blob_id
        for name in sorted(request.inputs)
        if is_blob_id(request.inputs[name].blob_id) and not has_blob(request.inputs[name].blob_id)
    }


def _name_faults(steps: list[router_pb2.Step], inputs: Any) -> Iterator[FieldViolation]:
    first: dict[str, int] = {}
    for i, step in enumerate(steps):
        field = f"pipeline.steps[{i}].name"
        if not _NAME.match(step.name):
            yield FieldViolation(field, f"is {step.name!r}; give 1 to 64 letters, digits, - and _")
        elif step.name in first:
            yield FieldViolation(field, f"{step.name!r} is the name of step {first[step.name]} too; give each its own")
        elif step.name in inputs:
            yield FieldViolation(field, f"{step.name!r} is the name of an input too; give each its own")
        first.setdefault(step.name, i)


def _step_faults(index: int, step: router_pb2.Step) -> Iterator[FieldViolation]:
    """Yield what is wrong with one step alone."""
    path = f"pipeline.steps[{index}]"
    name = operation_name(step)
    yield from _output_option_faults(f"{path}.output", step.output)
    if not name:
        yield FieldViolation(path, f"says not what to do; set one of {', '.join(OPERATIONS)}")
        return
    message = message_of(step)
    for field in operation_of(step).needs:
        if not _is_given(message, field):
            yield FieldViolation(f"{path}.{name}.{field}", "is missing, and this step needs it")
    if name == "mask" and not message.masks:
        yield FieldViolation(f"{path}.mask.masks", "is empty; name at least one mask")
    for field, number in _unknown_enums(message, f"{path}.{name}"):
        yield FieldViolation(field, f"{number} is no value of this enum")


def _is_given(message: Message, field: str) -> bool:
    if message.DESCRIPTOR.fields_by_name[field].has_presence:
        return message.HasField(field)
    return bool(getattr(message, field))


def _output_option_faults(field: str, output: images_pb2.OutputOptions) -> Iterator[FieldViolation]:
    """Yield what no server would accept: it would be a pity to find out when the work is done."""
    if output.HasField("format") and output.format not in FORMATS:
        yield FieldViolation(f"{field}.format", f"is {output.format!r}; give one of {', '.join(FORMATS)}")
    if output.HasField("quality") and not 1 <= output.quality <= 100:
        yield FieldViolation(f"{field}.quality", f"is {output.quality}; give 1 to 100")
    if output.HasField("bit_depth") and output.bit_depth not in (8, 16):
        yield FieldViolation(f"{field}.bit_depth", f"is {output.bit_depth}; give 8 or 16")


def _unknown_enums(message: Message, path: str) -> Iterator[tuple[str, int]]:
    """Yield field path and number of every enum value, at any depth, that the contract does not name."""
    for field, value in message.ListFields():
        values = list(value) if field.is_repeated else [value]
        for i, item in enumerate(values):
            item_path = f"{path}.{field.name}[{i}]" if field.is_repeated else f"{path}.{field.name}"
            if field.enum_type is not None and item not in field.enum_type.values_by_number:
                yield item_path, item
            elif field.type == FieldDescriptor.TYPE_MESSAGE:
                yield from _unknown_enums(item, item_path)


def _source_faults(steps: list[router_pb2.Step], inputs: Any) -> Iterator[FieldViolation]:
    """Yield slots that name nothing, or something of the wrong kind."""
    known = {step.name: step for step in reversed(steps) if step.name not in inputs}
    for i, step in enumerate(steps):
        if not operation_name(step):
            continue
        for slot in slots_of(step):
            field = f"pipeline.steps[{i}].{operation_name(step)}.{slot.field}"
            if not slot.name:
                yield FieldViolation(field, "is missing; name an input or a step that gives a mask")
            elif slot.name not in inputs and slot.name not in known:
                there = sorted({*inputs, *known} - {step.name, ""})
                yield FieldViolation(
                    field, f"no input or step is called {slot.name!r}; there are: {_listed(there) or 'none'}"
                )
            elif slot.name in known and operation_name(known[slot.name]) and gives(known[slot.name]) != slot.takes:
                yield FieldViolation(field, _kind_fault(slot, known[slot.name]))


def _kind_fault(slot: Slot, source: router_pb2.Step) -> str:
    fault = f"takes {_KIND_NAMES[slot.takes]}, but step {slot.name!r} gives {_KIND_NAMES[gives(source)]}"
    if slot.takes == MASK:
        return f"{fault}; take a segment or mask step's result, or an input"
    return f"{fault}; take a step that gives a picture, or an input"


def _output_faults(request: router_pb2.RunRequest) -> Iterator[FieldViolation]:
    names = [step.name for step in request.pipeline.steps]
    seen = set()
    for i, name in enumerate(request.pipeline.outputs):
        field = f"pipeline.outputs[{i}]"
        if name not in names:
            yield FieldViolation(field, f"no step is called {name!r}; there are: {_listed(names)}")
        elif name in seen:
            yield FieldViolation(field, f"{name!r} is listed twice; list it once")
        seen.add(name)


def _order(steps: list[router_pb2.Step], inputs: Any) -> tuple[list[str], list[FieldViolation]]:
    """Return the steps' names, each after those it takes from, and a fault for every cycle, up to MAX_CYCLES."""
    index = {step.name: i for i, step in reversed(list(enumerate(steps))) if step.name not in inputs}
    # Dicts for their order: the same request gives the same plan.
    graph = {
        name: dict.fromkeys(
            slot.name for slot in (slots_of(steps[i]) if operation_name(steps[i]) else []) if slot.name in index
        )
        for name, i in sorted(index.items(), key=lambda item: item[1])
    }
    faults: list[FieldViolation] = []
    while len(faults) < MAX_CYCLES:
        try:
            return list(TopologicalSorter(graph).static_order()), faults
        except CycleError as error:
            circle = error.args[1][:-1]  # each is taken by the next, the last by the first
            start = min(range(len(circle)), key=lambda k: index[circle[k]])
            circle = [*circle[start:], *circle[:start], circle[start]]
            taker, source = circle[1], circle[0]
            slot = next(slot for slot in slots_of(steps[index[taker]]) if slot.name == source)
            field = f"pipeline.steps[{index[taker]}].{operation_name(steps[index[taker]])}.{slot.field}"
            faults.append(
                FieldViolation(field, f"closes a cycle: {' -> '.join(circle)}; let one of them take from elsewhere")
            )
            del graph[taker][source]
    return [], faults


def _planned(request: router_pb2.RunRequest, steps: list[router_pb2.Step], order: list[str]) -> Plan:
    slots = {step.name: tuple(slots_of(step)) for step in steps}
    taken = [slot.name for step_slots in slots.values() for slot in step_slots]
    outputs = set(request.pipeline.outputs) or {name for name in order if name not in taken}
    index = {step.name: i for i, step in enumerate(steps)}
    return Plan(
        steps=tuple(
            PlannedStep(
                index=index[name],
                step=steps[index[name]],
                slots=slots[name],
                wanted=request.intermediates or name in outputs,
                taken=taken.count(name),
            )
            for name in order
        ),
        inputs=frozenset(name for name in taken if name in request.inputs),
    )
