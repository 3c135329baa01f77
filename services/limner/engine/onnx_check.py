"""Whether an ONNX file may be opened: it reads no file outside its folder and needs no code from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from limner.core.errors import BadArgument

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operator sets that the engines implement themselves. Any other would need a library loaded into the process."""


def check_onnx(model: Path | bytes) -> None:
    """Raise BadArgument if `model` is no ONNX network, has operators of another domain than `DOMAINS` or its own
    functions, or keeps tensors outside its folder (for bytes: outside itself); MemoryError if it is too large."""
    name = model.name if isinstance(model, Path) else "the network"
    try:
        proto = onnx.load_from_string(model.read_bytes() if isinstance(model, Path) else model)
    except DecodeError as error:
        if "alloc failed" in str(error):  # how protobuf says that there was no memory for it
            raise MemoryError(f"no memory to read {name}") from error
        raise BadArgument(f"{name} is no ONNX file, or a damaged one", field="model") from error
    if not proto.graph.node:
        raise BadArgument(f"{name} is no ONNX file: it has no operators", field="model")
    roots = [node for function in proto.functions for node in function.node]
    graphs = [proto.graph, *_inner_graphs(proto.graph.node), *_inner_graphs(roots)]
    nodes = [*roots, *(node for graph in graphs for node in graph.node)]
    functions = {function.domain for function in proto.functions}
    if foreign := {node.domain for node in nodes} - DOMAINS - functions:
        raise BadArgument(
            f"{name} needs custom operators ({', '.join(sorted(foreign))}): export it with standard ones", field="model"
        )
    folder = model.parent.resolve() if isinstance(model, Path) else None
    for location in {place for tensor in _tensors(graphs, nodes) for place in _external(tensor)}:
        if folder is None or not (folder / location).resolve().is_relative_to(folder):
            raise BadArgument(
                f"{name} keeps tensors outside its folder ({location}): export it into one folder", field="model"
            )


def _inner_graphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """Yield the graphs of branches and loops, and theirs."""
    for node in nodes:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield inner
                yield from _inner_graphs(inner.node)


def _tensors(graphs: Iterable[onnx.GraphProto], nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def _external(tensor: onnx.TensorProto) -> Iterator[str]:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        yield from (entry.value for entry in tensor.external_data if entry.key == "location")
