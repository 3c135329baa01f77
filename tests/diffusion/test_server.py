"""The diffusion server as a process, with tiny pipelines of all three families: what `limner up` runs."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from PIL import Image

from limner.client.local import LocalServers
from limner.v1 import diffusion_pb2 as pb
from limner.v1 import diffusion_pb2_grpc, images_pb2, models_pb2, models_pb2_grpc

MANY = 1000  # steps: more than any of these tests waits for


@pytest.fixture(scope="module")
def address(tiny_sd3: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from limner.diffusion.tiny import write_sd1_inpaint, write_sdxl_inpaint

    folder = tmp_path_factory.mktemp("server")
    write_lora(folder / "loras" / "ink.safetensors")
    sources = {
        "tiny": tiny_sd3,
        "old": write_sd1_inpaint(folder / "sd1"),
        "old-xl": write_sdxl_inpaint(folder / "sdxl"),
    }
    environment = {
        "LIMNER_DIFFUSION_SOURCES": ",".join(f"{name}={path}" for name, path in sources.items()),
        "LIMNER_DIFFUSION_DEFAULT_MODEL": "tiny",
        "LIMNER_DIFFUSION_MODEL_DIR": str(folder),
        "LIMNER_DIFFUSION_HUB_CACHE": str(folder / "hub"),
        "LIMNER_DIFFUSION_PRECISION": "fp32",
        "LIMNER_DIFFUSION_THREAD_COUNT": "1",
    }
    with LocalServers(services=("diffusion",), environment=environment, log_dir=folder / "logs") as servers:
        yield servers.address("diffusion")
        assert not servers.dead()


@pytest.fixture(scope="module")
def stub(address: str) -> Iterator[diffusion_pb2_grpc.DiffusionServiceStub]:
    with grpc.insecure_channel(address) as channel:
        yield diffusion_pb2_grpc.DiffusionServiceStub(channel)


@pytest.fixture(scope="module")
def models(address: str) -> Iterator[models_pb2_grpc.ModelServiceStub]:
    with grpc.insecure_channel(address) as channel:
        yield models_pb2_grpc.ModelServiceStub(channel)


def write_lora(path: Path) -> None:
    """Write a LoRA of the tiny pipeline's transformer, strong enough to be seen."""
    import torch
    from safetensors.torch import save_file

    path.parent.mkdir()
    random = torch.Generator().manual_seed(5)
    tensors = {}
    for block in range(4):
        for name in ("to_q", "to_k", "to_v"):
            key = f"transformer.transformer_blocks.{block}.attn.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(4, 64, generator=random)
            tensors[f"{key}.lora_B.weight"] = torch.randn(64, 4, generator=random)
    save_file(tensors, path)


def png(pixels: np.ndarray) -> images_pb2.Image:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return images_pb2.Image(encoded=buffer.getvalue())


def read(image: images_pb2.Image) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image.encoded)))


def photograph(height: int = 60, width: int = 80) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([120 + 80 * np.sin(x / 7), 120 + 80 * np.cos(y / 5), x * 255 / width], axis=2).astype(np.uint8)


def mask(height: int = 60, width: int = 80) -> np.ndarray:
    pixels = np.zeros((height, width), np.uint8)
    pixels[20:40, 30:55] = 255
    return pixels


def options(**asked: Any) -> pb.GenerateOptions:
    return pb.GenerateOptions(**{"step_count": 3, "seed": 1, "width_px": 64, "height_px": 64} | asked)


def generate(prompt: str = "a red apple", **asked: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(prompt=prompt, options=options(**asked))


def ask(stub: diffusion_pb2_grpc.DiffusionServiceStub, request: Any, **call: Any) -> dict[str, list[Any]]:
    """Return the events of a call, by name."""
    method = {pb.GenerateRequest: stub.Generate, pb.EditRequest: stub.Edit, pb.OutpaintRequest: stub.Outpaint}
    events: dict[str, list[Any]] = {}
    for response in method[type(request)](request, timeout=100, **call):
        name = str(response.WhichOneof("event"))
        events.setdefault(name, []).append(getattr(response, name))
    return events


def made(events: dict[str, list[Any]]) -> list[np.ndarray]:
    (result,) = events["result"]
    return [read(image) for image in (result.image, *result.more_images)]


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.abs(one.astype(int) - other).max() <= 1


def refused(call: Any) -> tuple[str, str, list[str]]:
    """Return reason, message and violated fields of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    status = rpc_status.from_call(caught.value)
    assert status is not None, caught.value
    info, fields = error_details_pb2.ErrorInfo(), []
    for detail in status.details:
        detail.Unpack(info)
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            fields = [violation.field for violation in bad.field_violations]
    return info.reason, status.message, fields


def test_the_server_begins_without_torch():
    program = "import sys, limner.diffusion.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_server_without_its_packages_says_what_to_install():
    program = (
        "import sys, limner.diffusion.__main__ as server; server.NEEDED += ('nothing_of_this_name',); "
        "sys.argv = ['it', '--port', '0']; server.main()"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "no nothing_of_this_name is installed: pip install 'limner[diffusion]'" in ended.stderr


def test_the_same_seed_makes_the_same_picture_and_image_i_has_seed_plus_i(stub):
    events = ask(stub, generate(image_count=3, seed=7))
    pictures = made(events)
    assert len(pictures) == 3
    assert not same(pictures[0], pictures[1])
    (alone,) = made(ask(stub, generate(seed=9)))
    assert same(pictures[2], alone)
    (finished,) = events["finished"]
    assert (finished.model, finished.seed) == ("tiny", 7)
    assert len(finished.model_digest) == 64
    assert finished.parameters["sampler"] in ("euler", "dpmpp-2m")
    assert [timing.stage for timing in finished.timings][-1] == "encode"
    assert events["started"][0].placement.precision == "fp32"


def test_what_is_asked_for_changes_the_picture(stub):
    usual = made(ask(stub, generate(guidance_scale=4)))[0]
    for change in (
        {"prompt": "a blue house", "guidance_scale": 4},
        {"negative_prompt": "the sky", "guidance_scale": 4},
        {"guidance_scale": 1},
        {"step_count": 5, "guidance_scale": 4},
        {"sampler": "heun", "guidance_scale": 4},
        {"schedule_shift": 1, "guidance_scale": 4},
        {"skip_layer_guidance": pb.SkipLayerGuidance(layers=[1, 2], stop=1), "guidance_scale": 4},
        {"step_count": 8, "step_cache": pb.StepCache(), "guidance_scale": 4},
        {"loras": [pb.Lora(name="ink", scale=2)], "guidance_scale": 4},
    ):
        other = made(ask(stub, generate(**change)))[0]
        assert np.abs(usual.astype(int) - other).max() > 1, change


def test_previews_come_in_order_for_each_picture(stub):
    request = pb.GenerateRequest(
        prompt="a tree", options=options(step_count=12, image_count=2, preview_interval=2), previews=True
    )
    previews = ask(stub, request)["preview"]
    for index in (0, 1):
        steps = [preview.step for preview in previews if preview.image_index == index]
        assert steps
        assert steps == sorted(set(steps))
        assert all(1 <= step <= 12 for step in steps)
    assert min(read(previews[0].image).shape[:2]) >= 8


@pytest.mark.parametrize("model", ["tiny", "old", "old-xl"])
def test_an_edit_changes_what_is_masked_and_nothing_else(stub, model):
    picture, hole = photograph(), mask()
    sampler = {"tiny": "euler"}.get(model, "DPM++ 2M Karras")
    asked = pb.GenerateOptions(model=model, step_count=3, seed=1, sampler=sampler)
    request = pb.EditRequest(
        image=png(picture), mask=png(hole), prompt="a cat", options=pb.EditOptions(generate=asked), previews=True
    )
    events = ask(stub, request)
    (edited,) = made(events)
    assert (edited[hole == 0] == picture[hole == 0]).all()
    assert np.abs(edited[hole > 0].astype(int) - picture[hole > 0]).mean() > 5
    assert events["preview"]
    assert events["finished"][0].model == model
    assert same(made(ask(stub, request))[0], edited)


def test_a_variation_is_the_nearer_to_the_picture_the_less_strength(stub):
    picture = photograph(64, 64)

    def away(strength: float) -> float:
        asked = pb.EditOptions(generate=options(step_count=10, guidance_scale=1), strength=strength)
        (edited,) = made(ask(stub, pb.EditRequest(image=png(picture), options=asked)))
        return float(np.abs(edited.astype(int) - reconstructed).mean())

    asked = pb.EditOptions(generate=options(step_count=10, guidance_scale=1), strength=0.1)
    (reconstructed,) = made(ask(stub, pb.EditRequest(image=png(picture), options=asked)))
    assert away(0.1) < 1
    assert 1 < away(0.3) < away(1.0)


def test_a_picture_is_extended_on_all_sides(stub):
    picture = photograph()
    asked = pb.OutpaintOptions(
        generate=pb.GenerateOptions(step_count=3, image_count=2),
        left_px=20,
        top_px=10,
        right_px=30,
        bottom_px=15,
        feather_px=5,
    )
    extended = made(ask(stub, pb.OutpaintRequest(image=png(picture), prompt="the sea", options=asked)))
    assert [each.shape for each in extended] == [(85, 130, 3)] * 2
    for each in extended:
        assert (each[15:65, 25:95] == picture[5:55, 5:75]).all()
    assert not same(*extended)


def test_calls_at_the_same_time_get_what_each_gets_alone(stub):
    picture, hole = png(photograph()), png(mask())
    requests = [
        generate(step_count=4, guidance_scale=1),
        generate("a blue sky", step_count=10, guidance_scale=5, seed=2),
        generate("a dog", step_count=7, sampler="heun", seed=3, loras=[pb.Lora(name="ink")]),
        generate("a dog", step_count=9, seed=4, width_px=96, step_cache=pb.StepCache()),
        generate(step_count=6, sampler="dpmpp-2m", skip_layer_guidance=pb.SkipLayerGuidance(layers=[1], stop=1)),
        pb.EditRequest(image=picture, mask=hole, options=pb.EditOptions(generate=options(step_count=5))),
        pb.EditRequest(image=picture, options=pb.EditOptions(generate=options(step_count=5))),
        pb.EditRequest(
            image=picture,
            mask=hole,
            options=pb.EditOptions(generate=pb.GenerateOptions(model="old", step_count=4, seed=1)),
        ),
        pb.OutpaintRequest(image=picture, options=pb.OutpaintOptions(generate=options(step_count=5), top_px=32)),
    ]
    alone = [made(ask(stub, request))[0] for request in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        together = [made(events)[0] for events in pool.map(lambda request: ask(stub, request), requests)]
    assert [same(*pair) for pair in zip(alone, together, strict=True)] == [True] * len(requests)


def is_soon_free(models: models_pb2_grpc.ModelServiceStub) -> bool:
    """Say whether the device ends what it does: unloading has its turn to itself."""
    began = time.monotonic()
    list(models.UnloadModel(models_pb2.UnloadModelRequest(name="old"), timeout=60))
    return time.monotonic() - began < 30


def test_a_cancelled_call_ends_at_once_and_disturbs_nobody(stub, models):
    usual = made(ask(stub, generate(step_count=30)))[0]
    beside: list[np.ndarray] = []
    other = threading.Thread(target=lambda: beside.extend(made(ask(stub, generate(step_count=30)))))
    call = stub.Generate(generate(step_count=MANY, image_count=15, width_px=256, height_px=256))
    for response in call:
        if response.WhichOneof("event") == "progress" and response.progress.stage == "denoise":
            if response.progress.step == 1:
                other.start()
            if response.progress.step >= 2:
                break
    call.cancel()
    assert is_soon_free(models)
    other.join(60)
    assert same(beside[0], usual)


def test_a_deadline_ends_a_call_in_the_middle(stub, models):
    request = generate(step_count=MANY, image_count=15, width_px=256, height_px=256)
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(request, timeout=1.5))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert is_soon_free(models)
    assert made(ask(stub, generate()))


def test_what_a_model_finds_wrong_is_told_by_name(stub):
    reason, message, fields = refused(stub.Generate(generate("apple " * 300)))
    assert (reason, fields) == ("BAD_ARGUMENT", ["prompt"])
    assert "256" in message
    assert made(ask(stub, generate("apple " * 300, truncate_prompt=True)))
    reason, _, _ = refused(stub.Generate(generate(loras=[pb.Lora(name="oil")])))
    assert reason == "UNKNOWN_MODEL"
    reason, message, _ = refused(stub.Generate(generate(model="sd3.5-large", width_px=1024, height_px=1024)))
    assert reason == "MODEL_NOT_INSTALLED"
    assert "limner models pull sd3.5-large" in message
    reason, message, _ = refused(stub.Generate(generate(model="old")))
    assert reason == "UNKNOWN_MODEL"


def test_models_and_loras_are_listed_loaded_and_unloaded(stub, models):
    ask(stub, generate(loras=[pb.Lora(name="ink")]))
    listed = {model.name: model for model in models.ListModels(models_pb2.ListModelsRequest()).models}
    assert {"tiny", "old", "old-xl", "sd3.5-medium", "ink"} <= listed.keys()
    assert (listed["tiny"].state, listed["ink"].state) == (models_pb2.MODEL_STATE_LOADED,) * 2
    assert listed["tiny"].default
    assert listed["sd3.5-medium"].state == models_pb2.MODEL_STATE_NOT_INSTALLED
    (lora,) = models.ListModels(models_pb2.ListModelsRequest(task="lora")).models
    assert lora.name == "ink"
    for name in ("ink", "tiny"):
        list(models.UnloadModel(models_pb2.UnloadModelRequest(name=name)))
        state = models.GetModel(models_pb2.GetModelRequest(name=name)).model.state
        assert state == models_pb2.MODEL_STATE_INSTALLED
    list(models.LoadModel(models_pb2.LoadModelRequest(name="tiny")))
    assert models.GetModel(models_pb2.GetModelRequest(name="tiny")).model.state == models_pb2.MODEL_STATE_LOADED


def test_what_a_picture_was_made_from_makes_it_again(stub):
    (first,) = made(events := ask(stub, generate(step_count=4, guidance_scale=3.5, loras=[pb.Lora(name="ink")])))
    told = events["finished"][0].parameters
    again = pb.GenerateOptions(
        model=events["finished"][0].model,
        seed=events["finished"][0].seed,
        width_px=int(told["width_px"]),
        height_px=int(told["height_px"]),
        step_count=int(told["step_count"]),
        guidance_scale=float(told["guidance_scale"]),
        sampler=told["sampler"],
        schedule_shift=float(told["schedule_shift"]),
        text_length=int(told["text_length"]),
        loras=[pb.Lora(**lora) for lora in json.loads(told["loras"])],
    )
    (second,) = made(ask(stub, pb.GenerateRequest(prompt=told["prompt"], options=again)))
    assert same(first, second)
