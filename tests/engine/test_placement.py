from __future__ import annotations

from dataclasses import replace

import pytest

from limner.core.card import ModelCard
from limner.core.errors import BadArgument, ModelNotInstalled
from limner.core.placement import Placement
from limner.engine import machine
from limner.engine.machine import Machine, read_cpu_flags, this_machine
from limner.engine.placement import check, place

NETWORK = ModelCard("lama", "inpaint", "", "", "", precisions=("fp32", "bf16"))
FP32_ONLY = ModelCard("sam", "segment", "", "", "", precisions=("fp32",))
TELEA = ModelCard("telea", "inpaint", "", "", "", engine="opencv")

BOTH = frozenset({"onnxruntime", "openvino"})
PLAIN = Machine(BOTH, frozenset({"avx2"}))
ZEN4 = Machine(BOTH, frozenset({"avx2", "avx512_bf16"}))
XEON = Machine(BOTH, frozenset({"amx_bf16", "avx512_bf16"}))
GPU = Machine(BOTH, frozenset({"avx512_bf16"}), cuda_device_count=2, onnxruntime_has_cuda=True)


def test_an_algorithm_runs_natively_whatever_is_asked():
    placement = place(TELEA, GPU, device="cuda:1", precision="fp32")
    assert (placement.device, placement.precision, placement.engine) == ("cpu", "native", "opencv")


@pytest.mark.parametrize(("machine", "unit"), [(ZEN4, "AVX512-BF16"), (XEON, "AMX")])
def test_auto_takes_bf16_where_the_cpu_multiplies_in_it(machine, unit):
    placement = place(NETWORK, machine)
    assert (placement.device, placement.precision, placement.engine) == ("cpu", "bf16", "openvino")
    assert unit in placement.reason


def test_bf16_that_was_never_measured_is_told():
    exported = replace(EVERY, exports=("network.onnx",))
    assert "was not measured" in place(exported, ZEN4).reason
    assert "was not measured" not in place(exported, ZEN4, differences=CLOSE).reason
    assert "was not measured" not in place(NETWORK, ZEN4).reason


@pytest.mark.parametrize(
    ("card", "machine", "engine", "reason"),
    [
        (NETWORK, PLAIN, "openvino", "neither AMX nor AVX512-BF16"),
        (FP32_ONLY, ZEN4, "openvino", "keep its quality"),
        (NETWORK, Machine(frozenset({"onnxruntime"}), ZEN4.cpu_flags), "onnxruntime", "limner[openvino]"),
        (NETWORK, Machine(frozenset({"openvino"})), "openvino", "neither"),
    ],
)
def test_auto_falls_back_to_fp32_and_says_what_was_lacking(card, machine, engine, reason):
    placement = place(card, machine)
    assert (placement.precision, placement.engine) == ("fp32", engine)
    assert reason in placement.reason


EVERY = ModelCard("mat", "inpaint", "", "", "", precisions=("fp32", "bf16", "fp16", "int8"))
CLOSE = {"bf16": 0.001, "fp16": 0.0001, "int8": 0.003}
VNNI = Machine(BOTH, frozenset({"avx2", "avx512_vnni"}))
ZEN4_VNNI = Machine(BOTH, frozenset({"avx512_bf16", "avx512_vnni"}))


@pytest.mark.parametrize(
    ("machine", "differences", "precision", "engine", "reason"),
    [
        (ZEN4_VNNI, CLOSE, "bf16", "openvino", "AVX512-BF16 and it differs from fp32 by 0.26 of 255 levels"),
        (ZEN4_VNNI, CLOSE | {"bf16": 0.005}, "int8", "openvino", "bf16 differs from fp32 by 1.3 of 255 levels, more"),
        (ZEN4_VNNI, {"bf16": 0.005, "int8": 0.005}, "fp32", "openvino", "and int8 differs"),
        (VNNI, CLOSE, "int8", "openvino", "AVX512-VNNI and it differs from fp32 by 0.77"),
        (VNNI, {}, "fp32", "openvino", "no int8 file was made of it"),
        (Machine(BOTH, frozenset({"avx_vnni"})), CLOSE, "int8", "openvino", "AVX-VNNI"),
        (Machine(BOTH, frozenset({"amx_int8"})), CLOSE, "int8", "openvino", "AMX"),
        (Machine(frozenset({"onnxruntime"}), ZEN4_VNNI.cpu_flags), CLOSE, "int8", "onnxruntime", "limner[openvino]"),
        (PLAIN, CLOSE, "fp32", "openvino", "no VNNI"),
        (GPU, CLOSE, "fp16", "onnxruntime", "differs from fp32 by 0.026"),
        (GPU, {}, "fp32", "onnxruntime", "no fp16 file"),
        (GPU, {"fp16": 1 / 254}, "fp32", "onnxruntime", "fp16 differs"),
    ],
)
def test_auto_follows_the_processor_and_the_measured_differences(machine, differences, precision, engine, reason):
    placement = place(EVERY, machine, differences=differences)
    assert (placement.precision, placement.engine) == (precision, engine)
    assert reason in placement.reason


def test_a_difference_of_just_one_level_is_accepted():
    assert place(EVERY, ZEN4_VNNI, differences={"bf16": 1 / 255}).precision == "bf16"


LARGE = replace(EVERY, memory_estimate_bytes=500 << 20, memory_per_pixel_bytes=1400)  # and 350 MiB for a call


@pytest.mark.parametrize(
    ("machine", "differences", "available_mib", "precision"),
    [
        (ZEN4_VNNI, CLOSE, 638, "bf16"),
        (ZEN4_VNNI, CLOSE, 630, "int8"),
        (ZEN4_VNNI, CLOSE, 10, "int8"),  # the smallest there is: what it lacks is told at loading
        (ZEN4_VNNI, {}, 10, "bf16"),
        (PLAIN, CLOSE, 850, "fp32"),
        (PLAIN, CLOSE, 849, "int8"),  # slow without VNNI, but it fits
        (GPU, CLOSE, 10, "fp16"),
        (ZEN4_VNNI, CLOSE, None, "bf16"),
    ],
)
def test_auto_takes_a_smaller_precision_where_the_faster_one_does_not_fit(
    machine, differences, available_mib, precision
):
    available_bytes = None if available_mib is None else available_mib << 20
    placement = place(LARGE, machine, differences=differences, available_bytes=available_bytes)
    assert placement.precision == precision
    if (machine, available_mib) == (ZEN4_VNNI, 630):
        assert "bf16 would need about 637 MiB and 630 MiB are free" in placement.reason


@pytest.mark.parametrize(
    ("machine", "differences", "precision", "why"),
    [
        (ZEN4, {}, "int8", "mat runs in fp32, bf16, not in int8: no int8 file was made of it"),
        (ZEN4, {"int8": 0.02}, "int8", "int8 differs from fp32 by 5.1 of 255 levels"),
        (ZEN4, {"bf16": 0.02}, "bf16", "bf16 differs"),
        (ZEN4, CLOSE, "fp16", "no engine gains by fp16 on a CPU; set precision to auto or fp32"),
        (GPU, CLOSE, "int8", "doesn't run int8 on cuda:0"),
    ],
)
def test_a_precision_that_is_asked_for_is_refused_if_it_would_be_wrong(machine, differences, precision, why):
    with pytest.raises(BadArgument, match=why):
        place(EVERY, machine, precision=precision, differences=differences)


@pytest.mark.parametrize(("machine", "precision"), [(ZEN4, "int8"), (PLAIN, "int8"), (GPU, "fp16")])
def test_a_precision_that_is_asked_for_is_kept_where_it_is_good(machine, precision):
    placement = place(EVERY, machine, precision=precision, differences=CLOSE, available_bytes=0)
    assert placement.precision == precision
    assert f"{precision} was asked for" in placement.reason


def test_auto_takes_the_first_cuda_device():
    placement = place(NETWORK, GPU)
    assert (placement.device, placement.precision, placement.engine) == ("cuda:0", "fp32", "onnxruntime")
    assert placement.reason.startswith("auto")
    assert place(NETWORK, GPU, device="cuda:1").device == "cuda:1"
    assert place(NETWORK, GPU, device="cpu").precision == "bf16"


def test_a_forced_precision_is_kept():
    assert place(NETWORK, ZEN4, precision="fp32").precision == "fp32"
    assert place(NETWORK, ZEN4, precision="bf16").reason.startswith("bf16 was asked for")


def test_the_thread_count_is_carried():
    assert place(NETWORK, ZEN4, thread_count=3).thread_count == 3


@pytest.mark.parametrize(
    ("machine", "device", "mend"),
    [
        (ZEN4, "cuda:0", "driver finds no GPU"),
        (Machine(BOTH, cuda_device_count=1), "cuda:0", r"limner\[cuda\]"),
        (GPU, "cuda:2", "cuda:0, cuda:1, cpu"),
        (GPU, "cuda", "cuda:0"),
        (ZEN4, "mps", "offers cpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_the_mend(machine, device, mend):
    with pytest.raises(BadArgument, match=mend) as refused:
        check(machine, device, "auto")
    assert refused.value.violations[0].field == "device"


@pytest.mark.parametrize(
    ("card", "machine", "device", "precision", "mend"),
    [
        (NETWORK, PLAIN, "auto", "bf16", "neither AMX nor AVX512-BF16"),
        (NETWORK, Machine(frozenset({"onnxruntime"}), ZEN4.cpu_flags), "auto", "bf16", r"limner\[openvino\]"),
        (NETWORK, GPU, "cuda:0", "bf16", "auto, fp32 or fp16"),
        (FP32_ONLY, ZEN4, "auto", "bf16", "sam runs in fp32, not in bf16"),
        (NETWORK, ZEN4, "auto", "fp64", "fp32, fp16, bf16"),
    ],
)
def test_a_precision_that_cannot_be_had_is_refused_with_the_mend(card, machine, device, precision, mend):
    with pytest.raises(BadArgument, match=mend):
        place(card, machine, device=device, precision=precision)


def test_a_model_s_want_of_a_precision_is_no_fault_of_a_request():
    with pytest.raises(BadArgument, match="sam runs in fp32") as refused:
        place(FP32_ONLY, ZEN4, precision="bf16")
    assert not refused.value.violations


def test_a_network_without_any_engine_names_what_to_install():
    with pytest.raises(ModelNotInstalled, match=r"limner\[openvino\]"):
        place(NETWORK, Machine(frozenset()))


def test_cpu_flags_are_read_from_linux_and_absent_elsewhere(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_tile\nbugs\t\t: x\n")
    assert read_cpu_flags(cpuinfo) == {"fpu", "avx512_bf16", "amx_tile"}
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert read_cpu_flags(cpuinfo) == frozenset()
    assert read_cpu_flags(tmp_path / "absent") == frozenset()


def test_a_folder_that_an_uninstall_left_is_no_engine(tmp_path, monkeypatch):
    (tmp_path / "left_behind" / "__pycache__").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert machine._is_installed("onnxruntime")
    assert not machine._is_installed("left_behind")
    assert not machine._is_installed("never_there")


def test_this_machine_offers_at_least_its_cpu():
    assert this_machine().devices[-1] == "cpu"
    assert isinstance(place(NETWORK, this_machine()), Placement)
