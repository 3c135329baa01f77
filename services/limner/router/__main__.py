"""`python -m limner.router [--config FILE] [--port PORT]`: the router as a process."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import shutil
import tempfile
from pathlib import Path

from limner.router.blobs import BlobStore
from limner.router.config import RouterConfig
from limner.router.pool import Pool, PoolSettings
from limner.router.runs import Runs
from limner.router.servicer import BlobServicer, ModelServicer, RouterServicer
from limner.runtime.config import ConfigError
from limner.runtime.server import Server, run
from limner.v1 import blobs_pb2_grpc, models_pb2_grpc, router_pb2_grpc

HOUSEKEEPING_SECONDS = 5.0

_log = logging.getLogger(__name__)


async def build(server: Server, config: RouterConfig) -> None:
    """Add the router's services to a server."""
    blobs = await _open_blobs(server, config)
    pool = Pool(
        config.targets,
        PoolSettings(
            keepalive_time=config.keepalive_time,
            keepalive_timeout=config.keepalive_timeout,
            connect_wait=config.connect_wait,
            resolve_interval=config.resolve_interval,
            max_message_bytes=config.max_message_bytes,
        ),
    )
    await pool.start()
    server.on_stop(pool.close)
    runs = Runs(config, pool, blobs, server.hold)
    server.on_drained(runs.close)
    housekeeping = asyncio.create_task(_keep_house(runs, blobs))
    server.on_stop(functools.partial(_end, housekeeping))
    server.add(
        router_pb2_grpc.add_RouterServiceServicer_to_server,
        RouterServicer(runs, pool, blobs),
        "limner.v1.RouterService",
        open_to_the_end=("WatchRun", "CancelRun", "GetStatus"),
    )
    server.add(
        blobs_pb2_grpc.add_BlobServiceServicer_to_server,
        BlobServicer(blobs),
        "limner.v1.BlobService",
        open_to_the_end=("GetBlob", "DownloadBlob"),
    )
    server.add(models_pb2_grpc.add_ModelServiceServicer_to_server, ModelServicer(pool), "limner.v1.ModelService")


async def _open_blobs(server: Server, config: RouterConfig) -> BlobStore:
    """Open the configured directory, or one that goes when the server stops."""
    root = config.blob_root
    if root is None:
        root = Path(tempfile.mkdtemp(prefix="limner-blobs-"))
        server.on_stop(functools.partial(asyncio.to_thread, shutil.rmtree, root, ignore_errors=True))
    try:
        return await asyncio.to_thread(
            BlobStore,
            root,
            quota_bytes=config.blob_quota_bytes,
            max_age=config.blob_max_age,
            upload_max_age=config.blob_upload_max_age,
            max_upload_bytes=config.max_image_bytes,
        )
    except OSError as error:
        raise ConfigError(f"blob_dir: {root} can't be used: {error.strerror}; set router.blob_dir elsewhere") from error


async def _keep_house(runs: Runs, blobs: BlobStore) -> None:
    """Forget what is old, for ever."""
    while True:
        await asyncio.sleep(HOUSEKEEPING_SECONDS)
        try:
            runs.forget_old()
            blobs.drop_old()
        except OSError:
            _log.exception("dropping old blobs failed; trying again")


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def main() -> None:
    """Be the router's process."""
    run("router", RouterConfig, build)


if __name__ == "__main__":
    main()
