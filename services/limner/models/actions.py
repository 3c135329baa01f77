"""What the command does, and how it tells it. One method a subcommand; each returns the exit code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from limner.core.errors import LimnerError
from limner.engine.fetch import Report, StoreError
from limner.engine.machine import this_machine
from limner.engine.placement import place
from limner.engine.store import mend, open_store
from limner.models.offers import Offer

PIPE_WIDTH = 200  # columns of a table that goes to no terminal


class Actions:
    """Actions(model_dir, absent): `absent` says which servers are not installed. Results go to stdout as a table, or as
    JSON; what is said on the way goes to stderr."""

    def __init__(self, model_dir: str, absent: Sequence[str], *, as_json: bool) -> None:
        self._store = open_store(model_dir)
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
                "installed": not self._store.missing(offer.card),
                "install_with": mend(offer.card) if self._store.missing(offer.card) else "",
                "size_bytes": sum(file.size_bytes for file in offer.card.files),
                "licence": offer.card.licence,
                "description": offer.card.description,
            }
            for offer in offers
        ]
        self._show(rows)
        return 0

    def plan(self, offers: Sequence[Offer], device: str, precision: str) -> int:
        rows, code = [], 0
        for offer in offers:
            try:
                placement = place(offer.card, this_machine(), device=device, precision=precision)
                where = dataclasses.asdict(placement)
                del where["thread_count"]
            except LimnerError as error:
                where, code = {"device": "-", "precision": "-", "engine": "-", "reason": error.message}, 1
            rows.append({"name": offer.card.name, "server": offer.server, **where})
        self._show(rows)
        return code

    def pull(self, offers: Sequence[Offer], mirror: str, accept_licence: bool) -> int:
        rows, code = [], 0
        for offer in offers:
            card = offer.card
            try:
                if not card.files:
                    outcome = "nothing to pull: it has no weights"
                else:
                    self._err.print(f"{card.name}: {card.licence}, {card.source}")
                    with self._bar() as report:
                        pulled = self._store.pull(card, mirror=mirror, accept_licence=accept_licence, report=report)
                    outcome = f"pulled {', '.join(pulled)}" if pulled else "is here already"
            except StoreError as error:
                outcome, code = f"failed: {error}", 1
            rows.append({"name": card.name, "outcome": outcome})
        self._show(rows)
        return code

    def verify(self, offers: Sequence[Offer], *, only_installed: bool) -> int:
        rows, code = [], 0
        for offer in offers:
            if not offer.card.files:
                outcome = "nothing to verify: it has no weights"
            elif only_installed and self._store.missing(offer.card):
                outcome = "not installed"
            elif faults := self._store.verify(offer.card):
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
                freed = self._store.rm(offer.card)
                outcome = f"removed, {_size(freed)} freed" if freed else "nothing of it is in the model directory"
            except StoreError as error:
                outcome, code = f"failed: {error}", 1
            rows.append({"name": offer.card.name, "outcome": outcome})
        self._show(rows)
        return code

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


def _cell(value: str | bool | int) -> str:
    """Return a value for people: yes or no, a size, or the text itself."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _size(value) if isinstance(value, int) else value


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count else "-"
