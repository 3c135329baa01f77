"""Fifty clients at once: every answer is a picture or an honest refusal, memory stays, and nobody is left behind."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, field

import grpc
import psutil

from bench import calls, pictures
from bench.figures import Figures, median_ms, p95_ms
from limner.client.local import LocalServers
from limner.v1 import router_pb2, router_pb2_grpc

CLIENTS = 50


@dataclass
class Tally:
    """What one client saw."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    errors: list[str] = field(default_factory=list)


def measure(servers: LocalServers, *, quick: bool) -> Figures:
    """Return counts, latencies, Jain's fairness index over the clients' finished calls (1 is perfectly fair), and each
    service's growth in MiB from the end of the warm-up, a third of the time, to the end."""
    return asyncio.run(_measure(servers, seconds=12 if quick else 60))


async def _measure(servers: LocalServers, seconds: float) -> Figures:
    image, mask = pictures.photograph(256, 256), pictures.hole(256, 256, 40, 40)
    request = calls.inpaint_run(image, mask, "telea")
    tallies = [Tally() for _ in range(CLIENTS)]
    end = time.perf_counter() + seconds
    clients = [asyncio.create_task(_client(servers.address("router"), request, tally, end)) for tally in tallies]
    await asyncio.sleep(seconds / 3)
    warm = _memory(servers)
    await asyncio.gather(*clients)
    final = _memory(servers)

    done = [len(tally.seconds) for tally in tallies]
    latencies = [took for tally in tallies for took in tally.seconds]
    errors = [error for tally in tallies for error in tally.errors]
    return {
        "clients": CLIENTS,
        "seconds": seconds,
        "finished": sum(done),
        "per_second": round(sum(done) / seconds, 1),
        "refused": sum(tally.refused for tally in tallies),
        "errors": len(errors),
        "first_error": errors[0] if errors else "",
        "p50_ms": median_ms(latencies),
        "p95_ms": p95_ms(latencies),
        "fairness": round(sum(done) ** 2 / (CLIENTS * sum(count**2 for count in done)), 4),
        "fewest_of_a_client": min(done),
        "median_of_a_client": statistics.median(done),
        **{f"growth_{name}_mib": round((final[name] - warm[name]) / 2**20, 1) for name in warm},
        **{f"memory_{name}_mib": round(final[name] / 2**20, 1) for name in final},
    }


async def _client(address: str, request: router_pb2.RunRequest, tally: Tally, end: float) -> None:
    async with grpc.aio.insecure_channel(address, options=calls.CHANNEL_OPTIONS) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        while time.perf_counter() < end:
            began = time.perf_counter()
            try:
                pictures_seen = 0
                async for response in stub.Run(request, timeout=60):
                    pictures_seen += response.event.HasField("result")
                if pictures_seen != 1:
                    tally.errors.append(f"{pictures_seen} results")
                tally.seconds.append(time.perf_counter() - began)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    tally.refused += 1
                    await asyncio.sleep(_pushback(error))
                else:
                    tally.errors.append(f"{error.code().name}: {error.details()}")


def _pushback(error: grpc.aio.AioRpcError) -> float:
    """Return the seconds that the refusal asks to wait."""
    trailers = dict(error.trailing_metadata() or ())
    return max(0.05, int(trailers.get("grpc-retry-pushback-ms", 100)) / 1000)


def _memory(servers: LocalServers) -> dict[str, int]:
    return {name: psutil.Process(pid).memory_info().rss for name, pid in servers.pids.items()}
