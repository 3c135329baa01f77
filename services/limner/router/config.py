"""The router's settings: [router] of the TOML, LIMNER_ROUTER_* in the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from limner.runtime.config import ServerConfig, within


@dataclass(frozen=True)
class RouterConfig(ServerConfig):
    """Times are in seconds. Servers are `host:port`, or `dns:///host:port` for all addresses of a name."""

    port: int = 7400
    inpaint: tuple[str, ...] = ("127.0.0.1:7401",)
    segment: tuple[str, ...] = ("127.0.0.1:7402",)
    postprocess: tuple[str, ...] = ("127.0.0.1:7403",)
    diffusion: tuple[str, ...] = ("127.0.0.1:7404",)
    keepalive_time: float = 5.0  # a server is pinged after this long without traffic; servers permit 5 s, not less
    keepalive_timeout: float = 5.0  # one that doesn't answer a ping within this is gone
    connect_wait: float = 2.0  # how long a step waits for a healthy server
    overload_wait: float = 30.0  # how long a step waits for a place if all servers of its kind are full
    resolve_interval: float = 5.0  # `dns:///` names are looked up again this often
    deadline_margin: float = 0.1  # kept back of a deadline, to pass the answer on in
    max_runs: int = 128  # at the same time; more are refused
    run_retention: float = 600.0  # how long a run that has ended can be watched and joined
    run_retention_count: int = 1000  # and at most this many of them
    run_retention_bytes: int = 256 << 20  # and at most this much memory for their events
    blob_dir: str = ""  # empty: the user's cache directory, one for each port
    blob_quota_bytes: int = 4 << 30
    blob_max_age: float = 24 * 3600.0  # since the last use
    blob_upload_max_age: float = 600.0  # of an upload nobody goes on with

    def __post_init__(self) -> None:
        super().__post_init__()
        within("keepalive_time", self.keepalive_time, 0.1, 7200)
        within("keepalive_timeout", self.keepalive_timeout, 0.1, 600)
        within("connect_wait", self.connect_wait, 0, 600)
        within("overload_wait", self.overload_wait, 0, 86_400)
        within("resolve_interval", self.resolve_interval, 0.1, 3600)
        within("deadline_margin", self.deadline_margin, 0, 60)
        within("max_runs", self.max_runs, 1, 100_000)
        within("run_retention", self.run_retention, 0, 7 * 86_400)
        within("run_retention_count", self.run_retention_count, 0, 1_000_000)
        within("run_retention_bytes", self.run_retention_bytes, 0, 1 << 40)
        within("blob_quota_bytes", self.blob_quota_bytes, 1, 1 << 50)
        within("blob_max_age", self.blob_max_age, 1, 3650 * 86_400)
        within("blob_upload_max_age", self.blob_upload_max_age, 1, 86_400)

    @property
    def targets(self) -> dict[str, tuple[str, ...]]:
        """Return the servers by kind."""
        return {
            "inpaint": self.inpaint,
            "segment": self.segment,
            "postprocess": self.postprocess,
            "diffusion": self.diffusion,
        }

    @property
    def blob_root(self) -> Path | None:
        """Return where blobs are kept; None, a passing place, for a router on any free port.

        The user's cache directory has one place for each port: two routers must not share one.
        """
        if self.blob_dir:
            return Path(self.blob_dir).expanduser()
        if not self.port:
            return None
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(cache) / "limner" / f"blobs-{self.port}"
