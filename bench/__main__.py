"""Runs the benchmarks: `python -m bench [--quick] [NAME ...]`. Prints tables, writes out/bench/results.json."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

from bench import cancel, erase, load, router_overhead, startup
from bench.figures import Figures, cpu_name, table
from limner.client.local import LocalServers

NAMES = ("startup", "router-overhead", "erase", "cancel", "load")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help="which; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, for a first look")
    arguments = parser.parse_args()
    names = arguments.names or NAMES
    results: dict[str, Figures] = {
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count() or 0, "python": platform.python_version()}
    }
    if "startup" in names:
        results["startup"] = startup.measure(quick=arguments.quick)
    with LocalServers() as servers:
        if "router-overhead" in names:
            results["router-overhead"] = router_overhead.measure(servers, quick=arguments.quick)
        if "erase" in names:
            results["erase"] = erase.measure(servers, quick=arguments.quick)
        if "cancel" in names:
            results["cancel"] = cancel.measure(servers, quick=arguments.quick, model=erase.servers_default(servers))
        if "load" in names:
            results["load"] = load.measure(servers, quick=arguments.quick)
    for name, figures in results.items():
        print(table(name, figures), end="\n\n")
    path = Path("out/bench/results.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
