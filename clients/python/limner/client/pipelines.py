"""Pipelines written down as YAML: the JSON form of `limner.v1.Pipeline`, read with the faults named by their place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format

from limner.v1 import router_pb2


class BadPipelineFile(ValueError):
    """The file is no YAML, or not the YAML of a pipeline; the message says where and how to mend it."""


def load_pipeline(path: str | os.PathLike[str]) -> router_pb2.Pipeline:
    """Reads a pipeline's file. Raises OSError or BadPipelineFile."""
    return parse_pipeline(Path(path).read_text(encoding="utf-8"), str(path))


def parse_pipeline(text: str, name: str = "pipeline") -> router_pb2.Pipeline:
    """Reads a pipeline's text; `name` is what error messages call it."""
    try:
        document = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise BadPipelineFile(f"{name} is not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise BadPipelineFile(f"{name} must be a mapping with `steps`, as in examples/erase.yaml")
    try:
        pipeline = json_format.ParseDict(_with_empty_operations(document), router_pb2.Pipeline())
    except json_format.ParseError as error:
        raise BadPipelineFile(f"{name}: {_readable(error)}") from None
    if not pipeline.steps:
        raise BadPipelineFile(f"{name} has no steps; give at least one under `steps`")
    return pipeline


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML's own would drop the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _with_empty_operations(document: dict[str, Any]) -> dict[str, Any]:
    """`convert:` with nothing after it means an operation without options, which JSON would write as `{}`."""
    steps = document.get("steps")
    if not isinstance(steps, list):
        return document
    filled = [
        {key: {} if value is None and key != "name" else value for key, value in step.items()}
        if isinstance(step, dict)
        else step
        for step in steps
    ]
    return {**document, "steps": filled}


def _readable(error: json_format.ParseError) -> str:
    """Protobuf's message without the repetition of nested fields: what, and at which path."""
    lines = str(error).splitlines()
    return " ".join(line.strip() for line in lines)
