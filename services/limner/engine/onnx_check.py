"""Whether an ONNX file may be opened: it reads no file outside its folder and needs no code from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from limner.core.errors import BadArgument

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operator sets that the engines implement themselves. Any other would need a library loaded into the process."""


def check_onnx(model: Path | bytes) -> None:
    """Raise BadArgument if `model` is no ONNX network, has operators of another domain than `DOMAINS` or its own
    functions, or keeps tensors outside its folder (for bytes: outside itself)."""
    name = model.name if isinstance(model, Path) else "the network"
    try:
        proto = onnx.load_from_string(model.read_bytes() if isinstance(model, Path) else model)
    except DecodeError as error:
        raise BadArgument(f"{name} is no ONNX file, or a damaged one", field="model") from error
    if not proto.graph.node:
        raise BadArgument(f"{name} is no ONNX file: it has no operators", field="model")
    graphs = list(_graphs(proto.graph))
    functions = {function.domain for function in proto.functions}
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [node for function in proto.functions for node in function.node]
    if foreign := {node.domain for node in nodes} - DOMAINS - functions:
        raise BadArgument(
            f"{name} needs custom operators ({', '.join(sorted(foreign))}): export it with standard ones", field="model"
        )
    folder = model.parent.resolve() if isinstance(model, Path) else None
    for location in {place for graph in graphs for tensor in _tensors(graph) for place in _external(tensor)}:
        if folder is None or not (folder / location).resolve().is_relative_to(folder):
            raise BadArgument(
                f"{name} keeps tensors outside its folder ({location}): export it into one folder", field="model"
            )


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph and those of its branches and loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (
                attribute.t,
                *attribute.tensors,
                attribute.sparse_tensor.values,
                attribute.sparse_tensor.indices,
            )


def _external(tensor: onnx.TensorProto) -> Iterator[str]:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        yield from (entry.value for entry in tensor.external_data if entry.key == "location")
