"""How fast the inpainting networks are: `python -m bench.inpaint [--quick] [--json]`.

The headline is `speedup_vs_torch_eager`: torch's plain fp32 run of LaMa at 512 × 512, over a whole call through the
router at the same size, PNG in and PNG out, both in turn in one run. The network's weights are made here
(`bench.realistic`), since a precision's cost shows only where outputs resemble photographs; the store is a temporary
one. --quick measures no more than that. Else every network is also run by every engine in every precision
(`bench.networks`), and clients come in crowds. Writes out/bench/inpaint.json; --json prints it, as the last line.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench import calls, networks, pictures
from bench.figures import cpu_name, median_ms, p95_ms, rows_table, table
from bench.realistic import realistic_lama
from limner.client.local import LocalServers
from limner.engine.store import Store
from limner.export.importer import import_files
from limner.export.networks.lama import Lama, LamaFill
from limner.inpaint.filler import Options
from limner.inpaint.models import MODELS
from limner.inpaint.strategy import Strategy, plan
from limner.runtime.cpus import cpu_count
from limner.v1 import inpaint_pb2, progress_pb2, router_pb2_grpc

SIDE = 512
HOLE = 80
HOLES = (64, 96, 128, 160)
TARGET = 8.0
MOST_DIFFERENCE = 1.0  # levels of 255, the mean in the hole
CROWDS = (1, 4, 16)
CROWD_SECONDS = 15.0
OUT = Path("out/bench/inpaint.json")

FULL = inpaint_pb2.INPAINT_STRATEGY_ORIGINAL
AUTO = inpaint_pb2.INPAINT_STRATEGY_AUTO
STRATEGIES = {AUTO: Strategy.AUTO, FULL: Strategy.ORIGINAL}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Figures = dict[str, Any]


@dataclass(frozen=True)
class Sight:
    """What a call's network sees: a part of the picture, (1, 3, h, w) in [0, 1], and its hole, (1, 1, h, w)."""

    image: Tensor
    mask: Tensor
    rows: slice
    columns: slice

    @property
    def words(self) -> str:
        return f"{self.image.shape[3]} × {self.image.shape[2]}"


@dataclass
class Routed:
    """Calls of one kind through the router: how long each took, whole and in the network, and the last one's result."""

    seconds: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)  # the server's stage `inpaint`
    picture: bytes = b""
    placement: progress_pb2.Placement = field(default_factory=progress_pb2.Placement)


# ---- calls ---------------------------------------------------------------------------------------------------------


def call(
    router: grpc.Channel, image: bytes, side: int, strategy: inpaint_pb2.InpaintStrategy.ValueType, into: Routed
) -> None:
    """Fill a square hole in the middle of a picture of `SIDE` through the router, and add how long it took."""
    request = calls.inpaint_run(image, pictures.hole(SIDE, SIDE, side, side), "lama", strategy)
    began = time.perf_counter()
    for response in router_pb2_grpc.RouterServiceStub(router).Run(request, timeout=300):
        event = response.event
        if event.HasField("started"):
            into.placement = event.started.placement
        elif event.HasField("result"):
            into.picture = event.result.image.encoded
        elif event.HasField("finished"):
            into.inside.append(calls.seconds_by_stage(event.finished)["inpaint"])
    into.seconds.append(time.perf_counter() - began)


def sight(image: NDArray[np.uint8], side: int, strategy: inpaint_pb2.InpaintStrategy.ValueType) -> Sight:
    """Return what the server shows its network of this call; at these sizes nothing is reduced."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    edge = (SIDE - side) // 2
    mask[edge : edge + side, edge : edge + side] = 255
    (region,) = plan(mask, STRATEGIES[strategy], MODELS["lama"].window(Options())).regions
    rows, columns = region.box.slices()
    part = torch.from_numpy(image[rows, columns].astype(np.float32) / 255).permute(2, 0, 1)[None]
    return Sight(part, torch.from_numpy(mask[rows, columns] > 0).float()[None, None], rows, columns)


def eager(network: nn.Module, seen: Sight) -> tuple[Tensor, float]:
    """Run the network as torch does by itself, in fp32; return what it draws and the seconds."""
    began = time.perf_counter()
    with torch.no_grad():
        filled = network(seen.image, seen.mask)
    return filled, time.perf_counter() - began


def difference(filled: Tensor, seen: Sight, picture: bytes) -> float:
    """Return by how many levels of 255 a call's fill differs from torch's in fp32, which saw the same: the mean in the
    hole."""
    expected = np.rint(filled.clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255)
    found = np.asarray(Image.open(io.BytesIO(picture)))[seen.rows, seen.columns].astype(np.float64)
    return float(np.abs(found - expected)[seen.mask[0, 0].numpy() > 0].mean())


# ---- the roof ------------------------------------------------------------------------------------------------------


def counted(network: nn.Module, seen: Sight) -> tuple[Tensor, int]:
    """Run the network as `eager`; return what it draws, and how many multiplications and additions its convolutions and
    matrix products took."""
    with FlopCounterMode(display=False) as counter:
        filled, _ = eager(network, seen)
    return filled, int(counter.get_total_flops())


def per_second(precision: str) -> float:
    """Return the operations a second of a large matrix product: the best of many is what these cores can do at most."""
    left, right = (torch.randn(2048, 2048).to(DTYPES[precision]) for _ in range(2))
    began = time.perf_counter()
    left @ right
    return 2 * 2048**3 / (time.perf_counter() - began)


def roof(count: int, routed: Routed, products: list[float]) -> Figures:
    """Return the least that `count` operations could take if all ran as fast as the best of `products`, and how much of
    that the server's run and the whole call come to."""
    precision = routed.placement.precision
    if not products:
        return {"precision": precision, "unknown": "torch has no matrix product in it to measure a peak by"}
    peak = max(products)
    least = count / peak
    return {
        "precision": precision,
        "operations_g": round(count / 1e9, 1),
        "peak_g_per_s": round(peak / 1e9, 1),
        "least_ms": round(least * 1000, 1),
        "network_reaches": round(least / statistics.median(routed.inside), 2),
        "call_reaches": round(least / statistics.median(routed.seconds), 2),
    }


# ---- the comparison ------------------------------------------------------------------------------------------------


def prepare(store: Store, folder: Path, *, quick: bool) -> nn.Module:
    """Import LaMa with weights made here into the store, and return the same network in torch, as it is exported."""
    weights = realistic_lama(128 if quick else 256)
    checkpoint = networks.weights_file(folder, "lama", MODELS["lama"].CARD.files[0].name)
    torch.save(weights, checkpoint)
    wanted = () if quick else ("bf16", "int8")  # what bf16 differs by is measured here anyway
    import_files(store, MODELS["lama"].CARD, [checkpoint], precisions=wanted, tell=tell)
    network = Lama()
    network.load_state_dict(weights)
    return LamaFill(network).eval()


def compare(servers: LocalServers, network: nn.Module, *, quick: bool) -> Figures:
    """Return the headline and what belongs to it."""
    turns = 3 if quick else 7
    image = pictures.held_out(SIDE)
    encoded = pictures.png(image)
    full = sight(image, HOLE, FULL)
    torches: list[float] = []
    near, whole, warm = Routed(), Routed(), Routed()
    products: list[float] = []
    by_hole = {} if quick else {side: Routed() for side in HOLES}
    with calls.channel(servers.address("router")) as router:
        tell("torch and the servers warm up")
        _, full_operations = counted(network, full)
        for strategy in (AUTO, FULL):
            call(router, encoded, HOLE, strategy, warm)
        for side in by_hole:
            call(router, encoded, side, AUTO, warm)
        for turn in range(turns):
            tell(f"turn {turn + 1} of {turns}")
            drawn, seconds = eager(network, full)
            torches.append(seconds)
            if (precision := warm.placement.precision) in DTYPES:
                products += [per_second(precision) for _ in range(4)]
            for _ in range(3):
                call(router, encoded, HOLE, AUTO, near)
            call(router, encoded, HOLE, FULL, whole)
            for side, routed in by_hole.items():
                call(router, encoded, side, AUTO, routed)
    tell("differences and the roof")
    seen = sight(image, HOLE, AUTO)
    plain = statistics.median(torches)
    filled, operations = counted(network, seen)
    apart = difference(filled, seen, near.picture)

    def of_hole(side: int, routed: Routed) -> Figures:
        its = sight(image, side, AUTO)
        return {
            "call_ms": median_ms(routed.seconds),
            "speedup": round(plain / statistics.median(routed.seconds), 2),
            "network_sees": its.words,
            "difference_levels": round(difference(eager(network, its)[0], its, routed.picture), 3),
        }

    return {
        "speedup_vs_torch_eager": round(plain / statistics.median(near.seconds), 2),
        "target": TARGET,
        "speedup_full_frame": round(plain / statistics.median(whole.seconds), 2),
        "torch_eager_ms": median_ms(torches),
        "call_ms": median_ms(near.seconds),
        "call_network_ms": median_ms(near.inside),
        "call_full_frame_ms": median_ms(whole.seconds),
        "difference_levels": round(apart, 3),
        "difference_full_frame_levels": round(difference(drawn, full, whole.picture), 3),
        "difference_most_levels": MOST_DIFFERENCE,
        "difference_met": apart <= MOST_DIFFERENCE,
        "picture": f"{SIDE} × {SIDE}, PNG",
        "hole": f"{HOLE} × {HOLE} in the middle",
        "strategy": "auto",
        "network_sees": seen.words,
        "device": near.placement.device,
        "precision": near.placement.precision,
        "engine": near.placement.engine,
        "reason": near.placement.reason,
        "by_hole": {str(side): of_hole(side, routed) for side, routed in by_hole.items()},
        "roof": roof(operations, near, products),
        "roof_full_frame": roof(full_operations, whole, products),
        "samples": {
            "torch_eager": len(torches),
            "call": len(near.seconds),
            "call_full_frame": len(whole.seconds),
            "by_hole": turns if by_hole else 0,
        },
    }


def crowd(servers: LocalServers, count: int, seconds: float) -> Figures:
    """Return how `count` clients fare that call again as soon as they are answered."""
    encoded = pictures.png(pictures.held_out(SIDE))
    end = time.perf_counter() + seconds
    tallies = [Routed() for _ in range(count)]

    def client(tally: Routed) -> None:
        with calls.channel(servers.address("router")) as router:
            while time.perf_counter() < end:
                call(router, encoded, HOLE, AUTO, tally)

    began = time.perf_counter()
    _all_at_once([partial(client, tally) for tally in tallies])
    took = time.perf_counter() - began
    every = [second for tally in tallies for second in tally.seconds]
    return {
        "clients": count,
        "calls": len(every),
        "per_second": round(len(every) / took, 2),
        "p50_ms": median_ms(every),
        "p95_ms": p95_ms(every),
    }


def _all_at_once(functions: list[Callable[[], None]]) -> None:
    """Run each on a thread of its own; raise the first error if there is one."""
    errors: list[BaseException] = []

    def guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# ---- what is told ---------------------------------------------------------------------------------------------------


def report(figures: Figures) -> str:
    """Return the figures as text: the headline's, then tables of what was measured besides."""
    single = {key: value for key, value in figures.items() if not isinstance(value, list | dict)}
    nested = {key: value for key, value in figures.items() if isinstance(value, dict) and key != "by_hole"}
    parts = [table("inpaint", single), *(table(key, value) for key, value in nested.items())]
    if by_hole := figures["by_hole"]:
        parts.append(rows_table([{"hole": f"{side} × {side}", **its} for side, its in by_hole.items()]))
    parts += [rows_table(figures[key]) for key in ("crowds", "networks") if key in figures]
    return "\n\n".join(parts)


# ---- the command ---------------------------------------------------------------------------------------------------


def measure(*, quick: bool) -> Figures:
    """Return all figures of one run."""
    began = time.perf_counter()
    torch.set_num_threads(cpu_count())
    with tempfile.TemporaryDirectory(prefix="limner-bench-") as folder:
        store = Store(Path(folder) / "models")
        network = prepare(store, Path(folder), quick=quick)
        environment = {"LIMNER_MODEL_DIR": str(store.root)}
        with LocalServers(services=("router", "inpaint"), environment=environment) as servers:
            figures = compare(servers, network, quick=quick)
            if not quick:
                tell("clients in crowds")
                figures["crowds"] = [crowd(servers, count, CROWD_SECONDS) for count in CROWDS]
        if not quick:
            figures["networks"] = networks.measure(store, Path(folder), tell)
    figures["machine"] = {"cpu": cpu_name(), "cores": cpu_count(), "torch": torch.__version__}
    figures["seconds"] = round(time.perf_counter() - began, 1)
    return figures


def tell(text: str) -> None:
    """Say what goes on, where it is not mistaken for the result."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.inpaint", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the headline only, within a minute")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object, in the last line")
    arguments = parser.parse_args()
    figures = measure(quick=arguments.quick)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(figures, ensure_ascii=False) if arguments.json else report(figures))
    if not figures["difference_met"]:
        sys.exit(f"the fill differs from fp32 by {figures['difference_levels']} levels, more than {MOST_DIFFERENCE}")


if __name__ == "__main__":
    main()
