"""Pipelines as YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner.client.pipelines import BadPipelineFile, load_pipeline, parse_pipeline
from limner.v1 import inpaint_pb2

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_examples_are_pipelines(path):
    assert load_pipeline(path).steps


def test_names_of_fields_and_enum_values_are_the_contracts():
    pipeline = parse_pipeline("""
        steps:
          - name: fill
            inpaint:
              mask: mask
              options: {strategy: INPAINT_STRATEGY_CROP, crop_margin_px: 64, seed: 18446744073709551615}
            output: {format: jpeg, quality: 90}
        outputs: [fill]
        """)
    options = pipeline.steps[0].inpaint.options
    assert (options.strategy, options.crop_margin_px) == (inpaint_pb2.INPAINT_STRATEGY_CROP, 64)
    assert options.seed == 2**64 - 1


def test_an_operation_without_options_needs_no_braces():
    pipeline = parse_pipeline("steps: [{name: cut, remove_background: }]")
    assert pipeline.steps[0].WhichOneof("operation") == "remove_background"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: [", "not valid YAML"),
        ("steps: [{name: a, convert: {}, name: b}]", "'name' is given twice"),
        ("- a", "must be a mapping with `steps`"),
        ("steps: []", "has no steps"),
        ("steps: [{name: a, inpant: {}}]", r'no field named "inpant" at "Pipeline\.steps\[0\]'),
        ("steps: [{name: a, upscale: {options: {scale: wide}}}]", r"scale"),
        ("steps: [{name: a, inpaint: {mask: m, options: {strategy: WHOLE}}}]", r"strategy.*WHOLE|WHOLE.*strategy"),
    ],
)
def test_faults_are_told_with_their_place(text, said):
    with pytest.raises(BadPipelineFile, match=said) as caught:
        parse_pipeline(text, "my.yaml")
    assert "my.yaml" in str(caught.value)
