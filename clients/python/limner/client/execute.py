"""Runs a pipeline for a command: shows its events, returns its results, cancels it on Ctrl-C."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import click
from google.protobuf import json_format

from limner.client import recipe
from limner.client.asynchronous import AsyncClient
from limner.client.errors import RequestFailed
from limner.client.jobs import Job
from limner.client.options import Connection, Previews, numbered, write_output
from limner.client.pictures import ImageSource
from limner.client.results import Result
from limner.client.terminal import Show, display, model_state, write_json
from limner.v1 import models_pb2, router_pb2

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
    previews: Previews | None = None,
) -> dict[str, Result]:
    """Runs a pipeline with its progress, and perhaps previews, on the terminal; the results by step."""
    previews = previews or Previews()

    async def work(client: AsyncClient) -> dict[str, Result]:
        async with client.run(pipeline, inputs, intermediates=intermediates, previews=previews.wanted) as run:
            with display(connection, previews) as show:
                async for event in run:
                    show(event)
            return run.results

    return with_client(connection, work)


def run_job(connection: Connection, write: Callable[[], Job], output: str) -> None:
    """Runs what `write` writes and puts its picture where `output` says."""
    job = _written(connection, write, output)
    result = run_pipeline(connection, job.pipeline, job.inputs)[job.result]
    write_output(output, result.data)
    if connection.as_json:
        write_json({"written": {result.step: output}})
    elif not connection.quiet and output != "-":
        click.echo(f"wrote {output}", err=True)


def run_making(
    connection: Connection, write: Callable[[], Job], output: str, *, previews: Previews, keep_recipe: bool
) -> None:
    """Runs what `write` writes and puts its pictures where `output` says, with a number each if they are several, and
    PNG files with what they were made from. Tells the seeds."""
    job = _written(connection, write, output)
    result = run_pipeline(connection, job.pipeline, job.inputs, previews=previews)[job.result]
    places = numbered(output, len(result.files))
    for place, file, seed in zip(places, result.files, result.seeds, strict=True):
        if keep_recipe and result.finished is not None:
            file = recipe.store(file, recipe.recipe_of(result.step, result.finished, seed))
        write_output(place, file)
        if not (connection.quiet or connection.as_json):
            click.echo(f"wrote {place}, seed {seed}" if output != "-" else f"seed {seed}", err=True)
    if connection.as_json:
        write_json({"written": {result.step: places}, "seeds": result.seeds})


def change_models(
    connection: Connection,
    names: Sequence[str],
    change: Callable[[AsyncClient], Callable[..., Coroutine[Any, Any, models_pb2.Model]]],
) -> None:
    """Loads or unloads models on the servers, one after the other, and tells how each is then."""

    async def work(client: AsyncClient) -> list[models_pb2.Model]:
        with display(connection) as show:
            show(router_pb2.RunEvent(accepted=router_pb2.RunAccepted(steps=names)))
            return [await change(client)(name, tell=functools.partial(_as_run_event, show, name)) for name in names]

    for model in with_client(connection, work):
        if connection.as_json:
            write_json(json_format.MessageToDict(model, preserving_proto_field_name=True))
        elif not connection.quiet:
            click.echo(f"{model.name}: {model_state(model)}", err=True)


def _as_run_event(show: Show, name: str, event: models_pb2.LoadModelResponse | models_pb2.UnloadModelResponse) -> None:
    """Shows what a server tells of a model as if it were a step of a run."""
    kind = event.WhichOneof("event")
    if kind is not None and kind != "result":
        show(router_pb2.RunEvent(step=name, **{kind: getattr(event, kind)}))


def _written(connection: Connection, write: Callable[[], Job], output: str) -> Job:
    if output == "-" and connection.as_json:
        raise click.UsageError("--json writes to standard output; give -o a file")
    try:
        return write()
    except ValueError as error:
        raise click.UsageError(str(error)) from None
