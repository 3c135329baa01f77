from __future__ import annotations

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


def test_auto_takes_the_first_cuda_device():
    placement = place(NETWORK, GPU)
    assert (placement.device, placement.precision, placement.engine) == ("cuda:0", "fp32", "onnxruntime")
    assert placement.reason.startswith("auto")
    assert place(NETWORK, GPU, device="cuda:1").device == "cuda:1"
    assert place(NETWORK, GPU, device="cpu").precision == "bf16"


def test_a_forced_precision_is_kept():
    assert place(NETWORK, ZEN4, precision="fp32").precision == "fp32"
    assert place(NETWORK, ZEN4, precision="bf16").reason.startswith("asked for")


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
        (NETWORK, GPU, "cuda:0", "bf16", "auto or fp32"),
        (FP32_ONLY, ZEN4, "auto", "bf16", "sam runs in fp32, not in bf16"),
        (NETWORK, ZEN4, "auto", "fp64", "fp32, fp16, bf16"),
    ],
)
def test_a_precision_that_cannot_be_had_is_refused_with_the_mend(card, machine, device, precision, mend):
    with pytest.raises(BadArgument, match=mend) as refused:
        place(card, machine, device=device, precision=precision)
    assert refused.value.violations[0].field == "precision"


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
