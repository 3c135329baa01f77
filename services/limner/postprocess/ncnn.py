"""Reads networks in ncnn's format (`.param` text, `.bin` weights) and writes them as ONNX. Knows no particular network
and runs nothing; it supports the layers that the Real-ESRGAN family uses and refuses every other one by name.

The text: a magic number, the counts of layers and blobs, then a line a layer:

    type  name  input_count output_count  inputs... outputs...  key=value...

where an array is written `-23300-key=length,value,value`. The weights follow each other in the order of the layers. A
convolution's weights begin with a tag, 0x01306B47 for fp16 (padded to 4 bytes) or 0 for fp32; biases and slopes are
fp32 without a tag. Little-endian throughout. (https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

MAGIC = 7767517
FP32_TAG = 0
FP16_TAG = 0x01306B47
ARRAY_KEY = -23300
OPSET = 17  # what is used is older; this and the IR version stay readable for runtimes of the last years
IR_VERSION = 8

Value = int | float | tuple[float, ...]


class NcnnError(ValueError):
    """A `.param` or `.bin` file that is damaged, or uses what isn't supported. Says which, where, and what."""


@dataclass(frozen=True)
class Layer:
    """One line of the `.param` file: `Layer("PReLU", "PRelu_1", ("54",), ("56",), {0: 64}, line=6)`."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: dict[int, Value]
    line: int

    def __str__(self) -> str:
        return f"line {self.line}, {self.kind} {self.name!r}"

    def integer(self, key: int, default: int) -> int:
        value = self.values.get(key, default)
        if not isinstance(value, int):
            raise NcnnError(f"{self}: parameter {key} is {value}, an integer is expected")
        return value

    def number(self, key: int, default: float) -> float:
        value = self.values.get(key, default)
        if isinstance(value, tuple):
            raise NcnnError(f"{self}: parameter {key} is an array, a number is expected")
        return float(value)

    def array(self, key: int) -> tuple[float, ...]:
        value = self.values.get(key, ())
        if not isinstance(value, tuple):
            raise NcnnError(f"{self}: parameter {key} is {value}, an array is expected")
        return value

    def expect_only(self, *keys: int) -> None:
        """Refuse parameters that the conversion wouldn't honour."""
        unknown = sorted(set(self.values) - set(keys))
        if unknown:
            raise NcnnError(f"{self}: parameters {unknown} are not supported")

    def expect_inputs(self, count: int) -> None:
        if len(self.inputs) != count:
            raise NcnnError(f"{self}: has {len(self.inputs)} inputs, {count} are expected")


def parse_param(text: str) -> list[Layer]:
    """Return the layers of a `.param` file in order. Raises NcnnError."""
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if len(lines) < 2 or lines[0][1] != [str(MAGIC)]:
        raise NcnnError(f"line 1: no ncnn network: it must begin with {MAGIC}")
    try:
        layer_count = int(lines[1][1][0])
    except ValueError as error:
        raise NcnnError("line 2: two numbers are expected, of layers and of blobs") from error
    layers = [_parse_layer(number, words) for number, words in lines[2:]]
    if len(layers) != layer_count:
        raise NcnnError(f"line 2: says {layer_count} layers, {len(layers)} follow")
    return layers


def _parse_layer(line: int, words: list[str]) -> Layer:
    try:
        kind, name, input_count, output_count = words[0], words[1], int(words[2]), int(words[3])
        blobs, rest = words[4 : 4 + input_count + output_count], words[4 + input_count + output_count :]
        if input_count < 0 or output_count < 0 or len(blobs) != input_count + output_count:
            raise ValueError("names of inputs or outputs are missing")
        values = dict(_parse_value(word) for word in rest)
    except (ValueError, IndexError) as error:
        raise NcnnError(f"line {line}: can't be read as a layer: {' '.join(words)[:80]!r} ({error})") from error
    return Layer(kind, name, tuple(blobs[:input_count]), tuple(blobs[input_count:]), values, line)


def _parse_value(word: str) -> tuple[int, Value]:
    key, _, value = word.partition("=")
    number = int(key)
    if number > ARRAY_KEY:
        return number, float(value) if set(value) & set(".eE") else int(value)
    length, *items = value.split(",")
    if len(items) != int(length):
        raise ValueError(f"array {word!r} has {len(items)} values")
    return ARRAY_KEY - number, tuple(float(item) for item in items)


@dataclass
class Weights:
    """The `.bin` file, read from front to back; every fault names the layer and the byte."""

    data: bytes
    offset: int = 0

    def tagged(self, count: int, layer: Layer) -> NDArray[np.float32]:
        """Return (count,) fp32 from weights that begin with a tag."""
        start = self.offset
        (tag,) = self._take(1, "<u4", layer)
        if tag == FP32_TAG:
            return self.plain(count, layer)
        if tag != FP16_TAG:
            raise NcnnError(
                f"{layer}: byte {start} of the weights has tag 0x{tag:08X}; supported are "
                f"0x{FP16_TAG:08X} (fp16) and 0 (fp32)"
            )
        values = self._take(count, "<f2", layer)
        self.offset += (-count * 2) % 4
        return values.astype(np.float32)

    def plain(self, count: int, layer: Layer) -> NDArray[np.float32]:
        """Return (count,) fp32 from weights without a tag."""
        return self._take(count, "<f4", layer).astype(np.float32)

    def expect_end(self) -> None:
        if self.offset != len(self.data):
            raise NcnnError(
                f"the weights have {len(self.data)} bytes, the layers use {self.offset}: the two files don't belong "
                "together"
            )

    def _take(self, count: int, dtype: str, layer: Layer) -> NDArray[Any]:
        size = count * np.dtype(dtype).itemsize
        if self.offset + size > len(self.data):
            raise NcnnError(
                f"{layer}: the weights are cut off: {size} bytes are needed from byte {self.offset}, "
                f"the file has {len(self.data)}"
            )
        values = np.frombuffer(self.data, dtype, count, self.offset)
        self.offset += size
        return values


@dataclass
class Graph:
    """The ONNX graph under construction."""

    weights: Weights
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)  # a blob of ncnn: the ONNX value that holds it
    channels: dict[str, int] = field(default_factory=dict)  # of an ONNX value, where it is known
    inputs: list[str] = field(default_factory=list)

    def values(self, layer: Layer) -> list[str]:
        """Return the ONNX values of a layer's inputs."""
        missing = [name for name in layer.inputs if name not in self.names]
        if missing:
            raise NcnnError(f"{layer}: input {missing[0]!r} is made by no layer before it")
        return [self.names[name] for name in layer.inputs]

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def tensor(self, name: str, values: NDArray[Any]) -> str:
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name


def to_onnx(param: str, weights: bytes) -> onnx.ModelProto:
    """Return the network as ONNX: every input and output is float32 (batch, channels, height, width), all but the
    channels free. The same files give the same bytes. Raises NcnnError."""
    graph = Graph(Weights(weights))
    layers = parse_param(param)
    for layer in layers:
        convert = CONVERTERS.get(layer.kind)
        if convert is None:
            known = ", ".join(sorted(CONVERTERS))
            raise NcnnError(f"{layer}: layers of this type are not supported; supported are {known}")
        if layer.kind != "Split" and len(layer.outputs) != 1:
            raise NcnnError(f"{layer}: has {len(layer.outputs)} outputs, 1 is expected")
        convert(layer, graph)
    graph.weights.expect_end()
    consumed = {name for layer in layers for name in layer.inputs}
    outputs = [name for layer in layers for name in layer.outputs if name not in consumed]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "ncnn",
            [_image(name, graph.channels.get(name)) for name in graph.inputs],
            [_image(graph.names[name], graph.channels.get(graph.names[name])) for name in outputs],
            graph.tensors,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="limner",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _image(name: str, channels: int | None) -> onnx.ValueInfoProto:
    shape = [f"{name}_batch", channels or f"{name}_channels", f"{name}_height", f"{name}_width"]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _input(layer: Layer, graph: Graph) -> None:
    graph.names[layer.outputs[0]] = layer.outputs[0]
    graph.inputs.append(layer.outputs[0])


def _split(layer: Layer, graph: Graph) -> None:
    """ncnn names every use of a blob; ONNX needs no copy."""
    layer.expect_inputs(1)
    (value,) = graph.values(layer)
    graph.names.update(dict.fromkeys(layer.outputs, value))


def _convolution(layer: Layer, graph: Graph) -> None:
    layer.expect_only(0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13, 14, 15, 16)
    layer.expect_inputs(1)
    (value,) = graph.values(layer)
    output_count, size, kernel_width = layer.integer(0, 0), layer.integer(6, 0), layer.integer(1, 0)
    kernel_height = layer.integer(11, kernel_width)
    pad_left = layer.integer(4, 0)
    pad_top = layer.integer(14, pad_left)
    pads = [pad_top, pad_left, layer.integer(16, pad_top), layer.integer(15, pad_left)]
    if min(pads) < 0:
        raise NcnnError(f"{layer}: automatic padding is not supported")
    outputs_by_kernel = output_count * kernel_height * kernel_width
    if outputs_by_kernel <= 0 or size <= 0 or size % outputs_by_kernel:
        raise NcnnError(f"{layer}: {size} weights don't fit {output_count} outputs of {kernel_height} x {kernel_width}")
    input_count = size // outputs_by_kernel
    if graph.channels.setdefault(value, input_count) != input_count:
        raise NcnnError(f"{layer}: takes {input_count} channels, its input has {graph.channels[value]}")
    weight = graph.weights.tagged(size, layer).reshape(output_count, input_count, kernel_height, kernel_width)
    inputs = [value, graph.tensor(f"{layer.name}.weight", weight)]
    if layer.integer(5, 0):
        inputs.append(graph.tensor(f"{layer.name}.bias", graph.weights.plain(output_count, layer)))
    stride, dilation = layer.integer(3, 1), layer.integer(2, 1)
    activation = layer.integer(9, 0)
    (output,) = layer.outputs
    graph.node(
        "Conv",
        inputs,
        output if activation == 0 else f"{output}.linear",
        kernel_shape=[kernel_height, kernel_width],
        pads=pads,
        strides=[layer.integer(13, stride), stride],
        dilations=[layer.integer(12, dilation), dilation],
    )
    if activation == 1:
        graph.node("Relu", [f"{output}.linear"], output)
    elif activation == 2:
        slopes = layer.array(10)
        if len(slopes) != 1:
            raise NcnnError(f"{layer}: a leaky ReLU has one slope, here are {len(slopes)}")
        graph.node("LeakyRelu", [f"{output}.linear"], output, alpha=slopes[0])
    elif activation != 0:
        raise NcnnError(f"{layer}: activation {activation} is not supported; 0 none, 1 ReLU, 2 leaky ReLU are")
    graph.names[output] = output
    graph.channels[output] = output_count


def _prelu(layer: Layer, graph: Graph) -> None:
    layer.expect_only(0)
    layer.expect_inputs(1)
    (value,) = graph.values(layer)
    slopes = graph.weights.plain(layer.integer(0, 0), layer).reshape(-1, 1, 1)
    _put(layer, graph, graph.node("PRelu", [value, graph.tensor(f"{layer.name}.slope", slopes)], layer.outputs[0]))


BINARY_OPERATIONS = {0: "Add", 1: "Sub", 2: "Mul", 3: "Div"}


def _binary(layer: Layer, graph: Graph) -> None:
    layer.expect_only(0)
    layer.expect_inputs(2)
    operation = BINARY_OPERATIONS.get(layer.integer(0, 0))
    if operation is None:
        raise NcnnError(f"{layer}: operation {layer.values[0]} is not supported; {BINARY_OPERATIONS} are")
    _put(layer, graph, graph.node(operation, graph.values(layer), layer.outputs[0]))


def _eltwise(layer: Layer, graph: Graph) -> None:
    """A sum of the inputs, each times its coefficient."""
    layer.expect_only(0, 1)
    (output,) = layer.outputs
    values, factors = graph.values(layer), layer.array(1)
    if layer.integer(0, 0) != 1 or len(factors) not in (0, len(values)):
        raise NcnnError(f"{layer}: only sums are supported, with a coefficient for each input or none")
    for index, factor in enumerate(factors):
        if factor != 1:
            tensor = graph.tensor(f"{output}.factor{index}", np.float32(factor).reshape(1))
            values[index] = graph.node("Mul", [values[index], tensor], f"{output}.scaled{index}")
    _put(layer, graph, graph.node("Sum", values, output))


def _concat(layer: Layer, graph: Graph) -> None:
    """ncnn's axis 0 is the channels: it knows no batch."""
    layer.expect_only(0)
    if layer.integer(0, 0) != 0:
        raise NcnnError(f"{layer}: only channels can be joined, this is axis {layer.values[0]}")
    values = graph.values(layer)
    _put(layer, graph, graph.node("Concat", values, layer.outputs[0], axis=1), channels=False)
    known = [graph.channels.get(value) for value in values]
    if all(known):
        graph.channels[layer.outputs[0]] = sum(count for count in known if count)


# By ncnn's number. Its linear and cubic kernels are centred on pixels, a = -0.75, without a low-pass when they reduce.
RESIZINGS: dict[int, dict[str, Any]] = {
    1: {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    2: {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
    3: {"mode": "cubic", "coordinate_transformation_mode": "half_pixel", "cubic_coeff_a": -0.75},
}


def _interp(layer: Layer, graph: Graph) -> None:
    layer.expect_only(0, 1, 2)
    layer.expect_inputs(1)
    attributes = RESIZINGS.get(layer.integer(0, 0))
    height, width = layer.number(1, 1.0), layer.number(2, 1.0)
    if attributes is None or height <= 0 or width <= 0:
        raise NcnnError(f"{layer}: only resizing 1 (nearest), 2 (linear), 3 (cubic) by a factor is supported")
    (output,) = layer.outputs
    scales = graph.tensor(f"{output}.scales", np.array([1, 1, height, width], np.float32))
    _put(layer, graph, graph.node("Resize", [*graph.values(layer), "", scales], output, **attributes))


def _pixel_shuffle(layer: Layer, graph: Graph) -> None:
    """Channels c*f*f + i*f + j become pixels (i, j) of channel c."""
    layer.expect_only(0)
    layer.expect_inputs(1)
    factor = layer.integer(0, 1)
    if factor < 1:
        raise NcnnError(f"{layer}: a factor of {factor} is impossible")
    (value,) = graph.values(layer)
    _put(
        layer,
        graph,
        graph.node("DepthToSpace", [value], layer.outputs[0], blocksize=factor, mode="CRD"),
        channels=False,
    )
    if value in graph.channels:
        graph.channels[layer.outputs[0]] = graph.channels[value] // factor**2


def _put(layer: Layer, graph: Graph, value: str, *, channels: bool = True) -> None:
    """Record a layer's output; unless told otherwise it has the channels of the first input where those are known."""
    graph.names[layer.outputs[0]] = value
    first = graph.channels.get(graph.names[layer.inputs[0]])
    if channels and first is not None:
        graph.channels[value] = first


CONVERTERS: dict[str, Callable[[Layer, Graph], None]] = {
    "BinaryOp": _binary,
    "Concat": _concat,
    "Convolution": _convolution,
    "Eltwise": _eltwise,
    "Input": _input,
    "Interp": _interp,
    "PReLU": _prelu,
    "PixelShuffle": _pixel_shuffle,
    "Split": _split,
}
