"""What is refused before anything runs, with the field and the mend."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from router_fakes import erase, request

from limner.core.errors import BadPipeline, BlobNotFound
from limner.router.pipeline import plan
from limner.v1 import router_pb2

BLOB = "ab" * 32


def mask(name: str, *sources: str, **options: Any) -> dict[str, Any]:
    return {"name": name, "mask": {"masks": list(sources), "options": options}}


def faults(asked: Any, blobs: tuple[str, ...] = ()) -> dict[str, str]:
    """Field -> what is wrong with it."""
    with pytest.raises(BadPipeline) as caught:
        plan(asked, blobs.__contains__)
    return {violation.field: violation.description for violation in caught.value.violations}


@pytest.mark.parametrize(
    ("asked", "field", "says"),
    [
        (request(), "pipeline.steps", "empty"),
        (request(*(erase(f"s{i}") for i in range(65))), "pipeline.steps", "at most 64"),
        (request({"name": "a"}), "pipeline.steps[0]", "set one of inpaint, segment"),
        (request(erase(), outputs=("fill",) * 65), "pipeline.outputs", "at most 64"),
        (request(mask("m", *["hole"] * 65)), "pipeline.steps[0].mask.masks", "at most 64"),
        (request(erase(), inputs={f"i{i}": "x" for i in range(65)}), "inputs", "at most 64"),
        (request(erase("x" * (256 << 10))), "pipeline", "it may take 262144"),
        (request(erase("")), "pipeline.steps[0].name", "letters, digits"),
        (request(erase("a b")), "pipeline.steps[0].name", "letters, digits"),
        (request(erase("a" * 65)), "pipeline.steps[0].name", "1 to 64"),
        (request(erase("a\n")), "pipeline.steps[0].name", "letters, digits"),
        (request(erase("a"), erase("a")), "pipeline.steps[1].name", "step 0"),
        (request(erase("hole")), "pipeline.steps[0].name", "an input too"),
        (request({"name": "a", "inpaint": {}}), "pipeline.steps[0].inpaint.mask", "is missing"),
        (request({"name": "a", "segment": {}}), "pipeline.steps[0].segment.options", "is missing"),
        (request({"name": "a", "generate": {}}), "pipeline.steps[0].generate.prompt", "is missing"),
        (request({"name": "a", "outpaint": {}}), "pipeline.steps[0].outpaint.options", "is missing"),
        (request({"name": "a", "edit": {}}, inputs={}), "pipeline.steps[0].edit.image", "there are: none"),
        (request(mask("a")), "pipeline.steps[0].mask.masks", "at least one"),
        (request(mask("a", "hole", "")), "pipeline.steps[0].mask.masks[1]", "is missing"),
        (request(mask("a", "hole", "gone")), "pipeline.steps[0].mask.masks[1]", "there are: hole, source"),
        (
            request({"name": "a", "upscale": {}}, inputs={"photo": "x"}),
            "pipeline.steps[0].upscale.image",
            "no input or step is called 'source'; there are: photo",
        ),
        (
            request(mask("m", "hole"), {"name": "a", "upscale": {"image": "m"}}),
            "pipeline.steps[1].upscale.image",
            "takes a picture, but step 'm' gives a mask",
        ),
        (
            request(erase("a"), {"name": "b", "inpaint": {"mask": "a"}}),
            "pipeline.steps[1].inpaint.mask",
            "takes a mask, but step 'a' gives a picture; take a segment or mask step",
        ),
        (
            request({"name": "a", "generate": {"prompt": "an apple"}}, {"name": "b", "edit": {"mask": "a"}}),
            "pipeline.steps[1].edit.mask",
            "takes a mask, but step 'a' gives a picture",
        ),
        (
            request({"name": "cut", "removeBackground": {}}, mask("m", "cut")),
            "pipeline.steps[1].mask.masks[0]",
            "takes a mask, but step 'cut' gives a picture",
        ),
        (request(mask("m", "m")), "pipeline.steps[0].mask.masks[0]", "m -> m"),
        (
            request(mask("a", "c"), mask("b", "hole", "a"), mask("c", "b")),
            "pipeline.steps[1].mask.masks[1]",
            "a -> b -> c -> a",
        ),
        (request(erase(), outputs=("gone",)), "pipeline.outputs[0]", "no step is called 'gone'"),
        (request(erase(), outputs=("source",)), "pipeline.outputs[0]", "no step is called 'source'"),
        (request(erase(), outputs=("fill", "fill")), "pipeline.outputs[1]", "twice"),
        (request(erase(strategy=77)), "pipeline.steps[0].inpaint.options.strategy", "77 is no value"),
        (
            request({"name": "a", "segment": {"options": {"clicks": [{}, {"label": 9}]}}}),
            "pipeline.steps[0].segment.options.clicks[1].label",
            "9 is no value",
        ),
        (request({**erase(), "output": {"format": "gif"}}), "pipeline.steps[0].output.format", "raw, png"),
        (request({**erase(), "output": {"quality": 101}}), "pipeline.steps[0].output.quality", "1 to 100"),
        (request({**erase(), "output": {"bitDepth": 12}}), "pipeline.steps[0].output.bit_depth", "8 or 16"),
        (request(erase(), inputs={"source": "", "hole": "x"}), "inputs[source]", "holds no picture"),
        (request(erase(), inputs={"source": "x", "hole": "x", "a/b": "x"}), "inputs[a/b]", "is no name"),
    ],
)
def test_a_fault_is_told_with_its_field_and_the_mend(asked: Any, field: str, says: str) -> None:
    found = faults(asked)
    assert says in found[field]
    assert len(found) == 1


def test_all_faults_are_told_at_once() -> None:
    asked = request(
        mask("a", "b"),
        mask("b", "a", "gone"),
        {"name": "c"},
        {"name": "c", "upscale": {"image": "a"}},
        outputs=("nowhere",),
    )
    asked.inputs["old"].blob_id = BLOB
    asked.inputs["path"].blob_id = "../../etc/passwd"
    assert set(faults(asked)) == {
        "pipeline.steps[1].mask.masks[0]",
        "pipeline.steps[1].mask.masks[1]",
        "pipeline.steps[2]",
        "pipeline.steps[3].name",
        "pipeline.steps[3].upscale.image",
        "pipeline.outputs[0]",
        "inputs[old].blob_id",
        "inputs[path].blob_id",
    }


def test_checking_takes_no_time_even_if_everything_is_wrong() -> None:
    names = [f"{i}" + "x" * 3000 for i in range(64)]
    for asked in (
        request(*(mask(name, *["gone"] * 64) for name in names)),
        request(*(mask(f"s{i}", *(f"s{j}" for j in range(64))) for i in range(64))),
        request({"name": "a", "segment": {"options": {"clicks": [{"label": 9}] * 10_000}}}),
    ):
        began = time.process_time()
        assert len(faults(asked)) >= 32
        assert time.process_time() - began < 0.5


def test_two_cycles_are_two_faults() -> None:
    found = faults(request(mask("a", "b"), mask("b", "a"), mask("c", "d"), mask("d", "c")))
    assert sorted(says.split(";")[0] for says in found.values()) == [
        "closes a cycle: a -> b -> a",
        "closes a cycle: c -> d -> c",
    ]


def test_blobs_that_are_gone_are_the_only_fault_that_uploading_mends() -> None:
    asked = request(erase())
    asked.inputs["source"].blob_id = BLOB
    with pytest.raises(BlobNotFound) as caught:
        plan(asked, lambda blob_id: False)
    assert caught.value.metadata == {"blob_id": BLOB, "fields": "inputs[source].blob_id"}
    assert plan(asked, {BLOB}.__contains__).names == ["fill"]


def test_an_input_may_be_picture_and_mask_and_need_not_be_used() -> None:
    checked = plan(request({"name": "a", "inpaint": {"mask": "source"}}), lambda blob_id: False)
    assert checked.inputs == {"source"}


def test_a_background_taken_away_as_a_mask_is_a_mask() -> None:
    background = {"name": "subject", "removeBackground": {"options": {"result": "BACKGROUND_OUTPUT_MASK"}}}
    checked = plan(request(background, {"name": "fill", "inpaint": {"mask": "subject"}}), lambda blob_id: False)
    assert checked.names == ["subject", "fill"]


def test_a_pipeline_may_need_no_inputs() -> None:
    steps = ({"name": "big", "upscale": {"image": "apple"}}, {"name": "apple", "generate": {"prompt": "an apple"}})
    checked = plan(request(*steps, inputs={}), lambda blob_id: False)
    assert checked.names == ["apple", "big"]
    assert not checked.inputs


def test_an_edit_takes_a_mask_or_none() -> None:
    steps = ({"name": "all", "edit": {}}, {"name": "part", "edit": {"image": "all", "mask": "hole"}})
    checked = plan(request(*steps), lambda blob_id: False)
    assert [[slot.name for slot in step.slots] for step in checked.steps] == [["source"], ["all", "hole"]]


def test_results_that_no_step_takes_are_the_outputs_unless_others_are_named() -> None:
    steps = (mask("m", "hole"), {"name": "fill", "inpaint": {"mask": "m"}}, erase("other"))

    def wanted(asked: Any) -> set[str]:
        return {step.name for step in plan(asked, lambda blob_id: False).steps if step.wanted}

    assert wanted(request(*steps)) == {"fill", "other"}
    assert wanted(request(*steps, outputs=("m",))) == {"m"}
    assert wanted(request(*steps, outputs=("m",), intermediates=True)) == {"m", "fill", "other"}


async def test_a_bad_pipeline_reaches_no_server_and_is_refused_before_headers(router: Any, fake: Any) -> None:
    events, error = await router.fail(request(erase(strategy=77), erase()))
    assert not events
    assert isinstance(error, BadPipeline)
    assert {violation.field for violation in error.violations} == {
        "pipeline.steps[0].inpaint.options.strategy",
        "pipeline.steps[1].name",
    }
    assert not fake.calls


def examples() -> list[str]:
    """The pipelines in the documentation."""
    text = (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text(encoding="utf-8")
    return re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("example", examples())
def test_the_documented_pipelines_can_run(example: str) -> None:
    asked = router_pb2.RunRequest()
    json_format.ParseDict(yaml.safe_load(example), asked.pipeline)
    for name in ("source", "damaged", "keep"):
        asked.inputs[name].encoded = b"picture"
    assert plan(asked, lambda blob_id: False).names
