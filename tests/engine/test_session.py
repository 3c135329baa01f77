from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from limner.core.errors import BadArgument, ModelNotInstalled, OutOfMemory
from limner.core.placement import Placement
from limner.engine.machine import this_machine
from limner.engine.onnx_check import check_onnx
from limner.engine.session import open_session

ORT = Placement("cpu", "fp32", "onnxruntime", "test", thread_count=1)
OPENVINO = Placement("cpu", "fp32", "openvino", "test", thread_count=1)
OPENVINO_BF16 = Placement("cpu", "bf16", "openvino", "test", thread_count=1)
ENGINES = pytest.mark.parametrize("placement", [ORT, OPENVINO], ids=["onnxruntime", "openvino"])


@pytest.fixture
def picture():
    return np.random.default_rng(1).random((1, 3, 40, 56), dtype=np.float32)


def convolved(model, picture):
    """What the network computes, in float64, without any engine."""
    value = picture[0].astype(np.float64)
    for index, tensor in enumerate(model.graph.initializer):
        padded = np.pad(value, ((0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        value = np.einsum("ihwyx,oiyx->ohw", windows, numpy_helper.to_array(tensor))
        value = value if index == 2 else np.maximum(value, 0)
    return value[None]


@ENGINES
def test_fp32_equals_the_arithmetic_from_file_and_from_bytes(placement, conv_network, picture, tmp_path):
    onnx.save(conv_network, tmp_path / "small.onnx")
    expected = convolved(conv_network, picture)
    for model in (tmp_path / "small.onnx", conv_network.SerializeToString()):
        session = open_session(model, placement)
        assert (session.input_names, session.output_names) == (["x"], ["y"])
        (output,) = session.run({"x": picture})
        assert output.dtype == np.float32
        np.testing.assert_allclose(output, expected, atol=1e-4)


def test_onnxruntime_and_openvino_agree(conv_network, picture):
    one, other = (
        open_session(conv_network.SerializeToString(), place).run({"x": picture})[0] for place in (ORT, OPENVINO)
    )
    np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.skipif(not this_machine().bf16_unit, reason="the CPU does not multiply in bf16")
def test_bf16_is_used_and_stays_within_its_precision(conv_network, picture):
    (output,) = open_session(conv_network.SerializeToString(), OPENVINO_BF16).run({"x": picture})
    expected = convolved(conv_network, picture)
    error = np.abs(output - expected).max() / np.abs(expected).max()
    assert output.dtype == np.float32
    assert 1e-5 < error < 2e-2  # below the lower bound it would have been fp32 after all


@ENGINES
def test_shapes_may_change_from_run_to_run(placement, conv_network):
    session = open_session(conv_network.SerializeToString(), placement)
    for shape in ((1, 3, 16, 16), (2, 3, 33, 17), (1, 3, 16, 16)):
        assert session.run({"x": np.zeros(shape, np.float32)})[0].shape == shape


@ENGINES
def test_an_output_is_not_overwritten_by_the_next_run(placement, conv_network, picture):
    session = open_session(conv_network.SerializeToString(), placement)
    (first,) = session.run({"x": picture})
    kept = first.copy()
    session.run({"x": 1 - picture})
    assert (first == kept).all()


@ENGINES
def test_outputs_come_in_the_order_of_their_names(placement, network):
    model = network(
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["negated"])],
        [],
    )
    model.graph.output.append(
        helper.make_tensor_value_info("negated", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    )
    session = open_session(model.SerializeToString(), placement)
    outputs = dict(zip(session.output_names, session.run({"x": np.ones((1, 3, 2, 2), np.float32)}), strict=True))
    assert outputs["negated"].max() == -1
    assert outputs["y"].min() == 1


@ENGINES
def test_a_network_that_needs_more_memory_than_there_is_says_so(placement, network):
    nodes = [
        helper.make_node("Reshape", ["x", "column"], ["a"]),
        helper.make_node("Reshape", ["x", "row"], ["b"]),
        helper.make_node("Mul", ["a", "b"], ["y"]),
    ]
    shapes = [
        numpy_helper.from_array(np.array([1, 3, -1, 1], np.int64), "column"),
        numpy_helper.from_array(np.array([1, 3, 1, -1], np.int64), "row"),
    ]
    session = open_session(network(nodes, shapes).SerializeToString(), placement)
    with pytest.raises(OutOfMemory, match="smaller"):  # 3 × (2048²)² floats: more than 47 bits can address
        session.run({"x": np.zeros((1, 3, 2048, 2048), np.float32)})


def test_bytes_that_are_no_network_are_refused(tmp_path):
    (tmp_path / "garbage.onnx").write_bytes(b"garbage" * 100)
    with pytest.raises(BadArgument, match=r"garbage\.onnx is no ONNX file"):
        open_session(tmp_path / "garbage.onnx", ORT)
    with pytest.raises(BadArgument, match="has no operators"):
        open_session(b"", ORT)


@ENGINES
def test_a_network_that_the_engine_cannot_run_is_refused_with_the_reason(placement, network):
    model = network([helper.make_node("Conv", ["x", "absent"], ["y"])], [])
    with pytest.raises(BadArgument, match="can't run this network"):
        open_session(model.SerializeToString(), placement)


@ENGINES
def test_an_engine_that_cannot_be_imported_is_named_with_the_mend(placement, conv_network, monkeypatch):
    monkeypatch.setitem(sys.modules, placement.engine, None)
    with pytest.raises(ModelNotInstalled, match=f"pip install --force-reinstall {placement.engine}"):
        open_session(conv_network.SerializeToString(), placement)


def test_custom_operators_are_refused_also_inside_branches(network):
    custom = helper.make_node("Evil", ["x"], ["y"], domain="com.example")
    with pytest.raises(BadArgument, match=r"custom operators \(com\.example\)"):
        check_onnx(network([custom], [], "com.example").SerializeToString())
    branch = helper.make_graph([custom], "then", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    condition = numpy_helper.from_array(np.array(True), "condition")
    node = helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch)
    with pytest.raises(BadArgument, match=r"com\.example"):
        check_onnx(network([node], [condition], "com.example").SerializeToString())


def test_functions_that_the_file_itself_defines_are_accepted(network):
    twice = helper.make_node("Add", ["a", "a"], ["b"])
    function = helper.make_function("own", "Twice", ["a"], ["b"], [twice], [helper.make_opsetid("", 17)])
    model = network([helper.make_node("Twice", ["x"], ["y"], domain="own")], [], "own")
    model.functions.append(function)
    (output,) = open_session(model.SerializeToString(), ORT).run({"x": np.ones((1, 3, 2, 2), np.float32)})
    assert (output == 2).all()


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "link.bin"])
def test_tensors_outside_the_folder_are_refused(location, conv_network, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(1 << 16))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    _externalise(conv_network, location)
    (folder / "small.onnx").write_bytes(conv_network.SerializeToString())
    with pytest.raises(BadArgument, match="outside its folder"):
        open_session(folder / "small.onnx", ORT)


def test_tensors_outside_are_found_in_branches_and_functions(network):
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "y")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    branch = helper.make_graph([], "then", [], [output], [tensor])
    condition = numpy_helper.from_array(np.array(True), "condition")
    node = helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch)
    with pytest.raises(BadArgument, match="outside its folder"):
        check_onnx(network([node], [condition]).SerializeToString())
    model = network([helper.make_node("Own", ["x"], ["y"], domain="own")], [], "own")
    constant = helper.make_node("Constant", [], ["y"], value=tensor)
    model.functions.append(helper.make_function("own", "Own", ["x"], ["y"], [constant], [helper.make_opsetid("", 17)]))
    with pytest.raises(BadArgument, match="outside its folder"):
        check_onnx(model.SerializeToString())


def test_tensors_outside_bytes_are_refused(conv_network):
    _externalise(conv_network, "weights.bin")
    with pytest.raises(BadArgument, match="outside its folder"):
        check_onnx(conv_network.SerializeToString())


@ENGINES
def test_tensors_beside_the_file_are_read(placement, conv_network, picture, tmp_path):
    expected = convolved(conv_network, picture)
    onnx.save(
        conv_network, tmp_path / "small.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    assert (tmp_path / "weights.bin").exists()
    (output,) = open_session(tmp_path / "small.onnx", placement).run({"x": picture})
    np.testing.assert_allclose(output, expected, atol=1e-4)


def _externalise(model, location):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def test_engines_are_imported_by_the_first_session_and_openvino_reports_to_nobody(conv_network, tmp_path):
    onnx.save(conv_network, tmp_path / "small.onnx")
    script = (
        "import sys, pathlib\n"
        "from limner.core.placement import Placement\n"
        "from limner.engine.session import open_session\n"
        "print(sorted({'onnx', 'onnxruntime', 'openvino', 'requests'} & sys.modules.keys()))\n"
        "open_session(pathlib.Path(sys.argv[1]), Placement('cpu', 'fp32', 'openvino', ''))\n"
        "print('openvino' in sys.modules)\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "small.onnx")],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "[]\nTrue\n"
    assert list(home.iterdir()) == []  # its telemetry would have left a client id here
