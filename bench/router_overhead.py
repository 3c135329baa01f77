"""What the router costs: the same 1-megapixel inpaint direct and through the router, in turn, in one run."""

from __future__ import annotations

import time

from bench import calls, pictures
from bench.figures import Figures, median_ms, p95_ms
from limner.client.local import LocalServers


def measure(servers: LocalServers, *, quick: bool) -> Figures:
    """Return medians and 95th percentiles in milliseconds; target: at most 10 ms added at the median."""
    image, mask = pictures.photograph(1024, 1024), pictures.hole(1024, 1024, 64, 64)
    direct, routed = [], []
    with calls.channel(servers.address("inpaint")) as inpaint, calls.channel(servers.address("router")) as router:
        for _ in range(3):
            calls.inpaint_direct(inpaint, image, mask, "telea")
            calls.inpaint_routed(router, image, mask, "telea")
        for _ in range(15 if quick else 60):
            began = time.perf_counter()
            one, _ = calls.inpaint_direct(inpaint, image, mask, "telea")
            between = time.perf_counter()
            two, _ = calls.inpaint_routed(router, image, mask, "telea")
            direct.append(between - began)
            routed.append(time.perf_counter() - between)
            if one != two:
                raise RuntimeError("the router returned another picture than the server")
    added = [b - a for a, b in zip(direct, routed, strict=True)]
    return {
        "direct_p50_ms": median_ms(direct),
        "direct_p95_ms": p95_ms(direct),
        "routed_p50_ms": median_ms(routed),
        "routed_p95_ms": p95_ms(routed),
        "added_p50_ms": median_ms(added),
        "added_p95_ms": p95_ms(added),
        "target_added_p50_ms": 10,
        "image_bytes": len(image),
    }
