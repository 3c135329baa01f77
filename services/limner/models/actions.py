"""What the command does, and how it tells it. One method a subcommand; each returns the exit code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from limner.core.card import ModelCard
from limner.core.errors import LimnerError
from limner.engine import memory
from limner.engine.fetch import Report, StoreError
from limner.engine.machine import this_machine
from limner.engine.placement import place, resolve
from limner.engine.store import mend, open_store
from limner.models.offers import Offer, pipelines
from limner.models.pipelines import Pipelines

DIFFUSION = "diffusion"  # the server whose models are pipelines
PIPE_WIDTH = 200  # columns of a table that goes to no terminal


class Actions:
    """Actions(model_dir, absent): `absent` says which servers are not installed. Results go to stdout as a table, or as
    JSON; what is said on the way goes to stderr."""

    def __init__(self, model_dir: str, absent: Sequence[str], *, as_json: bool) -> None:
        self._store = open_store(model_dir)
        self._model_dir = model_dir
        self._absent = absent
        self._as_json = as_json
        self._out = Console(highlight=False, markup=False)
        if not self._out.is_terminal:
            self._out = Console(highlight=False, markup=False, width=PIPE_WIDTH)
        self._err = Console(highlight=False, markup=False, stderr=True, soft_wrap=True)

    def list(self, offers: Sequence[Offer]) -> int:
        rows = [
            {
                "name": offer.card.name,
                "task": offer.card.task,
                "server": offer.server,
                "installed": self._is_installed(offer),
                "install_with": "" if self._is_installed(offer) else self._mend(offer),
                "size_bytes": self._size(offer),
                "licence": offer.card.licence,
                "description": offer.card.description,
            }
            for offer in offers
        ]
        self._show(rows)
        return 0

    def plan(self, offers: Sequence[Offer], device: str, precision: str, memory_bytes: int | None = None) -> int:
        """`memory_bytes` stands for what is free on the device; None: what is."""
        rows, code, machine = [], 0, this_machine()
        is_known = device in ("auto", *machine.devices)
        free = memory.free(resolve(device, machine)) if is_known and memory_bytes is None else memory_bytes
        for offer in offers:
            try:
                if offer.server == DIFFUSION:
                    placement = self._pipelines.plan(
                        offer.card, machine, device=device, precision=precision, memory_bytes=memory_bytes
                    )
                else:
                    placement = place(
                        offer.card,
                        machine,
                        device=device,
                        precision=precision,
                        differences=self._store.differences(offer.card),
                        available_bytes=free,
                    )
                where = dataclasses.asdict(placement)
                del where["thread_count"]
            except LimnerError as error:
                where, code = {"device": "-", "precision": "-", "engine": "-", "reason": error.message}, 1
            rows.append({"name": offer.card.name, "server": offer.server, **where})
        self._show(rows)
        return code

    def pull(self, offers: Sequence[Offer], mirror: str, accept_licence: bool, precisions: Collection[str]) -> int:
        rows, code = [], 0
        for offer in offers:
            card = offer.card
            try:
                if offer.server == DIFFUSION:
                    outcome = self._pull_pipeline(card, accept_licence)
                elif not card.files:
                    outcome = "nothing to pull: it has no weights"
                else:
                    self._err.print(f"{card.name}: {card.licence}, {card.source}")
                    pulled = self._pull(card, mirror, accept_licence, precisions)
                    outcome = (
                        f"{'made' if card.exports else 'pulled'} {', '.join(pulled)}" if pulled else "is here already"
                    )
            except StoreError as error:
                outcome, code = f"failed: {error}", 1
            rows.append({"name": card.name, "outcome": outcome})
        self._show(rows)
        return code

    def import_files(
        self, offer: Offer, paths: Sequence[Path], accept_licence: bool, precisions: Collection[str]
    ) -> int:
        card, code = offer.card, 0
        try:
            if offer.server == DIFFUSION:
                raise StoreError("files of it are used where they are: name their place in [diffusion.sources]")
            if not card.exports:
                raise StoreError("it is not made from a checkpoint, so there is nothing to import")
            importer = _importer()
            self._err.print(f"{card.name}: {card.licence}, {card.source}")
            made = importer.import_files(
                self._store,
                card,
                paths,
                accept_licence=accept_licence,
                precisions=precisions,
                tell=self._err.print,
            )
            outcome = f"made {', '.join(made)}"
        except StoreError as error:
            outcome, code = f"failed: {error}", 1
        self._show([{"name": card.name, "outcome": outcome}])
        return code

    def verify(self, offers: Sequence[Offer], *, only_installed: bool) -> int:
        rows, code = [], 0
        for offer in offers:
            keeper = self._pipelines if offer.server == DIFFUSION else self._store
            if offer.server != DIFFUSION and not offer.card.files:
                outcome = "nothing to verify: it has no weights"
            elif only_installed and not self._is_installed(offer):
                outcome = "not installed"
            elif faults := keeper.verify(offer.card):
                outcome, code = "; ".join(faults), 1
            else:
                outcome = "right"
            rows.append({"name": offer.card.name, "outcome": outcome})
        self._show(rows)
        return code

    def rm(self, offers: Sequence[Offer]) -> int:
        rows, code = [], 0
        for offer in offers:
            try:
                is_pipeline = offer.server == DIFFUSION
                freed = (self._pipelines if is_pipeline else self._store).rm(offer.card)
                place = "hub's cache" if is_pipeline else "model directory"
                outcome = f"removed, {_size(freed)} freed" if freed else f"nothing of it is in the {place}"
            except StoreError as error:
                outcome, code = f"failed: {error}", 1
            rows.append({"name": offer.card.name, "outcome": outcome})
        self._show(rows)
        return code

    def _pull(self, card: ModelCard, mirror: str, accept_licence: bool, precisions: Collection[str]) -> Sequence[str]:
        if not card.exports or not self._store.missing(card):
            with self._bar() as report:
                return self._store.pull(card, mirror=mirror, accept_licence=accept_licence, report=report)
        importer = _importer()
        with self._bar() as report:
            made: Sequence[str] = importer.pull(
                self._store,
                card,
                mirror=mirror,
                accept_licence=accept_licence,
                precisions=precisions,
                report=report,
                tell=self._err.print,
            )
        return made

    def _pull_pipeline(self, card: ModelCard, accept_licence: bool) -> str:
        self._err.print(f"{card.name}: {card.licence}, {card.source}")
        from huggingface_hub.utils.tqdm import disable_progress_bars

        if not self._err.is_terminal:
            disable_progress_bars()
        return self._pipelines.pull(card, accept_licence=accept_licence)

    @cached_property
    def _pipelines(self) -> Pipelines:
        return pipelines(self._model_dir)

    def _is_installed(self, offer: Offer) -> bool:
        if offer.server == DIFFUSION:
            return not self._pipelines.missing(offer.card)
        return not self._store.missing(offer.card)

    def _mend(self, offer: Offer) -> str:
        return self._pipelines.mend(offer.card) if offer.server == DIFFUSION else mend(offer.card)

    def _size(self, offer: Offer) -> int:
        """Return what the model takes on this disk; where it isn't here, what there is to fetch."""
        card = offer.card
        if offer.server == DIFFUSION:
            return self._pipelines.size(card)
        if card.exports and not self._store.missing(card):
            return self._store.size(card)
        return sum(file.size_bytes for file in card.files)

    def _show(self, rows: Sequence[dict[str, Any]]) -> None:
        if self._as_json:
            self._out.print(json.dumps(rows, indent=2), soft_wrap=True)
        elif rows:
            table = Table(
                *(key.removesuffix("_bytes").replace("_", " ") for key in rows[0]),
                box=None,
                pad_edge=False,
                header_style="bold",
            )
            for row in rows:
                table.add_row(*(_cell(value) for value in row.values()))
            self._out.print(table)
        for sentence in self._absent:
            self._err.print(sentence)

    @contextmanager
    def _bar(self) -> Iterator[Report]:
        """A progress bar on stderr, where that is a terminal."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._err, disable=not self._err.is_terminal) as progress:
            tasks: dict[str, Any] = {}

            def report(name: str, there: int, total: int) -> None:
                if name not in tasks:
                    tasks[name] = progress.add_task(name)
                progress.update(tasks[name], completed=there, total=total or None)

            yield report


def _importer() -> ModuleType:
    """Return `limner.export.importer`, which brings torch: seconds, and a package that not every machine has."""
    try:
        from limner.export import importer
    except ModuleNotFoundError as error:
        if (error.name or "limner").startswith("limner"):  # a fault of ours, not a package that isn't there
            raise
        extra = "cpu" if error.name == "onnxruntime" else "export"
        raise StoreError(
            f"to make ONNX files of published weights takes {error.name}, which is missing: "
            f"pip install 'limner[{extra}]'; on another machine will do, the model directory can be copied"
        ) from error
    return importer


def _cell(value: str | bool | int) -> str:
    """Return a value for people: yes or no, a size, or the text itself."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _size(value) if isinstance(value, int) else value


def _size(count: int) -> str:
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB" if count else "-"
