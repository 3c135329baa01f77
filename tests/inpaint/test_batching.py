"""Concurrent calls of one network over a localhost channel."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from limner.core.card import ModelCard
from limner.core.codec import Limits
from limner.core.errors import BadArgument
from limner.core.geometry import Size
from limner.core.picture import Pixels
from limner.core.placement import Placement
from limner.engine.catalog import Catalog
from limner.engine.store import Store
from limner.inpaint.config import InpaintConfig
from limner.inpaint.filler import Options, Part, Window
from limner.inpaint.models import lama, migan, zits
from limner.inpaint.servicer import InpaintServicer, most_at_once
from limner.runtime.device import Device
from limner.runtime.server import Server, start
from limner.v1 import images_pb2, inpaint_pb2, inpaint_pb2_grpc

SIDE = 200
FIXED_S, PART_S = 0.05, 0.005


@dataclass
class Network:
    """A network that takes a while for a run and a little more for each part, and is a source of itself."""

    CARD = ModelCard(name="network", task="inpaint", description="", licence="MIT", source="this test")
    runs: list[int] = field(default_factory=list)  # how many parts
    asked: list[Options] = field(default_factory=list)  # of every part
    loads: int = 0
    allowed: int = 1000  # how many runs may end
    before_load: Callable[[], None] = lambda: None

    def window(self, options: Options) -> Window:
        return Window(64, 32, context=3.0, least=32, step=8, most_at_once=4)

    def load(self, placement: Placement, store: Store) -> Network:
        self.loads += 1
        self.before_load()
        return self

    def fill(self, parts: Sequence[Part], progress: Callable[[float], None]) -> list[Pixels]:
        self.runs.append(len(parts))
        self.asked += [part.options for part in parts]
        number = len(self.runs)
        time.sleep(FIXED_S + PART_S * len(parts))
        while number > self.allowed:
            time.sleep(0.005)
            progress(0.5)
        return [np.full_like(part.pixels, part.pixels[~part.hole].mean()) for part in parts]


@dataclass
class House:
    network: Network
    device: Device
    channel: grpc.aio.Channel

    async def ask(self, asked: inpaint_pb2.InpaintRequest, **options: Any) -> dict[str, list[Any]]:
        """Return the call's events by name."""
        events: dict[str, list[Any]] = {}
        async for response in inpaint_pb2_grpc.InpaintServiceStub(self.channel).Inpaint(asked, **options):
            name = str(response.WhichOneof("event"))
            events.setdefault(name, []).append(getattr(response, name))
        return events

    async def gather(self, count: int, *options: dict[str, Any]) -> list[asyncio.Task[dict[str, list[Any]]]]:
        """Return calls that share a turn, which begins when this returns; the first ones with the given options."""
        go = threading.Event()
        blocker = asyncio.create_task(self.device.admit(lambda position, eta: None).run(lambda: go.wait(5)))
        requests = [request(number) for number in range(count)]
        for asked, its_options in zip(requests, options, strict=False):
            asked.options.CopyFrom(inpaint_pb2.InpaintOptions(**its_options))
        calls = [asyncio.create_task(self.ask(asked)) for asked in requests]
        await self.ready(min(count, 5))
        go.set()
        await blocker
        return calls

    async def ready(self, count: int) -> None:
        """Wait until so many calls in the line are decoded."""
        for _ in range(2000):
            if sum(ticket._turn is not None for ticket in self.device._line) >= count:
                return
            await asyncio.sleep(0.005)
        pytest.fail("they never came")

    async def running(self, count: int) -> None:
        """Wait for so many runs to have begun."""
        for _ in range(1000):
            if len(self.network.runs) >= count:
                return
            await asyncio.sleep(0.005)
        pytest.fail("it never ran")


@asynccontextmanager
async def house(root: Path, max_batch: int = 0) -> AsyncIterator[House]:
    network = Network()
    device = Device("cpu", 16, most_at_once=4)

    async def build(server: Server, config: InpaintConfig) -> None:
        catalog = Catalog(
            {"network": network}, defaults={"inpaint": "network"}, server="inpaint", config=config, store=Store(root)
        )
        servicer = InpaintServicer({"network": network}, catalog, device, Limits(1 << 24, 1 << 24), config.max_batch)
        add = inpaint_pb2_grpc.add_InpaintServiceServicer_to_server
        server.add(add, servicer, "limner.v1.InpaintService")

        async def close() -> None:
            network.allowed = 1000
            device.close()

        server.on_stop(close)

    config = InpaintConfig(port=0, model_dir=str(root), queue_limit=16, max_batch=max_batch)
    async with (
        await start("inpaint", config, build) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield House(network, device, channel)


def raw(pixels: np.ndarray) -> images_pb2.Image:
    height, width, channels = pixels.shape
    size = {"width_px": width, "height_px": height, "channel_count": channels, "bit_depth": 8}
    return images_pb2.Image(raw=images_pb2.RawImage(data=pixels.tobytes(), **size))


def request(number: int, holes: int = 1, side: int = 8) -> inpaint_pb2.InpaintRequest:
    """Return a picture of its own with some holes."""
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    mask = np.zeros((SIDE, SIDE, 1), np.uint8)
    for hole in range(holes):
        mask[20 : 20 + side, 20 + 50 * hole : 20 + 50 * hole + side] = 255
    return inpaint_pb2.InpaintRequest(image=raw(pixels), mask=raw(mask), output=images_pb2.OutputOptions(format="raw"))


def data(events: dict[str, list[Any]]) -> bytes:
    result: bytes = events["result"][0].image.raw.data
    return result


async def test_concurrent_calls_share_runs_and_get_what_they_would_alone(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        alone = [data(await home.ask(request(number))) for number in range(8)]
        assert home.network.runs == [1] * 8
        home.network.runs.clear()
        together = await asyncio.gather(*await home.gather(8))
        assert [data(events) for events in together] == alone
        assert sum(home.network.runs) == 8
        assert home.network.runs[0] == 4
        assert home.network.loads == 1
        for events in together:
            assert len(events["started"]) == 1
            timings = {each.stage: each.duration.ToNanoseconds() / 1e9 for each in events["finished"][0].timings}
            assert list(timings) == ["queue", "decode", "inpaint", "blend", "encode"]
            assert timings["inpaint"] >= FIXED_S + PART_S


async def test_calls_that_share_a_run_keep_what_each_asked_of_the_model(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        calls = await home.gather(4, {"structure": False, "seed": 3}, {"radius_px": 7})
        await asyncio.gather(*calls)
        assert home.network.runs == [4]
        assert Options(structure=False, seed=3) in home.network.asked
        assert [each.radius for each in home.network.asked].count(7.0) == 1
        assert [each.structure for each in home.network.asked].count(True) == 3


@pytest.mark.parametrize("max_batch", [0, 1, 2])
async def test_no_more_parts_than_configured_are_filled_at_once(tmp_path: Path, max_batch: int) -> None:
    async with house(tmp_path, max_batch) as home:
        await asyncio.gather(*await home.gather(4))
        assert max(home.network.runs) == (max_batch or 4)


def test_on_a_cpu_large_parts_are_filled_one_by_one() -> None:
    window = lama.window(Options())
    for side, count in ((240, 4), (336, 2), (512, 1), (960, 1)):
        assert most_at_once(window, [Size(240, 240), Size(side, side)], "cpu", 0) == count
        assert most_at_once(window, [Size(side, side)], "cuda:0", 0) == 4
    assert most_at_once(window, [Size(240, 240)], "cpu", 3) == 3
    assert most_at_once(window, [Size(240, 240)], "cuda:0", 1) == 1


@pytest.mark.parametrize(("width", "height"), [(256, 512), (320, 256), (96, 40)])
def test_a_part_counts_with_all_that_the_model_sees_of_it(width: int, height: int) -> None:
    part = Part(np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.bool_), Options())
    assert zits.window(Options()).seen(Size(width, height)) == zits._squared(part).hole.size
    assert migan.window(Options()).seen(Size(width, height)) == 512 * 512
    assert lama.window(Options()).seen(Size(width, height)) == max(width, 240) * max(height, 240)


async def test_calls_of_another_shape_take_their_own_turn(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        home.network.allowed = 0
        calls = [asyncio.create_task(home.ask(request(0)))]
        await home.running(1)
        calls += [
            asyncio.create_task(home.ask(request(number, side=side))) for number, side in ((1, 8), (2, 20), (3, 8))
        ]
        await home.ready(3)
        home.network.allowed = 1
        await home.running(2)
        assert home.device.waiting == 3 - home.network.runs[1], "the other shape's turn has not come"
        home.network.allowed = 1000
        await asyncio.gather(*calls)
        assert sorted(home.network.runs) == [1, 1, 2]


async def test_a_call_cancelled_in_a_shared_run_harms_nobody_and_the_run_goes_on(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        home.network.allowed = 0
        first = asyncio.create_task(home.ask(request(0)))
        await home.running(1)
        gone, late, stays = (
            asyncio.create_task(home.ask(request(number), timeout=timeout))
            for number, timeout in ((1, None), (2, 3), (3, None))
        )
        await home.ready(3)
        home.network.allowed = 1
        await home.running(2)
        assert home.network.runs[1] == 3
        gone.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await late
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert home.device.busy, "the run was ended for the one that stays"
        home.network.allowed = 1000
        await first
        assert data(await stays) == data(await home.ask(request(3)))


async def test_a_run_that_all_have_left_ends(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        home.network.allowed = 0
        calls = [asyncio.create_task(home.ask(request(number))) for number in range(2)]
        await home.running(1)
        for call in calls:
            call.cancel()
        for _ in range(200):
            if not home.device.busy:
                break
            await asyncio.sleep(0.01)
        assert not home.device.busy


async def test_a_model_that_cannot_be_loaded_is_told_to_every_call_of_the_turn(tmp_path: Path) -> None:
    async with house(tmp_path) as home:

        def fail() -> None:
            raise BadArgument("no such weights")

        home.network.before_load = fail
        errors = await asyncio.gather(*await home.gather(3), return_exceptions=True)
        assert [type(error) for error in errors] == [grpc.aio.AioRpcError] * 3
        assert home.network.loads == 1
        home.network.before_load = lambda: None
        assert "result" in await home.ask(request(0))


async def test_loading_goes_on_for_the_others_when_its_first_call_leaves(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        home.network.before_load = lambda: time.sleep(0.2)
        calls = await home.gather(3)
        await asyncio.sleep(0.1)
        assert home.network.loads == 1
        calls[0].cancel()
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(errors[0], asyncio.CancelledError)
        assert all("result" in events for events in errors[1:])
