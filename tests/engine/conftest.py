"""An HTTP server that counts, honours Range and can break off, and a small convolution network."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from limner.core.card import ModelCard, WeightFile

WEIGHTS = np.random.default_rng(7).bytes(3_000_000)


@dataclass
class WeightServer:
    """Serves `content` by path. `break_after`: how many bytes each of the next answers sends before it hangs up."""

    url: str = ""
    content: dict[str, bytes] = field(default_factory=lambda: {"/lama.onnx": WEIGHTS})
    break_after: list[int] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)  # the Range header of each request, "" without
    ignores_range: bool = False
    hold: threading.Event | None = None  # answers wait for it

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range", "")
        self.ranges.append(asked)
        if self.hold is not None:
            self.hold.wait(10)
        if (content := self.content.get(handler.path)) is None:
            handler.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and not self.ignores_range else 0
        if start >= len(content):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(content) - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.end_headers()
        end = start + self.break_after.pop(0) if self.break_after else len(content)
        handler.wfile.write(content[start:end])
        handler.close_connection = True


@pytest.fixture
def weight_server() -> Iterator[WeightServer]:
    state = WeightServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture
def weights() -> bytes:
    """What the server's `lama.onnx` holds."""
    return WEIGHTS


@pytest.fixture
def card_at() -> Callable[..., ModelCard]:
    """`card_at(url, content)`: the card of a network with one file, `lama.onnx`, that is fetched from `url`."""

    def card_at(url: str, content: bytes = WEIGHTS, **changes: Any) -> ModelCard:
        file = WeightFile("lama.onnx", url, f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))
        card = ModelCard("lama", "inpaint", "Fills holes.", "Apache-2.0", "https://example.org/lama", (file,))
        return dataclasses.replace(card, **{"precisions": ("fp32", "bf16"), **changes})

    return card_at


@pytest.fixture
def network() -> Callable[..., onnx.ModelProto]:
    """`network(nodes, tensors, domain...)`: a network from `x` to `y`, both (batch, 3, height, width) float32."""

    def network(nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], *domains: str) -> onnx.ModelProto:
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3, "height", "width"]) for n in "xy")
        opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
        graph = helper.make_graph(nodes, "small", [x], [y], tensors)
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    return network


@pytest.fixture
def conv_network(network: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    """Three 3x3 convolutions with ReLU between them."""
    random = np.random.default_rng(0)
    nodes, tensors, value = [], [], "x"
    for index, (inputs, outputs) in enumerate(((3, 16), (16, 16), (16, 3))):
        weights = random.normal(0, (2 / (9 * inputs)) ** 0.5, (outputs, inputs, 3, 3)).astype(np.float32)
        tensors.append(numpy_helper.from_array(weights, f"w{index}"))
        output = "y" if index == 2 else f"c{index}"
        nodes.append(helper.make_node("Conv", [value, f"w{index}"], [output], pads=[1, 1, 1, 1]))
        if output != "y":
            nodes.append(helper.make_node("Relu", [output], [f"r{index}"]))
        value = f"r{index}"
    return network(nodes, tensors)
