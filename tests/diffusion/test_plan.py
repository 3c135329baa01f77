from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from limner.core.errors import BadArgument, OutOfMemory
from limner.diffusion import hardware as hardware_file
from limner.diffusion.hardware import Hardware, hardware
from limner.diffusion.plan import Plan, plan
from limner.diffusion.shape import Part, Shape
from limner.engine import memory
from limner.engine.machine import Machine

GIB = 1 << 30
CLIP = (Part(123_650_304, 85_524_480), Part(694_659_840, 630_784_000))
T5 = Part(4_762_310_656, 4_630_511_616, 192_948_224)
VAE = Part(83_819_683)
LARGE = Shape("sd3.5-large", "sd3", Part(8_146_280_768, 8_014_315_520, 212_999_680), CLIP, T5, VAE, width=2432)
MEDIUM = Shape("sd3.5-medium", "sd3", Part(2_469_663_936, 2_222_456_832, 101_506_944), CLIP, T5, VAE, width=1536)
SDXL = Shape("sdxl-inpaint", "sdxl", Part(2_567_478_084, 2_232_647_680), CLIP, None, VAE, width=320)
SD1 = Shape("sd1.5-inpaint", "sd1", Part(859_535_364, 270_049_280), CLIP[:1], None, VAE, width=320)


def cuda(gib: float, main_memory: float = 64) -> Hardware:
    return Hardware(
        "cuda:0",
        round(gib * GIB),
        round(main_memory * GIB),
        bf16="the device multiplies it",
        cpu_bf16="the CPU has AMX",
    )


def cpu(gib: float, bf16: str = "") -> Hardware:
    doubt = "" if bf16 else "the CPU has neither AMX nor AVX512-BF16"
    return Hardware("cpu", round(gib * GIB), round(gib * GIB), bf16=bf16, cpu_bf16=bf16, doubt=doubt)


def chosen(made: Plan) -> str:
    """A plan in short: dtype, denoiser's weights, T5's, where the text encoders are, and the rest."""
    words = [made.dtype, made.quantisation, made.t5_quantisation, made.text_encoders]
    words += ["by blocks"] if made.group_offload else []
    words += ["tiles"] if made.vae_tiling else []
    return " ".join(words)


@pytest.mark.parametrize(
    ("shape", "there", "expected"),
    [
        (LARGE, cuda(80), "bf16 none none device"),
        (LARGE, cuda(28), "bf16 none none device tiles"),
        (LARGE, cuda(24), "bf16 none int8 device tiles"),
        (LARGE, cuda(18), "bf16 none none cpu tiles"),
        (LARGE, cuda(16), "bf16 int8 int8 device tiles"),
        (LARGE, cuda(12), "bf16 int8 none cpu"),
        (LARGE, cuda(12, main_memory=8), "bf16 int8 int8 cpu"),
        (LARGE, cuda(8), "bf16 nf4 none cpu"),
        (LARGE, cuda(5), "bf16 none none cpu by blocks"),
        (LARGE, cuda(5, main_memory=20), "bf16 int8 none cpu by blocks"),
        (MEDIUM, cuda(24), "bf16 none none device"),
        (MEDIUM, cuda(16), "bf16 none none offload"),
        (MEDIUM, cuda(8), "bf16 none none cpu"),
        (MEDIUM, cuda(6), "bf16 int8 none cpu"),
        (MEDIUM, cpu(64, "the CPU has AMX"), "bf16 none none device"),
        (MEDIUM, cpu(64), "fp32 none none device"),
        (MEDIUM, cpu(14, "the CPU has AMX"), "bf16 none int8 device"),
        (LARGE, cpu(12, "the CPU has AMX"), "bf16 nf4 nf4 device"),
        (MEDIUM, Hardware("mps", 32 * GIB, 32 * GIB), "fp16 none none device"),
        (SDXL, cuda(12), "fp16 none none device"),
        (SDXL, cuda(8), "fp16 int8 none device tiles"),
        (SD1, cuda(6), "fp16 none none device"),
    ],
    ids=lambda value: "" if isinstance(value, str) else getattr(value, "name", None),
)
def test_what_is_given_up_follows_the_memory(shape, there, expected):
    pixels = 512 * 512 if shape is SD1 else 1024 * 1024
    made = plan(shape, there, pixels=pixels)
    assert chosen(made) == expected
    assert made.needed_bytes <= there.free_bytes
    assert made.cpu_needed_bytes <= there.cpu_free_bytes
    assert made.needed_bytes == sum(made.parts.values())


def test_more_memory_never_makes_a_plan_less_exact():
    order = ["none", "int8", "nf4"]
    made = [plan(LARGE, cuda(gib)) for gib in range(4, 40)]
    offloaded = [each.group_offload for each in made]
    assert offloaded == sorted(offloaded, reverse=True)
    kept = [order.index(each.quantisation) for each in made if not each.group_offload]
    assert kept == sorted(kept, reverse=True)


def test_weights_are_counted_exactly():
    made = plan(LARGE, cuda(80))
    assert made.parts["denoiser"] == 2 * LARGE.denoiser.values
    assert made.parts["text encoders"] == 2 * (CLIP[0].values + CLIP[1].values + T5.values)
    assert made.parts["vae"] == 2 * VAE.values
    int8 = plan(LARGE, cuda(80), quantisation="int8")
    assert int8.parts["denoiser"] == 2 * LARGE.denoiser.values - LARGE.denoiser.linear
    assert int8.t5_quantisation == "none"  # T5 isn't what was asked for


def test_what_is_computed_grows_with_pixels_and_rows():
    small, large, many = (
        plan(MEDIUM, cuda(80), pixels=pixels, rows=rows).parts
        for pixels, rows in ((512 * 512, 2), (1024 * 1024, 2), (1024 * 1024, 8))
    )
    assert 2.5 < large["step"] / small["step"] < 4  # the text's tokens stay
    assert many["step"] == 4 * large["step"]
    assert large["text and VAE at work"] == 4 * small["text and VAE at work"]


def test_the_reason_tells_what_was_given_up_and_for_what():
    reason = plan(LARGE, cuda(12)).placement.reason
    assert "int8 weights, text encoders on the CPU" in reason
    assert "11.3 GiB instead of 29.1 GiB: 12.0 GiB are to be had" in reason
    assert plan(LARGE, cuda(80)).placement.reason == "bf16, as the device multiplies it; about 29.1 GiB"
    assert plan(MEDIUM, cpu(64)).placement.reason.startswith("fp32, as the CPU has neither AMX nor AVX512-BF16; about")
    asked = plan(LARGE, cuda(80), quantisation="nf4", precision="fp32").placement.reason
    assert asked.startswith("fp32, as was asked for; nf4 weights, as was asked for; about")


def test_what_is_asked_for_is_kept_to():
    made = plan(LARGE, replace(cuda(80), fp8=True), quantisation="fp8", text_encoders="cpu", t5=False)
    assert (chosen(made), made.t5, made.text_dtype) == ("bf16 fp8 none cpu", False, "bf16")
    without_units = replace(cuda(80), cpu_bf16="")
    assert plan(LARGE, without_units, text_encoders="cpu").text_dtype == "fp32"
    assert plan(LARGE, cuda(80), precision="fp16").dtype == "fp16"
    assert plan(SDXL, cuda(80)).vae_dtype == "fp32"
    assert plan(SDXL, cuda(80), precision="bf16").vae_dtype == "bf16"
    assert plan(SDXL, cuda(80), text_encoders="cpu").text_encoders == "device"  # small, and not ours to move


def test_what_fits_nowhere_is_refused_with_the_figures_of_the_smallest_plan():
    with pytest.raises(OutOfMemory) as raised:
        plan(LARGE, cpu(8, "the CPU has AMX"))
    error = raised.value
    assert int(error.metadata["free_bytes"]) == 8 * GIB < int(error.metadata["needed_bytes"]) < 12 * GIB
    assert "at least (denoiser 4" in error.message
    assert "8192 MiB are to be had" in error.message
    assert "set t5 = false" in error.message
    with pytest.raises(OutOfMemory, match="quantisation = auto"):
        plan(LARGE, cuda(12), quantisation="none", text_encoders="device")
    with pytest.raises(OutOfMemory, match="of main memory at least"):
        plan(LARGE, cuda(8, main_memory=3))


@pytest.mark.parametrize(
    ("there", "options", "words"),
    [
        (cpu(64), {"precision": "bf16"}, "neither AMX"),
        (cpu(64), {"precision": "fp16"}, "no CPU gains"),
        (cpu(64), {"precision": "int8"}, "quantisation = int8"),
        (cpu(64), {"quantisation": "fp8"}, "8.9"),
        (cuda(64), {"quantisation": "fp8"}, "8.9"),
        (replace(cuda(64), fp8=True), {"quantisation": "fp8", "precision": "fp16"}, "multiplied into bf16"),
        (
            replace(cuda(64), bf16="", doubt="the device doesn't multiply bf16"),
            {"precision": "bf16"},
            "doesn't multiply",
        ),
        (Hardware("mps", 64 * GIB, 64 * GIB), {"quantisation": "int8"}, "mps"),
        (cuda(64), {"quantisation": "int3"}, "unknown"),
        (cuda(64), {"text_encoders": "disk"}, "unknown"),
    ],
)
def test_what_can_t_be_had_is_refused(there, options, words):
    with pytest.raises(BadArgument, match=words):
        plan(MEDIUM, there, **options)


A100 = Machine(frozenset(), frozenset(), 2, compute_capabilities=((8, 0), (7, 5)), torch_has_cuda=True)


def test_hardware_is_what_torch_reaches(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device="cpu": {"cpu": 5, "cuda:0": 6, "cuda:1": 7}[device])
    first, second = hardware(A100), hardware(A100, "cuda:1")
    assert (first.device, first.free_bytes, first.cpu_free_bytes, bool(first.bf16), first.fp8) == (
        "cuda:0",
        6,
        5,
        True,
        False,
    )
    assert (second.bf16, second.doubt) == ("", "the device doesn't multiply bf16")
    assert hardware(replace(A100, compute_capabilities=((8, 9), (9, 0)))).fp8
    assert hardware(replace(A100, torch_has_cuda=False)).device == "cpu"
    mac = Machine(frozenset(), torch_has_mps=True)
    assert (hardware(mac).device, hardware(mac).free_bytes) == ("mps", 5)
    monkeypatch.setattr(memory, "free", lambda device="cpu": None)
    assert hardware(A100).free_bytes == sys.maxsize


def test_a_plan_for_a_device_that_isn_t_here_says_so():
    there = hardware(Machine(frozenset()), "cuda:0", memory_bytes=12 * GIB)
    assert "no such device here" in plan(LARGE, replace(there, cpu_free_bytes=64 * GIB)).placement.reason


@pytest.mark.parametrize(
    ("machine", "device", "mend"),
    [
        (Machine(frozenset()), "cuda:0", "driver"),
        (replace(A100, torch_has_cuda=False), "cuda:0", "install torch for CUDA"),
        (A100, "cuda", "cuda:0"),
        (A100, "gpu", "auto"),
        (A100, "cuda:2", "auto"),
    ],
)
def test_a_device_that_torch_can_t_reach_is_refused_with_the_mend(machine, device, mend):
    with pytest.raises(BadArgument, match=mend):
        hardware(machine, device)


def test_a_cpu_s_bf16_is_taken_where_it_was_found_to_be_faster(monkeypatch):
    zen = Machine(frozenset(), frozenset({"avx512_bf16"}))
    assert hardware(zen).bf16 == "the CPU has AVX512-BF16"
    monkeypatch.setattr(hardware_file, "bf16_speedup", lambda: 2.5)
    assert "2.5 times" in hardware(zen, measure=True).bf16
    monkeypatch.setattr(hardware_file, "bf16_speedup", lambda: 0.9)
    slow = hardware(zen, measure=True)
    assert slow.bf16 == ""
    assert "0.9 times as fast here" in plan(MEDIUM, replace(slow, free_bytes=64 * GIB)).placement.reason


def test_the_speed_of_bf16_is_measured_once():
    assert 0 < hardware_file.bf16_speedup() == hardware_file.bf16_speedup()


def test_plans_are_made_without_torch():
    program = "import sys, limner.diffusion.plan, limner.diffusion.hardware; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
