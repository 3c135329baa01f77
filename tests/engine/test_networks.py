"""Networks of a store, opened in several precisions; runs that are given up; memory that runs out."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from limner.core.card import ModelCard
from limner.core.errors import BadArgument, Cancelled, ModelNotInstalled
from limner.core.placement import Placement
from limner.engine.networks import in_precision, open_network
from limner.engine.session import open_session
from limner.engine.store import Store

ORT = Placement("cpu", "fp32", "onnxruntime", "test", thread_count=1)
OPENVINO = Placement("cpu", "fp32", "openvino", "test", thread_count=1)
ENGINES = pytest.mark.parametrize("placement", [ORT, OPENVINO], ids=["onnxruntime", "openvino"])

CARD = ModelCard("lama", "inpaint", "", "", "", exports=("network.onnx",), precisions=("fp32", "int8"))


@pytest.fixture
def installed(tmp_path):
    """`installed(name=bytes...)`: a store that holds CARD's model with these files, as the importer leaves it."""

    def installed(files):
        store = Store(tmp_path / "models")
        store.folder(CARD).mkdir(parents=True)
        for name, content in files.items():
            (store.folder(CARD) / name).write_bytes(content)
        record = {"files": {name: {"digest": f"sha256:{name}"} for name in files}}
        (store.folder(CARD) / "card.json").write_text(json.dumps(record))
        return store

    return installed


def long_network(network, count=60):
    """So many convolutions of 16 channels that a run at 640² takes more than a second."""
    random = np.random.default_rng(0)
    nodes, tensors, value = [], [], "x"
    for index in range(count):
        inputs, outputs = 3 if index == 0 else 16, 3 if index == count - 1 else 16
        tensors.append(numpy_helper.from_array(random.normal(0, 0.2, (outputs, inputs, 3, 3)).astype("f"), f"w{index}"))
        nodes.append(helper.make_node("Conv", [value, f"w{index}"], [f"c{index}"], pads=[1, 1, 1, 1]))
        value = "y" if index == count - 1 else f"v{index}"
        nodes.append(helper.make_node("Tanh", [f"c{index}"], [value]))
    return network(nodes, tensors).SerializeToString()


def square(side):
    return {"x": np.random.default_rng(side).random((1, 3, side, side), np.float32)}


def test_a_network_whose_file_went_is_told_when_it_is_to_be_compiled_anew(network, tmp_path):
    path = tmp_path / "network.onnx"
    path.write_bytes(long_network(network))
    session = open_session(path, OPENVINO)

    def check():
        raise Cancelled("the caller cancelled the call")

    with pytest.raises(Cancelled):
        session.run(square(640), check=check)
    path.unlink()
    with pytest.raises(BadArgument, match="OpenVINO can't run this network"):
        session.run(square(8))


@ENGINES
def test_a_run_is_given_up_in_the_middle_and_the_session_goes_on(placement, network):
    session = open_session(long_network(network), placement)
    (expected,) = session.run(square(8))
    began = time.monotonic()
    (other,) = session.run(square(320))
    quarter = time.monotonic() - began
    session.run(square(8))  # what is given up here prepares the network for another size than that of the next run
    asked = []

    def check():
        asked.append((time.monotonic(), threading.current_thread()))
        if len(asked) == 3:
            raise Cancelled("the caller cancelled the call")

    began = time.monotonic()
    with pytest.raises(Cancelled, match="the caller"):
        session.run(square(640), check=check)
    assert time.monotonic() - began < 2 * quarter
    assert len(asked) == 3
    assert {thread for _, thread in asked} == {threading.current_thread()}
    assert all(0.02 < later - earlier < 1 for (earlier, _), (later, _) in pairwise(asked))
    np.testing.assert_allclose(session.run(square(8), check=lambda: None)[0], expected, atol=1e-6)
    np.testing.assert_allclose(session.run(square(320))[0], other, atol=1e-6)


def test_openvino_is_not_stopped_where_compiling_again_would_take_longer(network, monkeypatch):
    session = open_session(long_network(network), OPENVINO)
    (expected,) = session.run(square(320))
    compiled = session._compiled

    def give_up():
        raise Cancelled("the caller cancelled the call")

    for compile_s, kept in ((1000, True), (0, False)):
        monkeypatch.setattr(session, "_compile_s", compile_s)
        with pytest.raises(Cancelled, match="the caller"):
            session.run(square(320), check=give_up)
        assert (session._compiled is compiled) == kept
        np.testing.assert_allclose(session.run(square(320))[0], expected, atol=1e-6)


@ENGINES
def test_a_failure_of_the_engine_comes_out_of_a_checked_run(placement, conv_network):
    session = open_session(conv_network.SerializeToString(), placement)
    with pytest.raises(Exception, match=r"(?i)shape|channel|dimension"):
        session.run({"x": np.ones((1, 5, 8, 8), np.float32)}, check=lambda: None)


def quantised(model, tmp_path):
    """The network with int8 convolutions, as the importer writes it: QDQ, weights by channel."""
    onnx.save(model, tmp_path / "plain.onnx")

    class Reader(CalibrationDataReader):
        def __init__(self):
            random = np.random.default_rng(5)
            self.batches = iter([{"x": random.random((1, 3, 24, 24), np.float32)} for _ in range(3)])

        def get_next(self):
            return next(self.batches, None)

    source, target = tmp_path / "plain.onnx", tmp_path / "quantised.onnx"
    quantize_static(source, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
    return target.read_bytes()


@ENGINES
def test_an_int8_file_runs_in_int8_and_takes_and_gives_floats(placement, conv_network, installed, tmp_path):
    plain = conv_network.SerializeToString()
    store = installed({"network.onnx": plain, "network.int8.onnx": quantised(conv_network, tmp_path)})
    picture = np.random.default_rng(6).random((1, 3, 24, 24), np.float32)
    int8 = Placement("cpu", "int8", placement.engine, "test", thread_count=1)
    (exact,) = open_network(store, CARD, "network.onnx", placement).run({"x": picture})
    (output,) = open_network(store, CARD, "network.onnx", int8).run({"x": picture})
    error = np.abs(output - exact).mean() / np.abs(exact).mean()
    assert output.dtype == np.float32
    assert 1e-3 < error < 0.1  # nearer it would have been fp32


def test_files_are_called_by_their_precision():
    assert in_precision("network.onnx", "int8") == "network.int8.onnx"
    assert in_precision("edge.line.onnx", "fp16") == "edge.line.fp16.onnx"
    assert in_precision("network.onnx", "bf16") == "network.onnx"
    assert in_precision("network.onnx", "fp32") == "network.onnx"


def test_a_precision_whose_file_is_gone_is_told_with_the_command(conv_network, installed):
    store = installed({"network.onnx": conv_network.SerializeToString()})
    int8 = Placement("cpu", "int8", "openvino", "test")
    with pytest.raises(ModelNotInstalled, match=r"network\.int8\.onnx missing.*limner models pull lama"):
        open_network(store, CARD, "network.onnx", int8)


def test_a_network_of_the_store_with_custom_operators_is_refused(network, installed):
    custom = helper.make_node("Evil", ["x"], ["y"], domain="com.example")
    store = installed({"network.onnx": network([custom], [], "com.example").SerializeToString()})
    with pytest.raises(BadArgument, match=r"network\.onnx needs custom operators \(com\.example\)"):
        open_network(store, CARD, "network.onnx", ORT)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname"])
def test_a_network_of_the_store_with_tensors_outside_its_folder_is_refused(location, conv_network, installed, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "secret.bin").write_bytes(bytes(1 << 16))
    tensor = conv_network.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    store = installed({"network.onnx": conv_network.SerializeToString()})
    with pytest.raises(BadArgument, match="outside its folder"):
        open_network(store, CARD, "network.onnx", ORT)


CHILD = """
import json, resource, sys
import numpy as np
from pathlib import Path
from limner.core.errors import OutOfMemory
from limner.core.placement import Placement
from limner.engine import memory
from limner.engine.onnx_check import check_onnx
from limner.engine.session import open_session

small, large, engine = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
placement = Placement("cpu", "fp32", engine, "test", thread_count=1)
session = open_session(small, placement)
picture = {"x": np.ones((1, 3, 64, 64), np.float32)}
session.run(picture)
used = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmSize:"))
resource.setrlimit(resource.RLIMIT_AS, (used + (150 << 20), resource.RLIM_INFINITY))
told = {"free": memory.free()}
for name, work in (("load", lambda: open_session(large, placement)),
                   ("run", lambda: session.run({"x": np.ones((1, 3, 1536, 1536), np.float32)}, check=lambda: None))):
    try:
        work()
        told[name] = "nothing"
    except OutOfMemory as error:
        told[name] = "OutOfMemory"
    except BaseException as error:
        told[name] = repr(error)
told["after"] = float(session.run(picture)[0].std())
print(json.dumps(told))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits on addresses are Linux's")
@ENGINES
def test_memory_that_really_runs_out_is_told_and_the_process_goes_on(placement, network, conv_network, tmp_path):
    weights = np.ones((3, 3, 1, 1), np.float32)
    ballast = np.random.default_rng(0).random((1, 30_000_000), np.float32)  # 120 MB, which `y` needs
    nodes = [
        helper.make_node("ReduceSum", ["ballast"], ["sum"], keepdims=0),
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Add", ["c", "sum"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(ballast, "ballast")]
    onnx.save(network(nodes, tensors), tmp_path / "large.onnx")
    onnx.save(conv_network, tmp_path / "small.onnx")
    command = [sys.executable, "-c", CHILD, tmp_path / "small.onnx", tmp_path / "large.onnx", placement.engine]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["load"], told["run"]) == ("OutOfMemory", "OutOfMemory")
    assert 140 << 20 < told["free"] <= 150 << 20
    assert told["after"] > 0
