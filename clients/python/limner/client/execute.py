"""Runs a pipeline for a command: shows its events, returns its results, cancels it on Ctrl-C."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

import click

from limner.client.asynchronous import AsyncClient
from limner.client.errors import RequestFailed
from limner.client.jobs import Job
from limner.client.options import Connection, write_output
from limner.client.pictures import ImageSource
from limner.client.results import Result
from limner.client.terminal import display, write_json
from limner.v1 import router_pb2

_T = TypeVar("_T")


def with_client(connection: Connection, work: Callable[[AsyncClient], Coroutine[Any, Any, _T]]) -> _T:
    """Runs `work` with a client on an event loop of its own; Ctrl-C cancels it and lets it clean up first."""

    async def connected() -> _T:
        async with AsyncClient(connection.address, timeout=connection.timeout) as client:
            return await work(client)

    try:
        return asyncio.run(connected())
    except RequestFailed as failure:
        if connection.as_json:
            write_json({"error": failure.as_dict()})
        raise


def run_pipeline(
    connection: Connection,
    pipeline: router_pb2.Pipeline,
    inputs: Mapping[str, ImageSource],
    *,
    intermediates: bool = False,
) -> dict[str, Result]:
    """Runs a pipeline with its progress on the terminal; the results by step."""

    async def work(client: AsyncClient) -> dict[str, Result]:
        async with client.run(pipeline, inputs, intermediates=intermediates) as run:
            with display(connection) as show:
                async for event in run:
                    show(event)
            return run.results

    return with_client(connection, work)


def run_job(connection: Connection, write: Callable[[], Job], output: str) -> None:
    """Runs what `write` writes and puts its picture where `output` says."""
    if output == "-" and connection.as_json:
        raise click.UsageError("--json writes to standard output; give -o a file")
    try:
        job = write()
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    result = run_pipeline(connection, job.pipeline, job.inputs)[job.result]
    write_output(output, result.data)
    if connection.as_json:
        write_json({"written": {result.step: output}})
    elif not connection.quiet and output != "-":
        click.echo(f"wrote {output}", err=True)
