"""Servers that die, freeze or talk nonsense, and clients that vanish or stop reading."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import pytest

from limner.client import Client, LocalServers, RequestFailed
from limner.v1 import blobs_pb2, blobs_pb2_grpc, router_pb2, router_pb2_grpc
from tests.e2e import scenes

OPTIONS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]


@dataclass
class Farm:
    """A router and inpaint servers of which any can be hurt."""

    router: LocalServers
    fills: list[LocalServers]
    stub: router_pb2_grpc.RouterServiceStub

    def busy(self) -> LocalServers:
        """The server that a call runs on."""
        for server in self.stub.GetStatus(router_pb2.GetStatusRequest()).servers:
            if server.active_call_count:
                return next(fill for fill in self.fills if fill.address("inpaint") == server.address)
        raise AssertionError("no server is busy")


@contextlib.contextmanager
def farm(count: int, **environment: str) -> Iterator[Farm]:
    with contextlib.ExitStack() as stack:
        fills = [LocalServers(services=("inpaint",), stop_timeout=5) for _ in range(count)]
        addresses = ",".join([*(fill.address("inpaint") for fill in fills), *environment.pop("also", "").split()])
        router = LocalServers(services=("router",), environment={"LIMNER_ROUTER_INPAINT": addresses, **environment})
        starting = [threading.Thread(target=one.start) for one in (*fills, router)]
        for thread in starting:
            thread.start()
        for thread, one in zip(starting, (*fills, router), strict=True):
            thread.join()
            stack.callback(one.stop)
        channel = stack.enter_context(grpc.insecure_channel(router.address("router"), options=OPTIONS))
        stub = router_pb2_grpc.RouterServiceStub(channel)
        until(lambda: healthy(stub) == count, "all servers are healthy")
        yield Farm(router, fills, stub)


def healthy(stub: router_pb2_grpc.RouterServiceStub) -> int:
    servers = stub.GetStatus(router_pb2.GetStatusRequest()).servers
    return sum(server.healthy for server in servers if server.kind == "inpaint")


def until(holds: Callable[[], bool], what: str, seconds: float = 20) -> float:
    """Wait until it holds; return the seconds that took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - began


def read_to_progress(call: Iterator[router_pb2.RunResponse]) -> list[router_pb2.RunEvent]:
    """Read until the step's work is under way."""
    seen = []
    for response in call:
        seen.append(response.event)
        if response.event.HasField("progress") and response.event.progress.stage not in ("decode", "encode"):
            return seen
    raise AssertionError("the run ended before any progress")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_call_goes_to_another_server_when_its_own_dies_or_freezes(number: signal.Signals) -> None:
    with farm(2) as place:
        call = place.stub.Run(scenes.slow_fill(), timeout=90)
        seen = read_to_progress(call)
        hurt = place.busy()
        hurt.kill("inpaint", number)
        seen += [response.event for response in call]
        if number == signal.SIGSTOP:
            hurt.kill("inpaint", signal.SIGKILL)
    assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
    retries = [event.retried for event in seen if event.HasField("retried")]
    assert [retry.attempt for retry in retries] == [2]
    assert sum(event.HasField("result") for event in seen) == 1
    assert seen[-1].HasField("run_finished")


def test_the_only_server_dying_is_a_clear_error_and_its_return_is_noticed() -> None:
    with farm(1, LIMNER_ROUTER_CONNECT_WAIT="0.5") as place, Client(place.router.address("router")) as client:
        request = scenes.slow_fill()
        call = place.stub.Run(request, timeout=60)
        read_to_progress(call)
        place.fills[0].kill("inpaint")
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "inpaint" in caught.value.details()

        with pytest.raises(RequestFailed) as refused, client.run(request.pipeline, dict(request.inputs)) as run:
            run.wait()
        assert refused.value.reason == "SERVER_UNAVAILABLE"
        assert refused.value.step == "fill"

        place.fills[0].restart("inpaint")
        until(lambda: healthy(place.stub) == 1, "the server is healthy again")
        assert any(response.event.HasField("result") for response in place.stub.Run(scenes.quick_fill()))


def test_a_server_that_is_told_to_stop_finishes_what_it_does() -> None:
    with farm(1) as place:
        call = place.stub.Run(scenes.slow_fill(), timeout=60)
        read_to_progress(call)
        place.fills[0].kill("inpaint", signal.SIGTERM)
        events = [response.event for response in call]
        assert not any(event.HasField("retried") for event in events)
        assert events[-1].HasField("run_finished")
        until(lambda: place.fills[0].dead() == {"inpaint": 0}, "the server has ended with exit code 0")


def test_a_server_that_froze_for_a_moment_goes_on_with_its_call() -> None:
    with farm(1) as place:
        call = place.stub.Run(scenes.slow_fill(), timeout=60)
        seen = read_to_progress(call)
        place.fills[0].kill("inpaint", signal.SIGSTOP)
        time.sleep(1)
        place.fills[0].kill("inpaint", signal.SIGCONT)
        seen += [response.event for response in call]
        assert not any(event.HasField("retried") for event in seen)
        assert seen[-1].HasField("run_finished")


def test_a_router_that_is_told_to_stop_finishes_its_runs_and_lets_results_be_fetched() -> None:
    with farm(1) as place, Client(place.router.address("router")) as client:
        request = scenes.slow_fill()
        request.inline_limit_bytes = 0
        call = place.stub.Run(request, timeout=60)
        seen = read_to_progress(call)
        place.router.kill("router", signal.SIGTERM)
        time.sleep(0.1)
        with pytest.raises(RequestFailed, match="stopping") as refused, client.run(request.pipeline, {}) as run:
            run.wait()
        assert refused.value.reason == "STOPPING"
        seen += [response.event for response in call]
        assert seen[-1].HasField("run_finished")
        result = next(event.result for event in seen if event.HasField("result"))
        with grpc.insecure_channel(place.router.address("router"), options=OPTIONS) as channel:
            pieces = blobs_pb2_grpc.BlobServiceStub(channel).DownloadBlob(
                blobs_pb2.DownloadBlobRequest(blob_id=result.image.blob_id)
            )
            assert scenes.pixels(b"".join(piece.data for piece in pieces)).shape == (700, 700, 3)
        until(lambda: place.router.dead() == {"router": 0}, "the router has ended with exit code 0")


def test_runs_cancelled_at_any_moment_leave_nothing_behind(servers: LocalServers) -> None:
    request = scenes.fill(scenes.noise(300, 300), scenes.hole(300, 300, 60), "patchmatch")
    moments = random.Random(3)
    with grpc.insecure_channel(servers.address("router"), options=OPTIONS) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        for _ in range(8):
            calls = [stub.Run(request) for _ in range(10)]
            for call in calls:
                time.sleep(moments.random() * 0.05)
                call.cancel()

        def idle() -> bool:
            status = stub.GetStatus(router_pb2.GetStatusRequest())
            return not status.active_run_count and not any(each.active_call_count for each in status.servers)

        assert until(idle, "all runs are over", 10) < 2
        began = time.monotonic()
        assert any(response.event.HasField("result") for response in stub.Run(scenes.quick_fill(), timeout=20))
        assert time.monotonic() - began < 2


def test_garbage_on_a_port_is_an_unhealthy_server_and_nothing_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=talk_nonsense, args=(listener,), daemon=True).start()
        with farm(1, also=f"127.0.0.1:{listener.getsockname()[1]}") as place:
            for _ in range(4):
                events = [response.event for response in place.stub.Run(scenes.quick_fill(), timeout=20)]
                assert events[-1].HasField("run_finished")
            assert len(place.stub.GetStatus(router_pb2.GetStatusRequest()).servers) >= 2


def talk_nonsense(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            connection.sendall(b"220 mail.example ESMTP, not what you think\r\n" * 20)
            connection.close()


def test_a_client_that_vanishes_gives_the_device_back(servers: LocalServers) -> None:
    channel = grpc.insecure_channel(servers.address("router"), options=OPTIONS)
    read_to_progress(router_pb2_grpc.RouterServiceStub(channel).Run(scenes.slow_fill()))
    channel.close()
    with grpc.insecure_channel(servers.address("router")) as other:
        stub = router_pb2_grpc.RouterServiceStub(other)
        until(lambda: not stub.GetStatus(router_pb2.GetStatusRequest()).active_run_count, "the run is gone", 5)
        began = time.monotonic()
        assert any(response.event.HasField("result") for response in stub.Run(scenes.quick_fill(), timeout=20))
        assert time.monotonic() - began < 3


def test_a_client_that_stops_reading_holds_up_nobody(servers: LocalServers) -> None:
    with (
        grpc.insecure_channel(servers.address("router"), options=OPTIONS) as lazy,
        grpc.insecure_channel(servers.address("router"), options=OPTIONS) as eager,
    ):
        unread = [
            router_pb2_grpc.RouterServiceStub(lazy).Run(
                scenes.fill(scenes.noise(2000, 2000), scenes.hole(2000, 2000, 9), "telea")
            )
            for _ in range(4)
        ]
        stub = router_pb2_grpc.RouterServiceStub(eager)
        for _ in range(10):
            assert any(response.event.HasField("result") for response in stub.Run(scenes.quick_fill(), timeout=20))
        for call in unread:  # and what was not read is still all there
            events = [response.event for response in call]
            assert sum(event.HasField("result") for event in events) == 1
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))


def test_a_broken_connection_is_resumed_without_a_gap(servers: LocalServers) -> None:
    with grpc.insecure_channel(servers.address("router"), options=OPTIONS) as first:
        request = scenes.slow_fill()
        request.linger.seconds = 20
        seen = read_to_progress(router_pb2_grpc.RouterServiceStub(first).Run(request))
    with grpc.insecure_channel(servers.address("router"), options=OPTIONS) as second:
        watch = router_pb2.WatchRunRequest(run_id=seen[0].accepted.run_id, after_sequence=seen[-1].sequence)
        seen += [response.event for response in router_pb2_grpc.RouterServiceStub(second).WatchRun(watch, timeout=60)]
    assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
    assert sum(event.HasField("result") for event in seen) == 1
    assert seen[-1].HasField("run_finished")
