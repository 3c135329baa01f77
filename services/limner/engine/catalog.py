"""The models of one server: which there are, which is the default, where each runs, and which are in memory.

    catalog.admit("lama", pixels)    # when a call is read: can it be had at all?
    with catalog.use("lama", job=job, pixels=pixels) as model:    # on the device's thread: loaded, with room for it
        ...

Several models stay in memory as long as they fit into the server's budget; then the one that was not used for longest
goes, and is loaded again when it is asked for. All that loads, unloads and runs networks does so on the one thread of
their device, so none is ever unloaded in the middle of a call. Nobody keeps a model from one call to the next.

Knows no protocol and no task; a model is a module with a `CARD` and a `load`.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Protocol

from limner.core.card import ModelCard
from limner.core.errors import BadArgument, ModelNotInstalled, OutOfMemory, UnknownModel
from limner.core.placement import Placement
from limner.engine import memory
from limner.engine.budget import Budget, Measured, Need
from limner.engine.machine import Machine, this_machine
from limner.engine.networks import in_precision
from limner.engine.placement import check, place, resolve
from limner.engine.store import Store, mend
from limner.runtime.config import ConfigError, ServerConfig
from limner.runtime.job import Job

_log = logging.getLogger("limner.models")


class ModelSource(Protocol):
    """What a model's file offers. `load` returns the model ready to run; the server knows its class.

    If the model has a method `warm_up() -> int`, that is called once after loading: it runs at the model's usual size
    and returns how many pixels the network saw, so that it is known what a call takes."""

    CARD: ModelCard

    def load(self, placement: Placement, store: Store) -> Any: ...


class State(Enum):
    """Whether a model can be used at once."""

    NOT_INSTALLED = "not installed"
    INSTALLED = "installed"
    LOADED = "loaded"


@dataclass
class _Loaded:
    """A model in memory."""

    model: Any
    placement: Placement
    digest: str
    last_use: float  # of time.monotonic()


class Catalog:
    """Catalog(MODELS, defaults={"inpaint": "telea"}, server="inpaint", config=config, store=Store(root))

    Raises ConfigError if the configured device or precision can't be had here, or a default doesn't exist.
    """

    def __init__(
        self,
        models: Mapping[str, ModelSource],
        *,
        defaults: Mapping[str, str],
        server: str,
        config: ServerConfig,
        store: Store,
        machine: Machine | None = None,
    ) -> None:
        self.server = server
        self.store = store
        self._models = dict(models)
        self._defaults = dict(defaults)
        self._config = config
        self._machine = machine or this_machine()
        self._loaded: dict[str, _Loaded] = {}
        self._lock = threading.Lock()
        try:
            check(self._machine, config.device, config.precision)
            for task, name in self._defaults.items():
                self.card(name, task)
        except (BadArgument, UnknownModel) as error:
            raise ConfigError(f"{server}: {error.message}") from error
        self._budget = Budget(config.memory_budget_mb << 20, resolve(config.device, self._machine))
        for task in self._defaults:
            if note := self._stands_in(self.card(None, task)):
                _log.info("%s: %s", task, note)

    def card(self, name: str | None = None, task: str | None = None) -> ModelCard:
        """Return the card of `name`, or of the task's default if `name` is None or empty.

        Raises UnknownModel, with the names of that task (of all tasks if `task` is None)."""
        if not name and task is not None:
            name = self.default(task)
        source = self._models.get(name or "")
        if source is None or task not in (None, source.CARD.task):
            raise UnknownModel(name or "", available=[card.name for card in self.cards(task)])
        return source.CARD

    def cards(self, task: str | None = None) -> list[ModelCard]:
        """Return the cards of a task, or all, by name."""
        cards = (source.CARD for source in self._models.values())
        return sorted((card for card in cards if task in (None, card.task)), key=lambda card: card.name)

    def default(self, task: str) -> str:
        """Return the model that a request without a name gets: the configured one, or while that isn't installed, the
        first of the task that is. Empty if the task has none."""
        names = [name for name, source in self._models.items() if source.CARD.task == task]
        configured = self._defaults.get(task, names[0] if names else "")
        if configured and self.state(configured) is State.NOT_INSTALLED:
            return next((name for name in names if self.state(name) is not State.NOT_INSTALLED), configured)
        return configured

    def placement(self, name: str) -> Placement:
        """Return where the model runs, or would, and why. Raises as `limner.engine.placement.place`."""
        card = self.card(name)
        if (loaded := self._loaded.get(name)) is not None:
            placement = loaded.placement
        else:
            placement = place(
                card,
                self._machine,
                device=self._config.device,
                precision=self._config.precision,
                thread_count=self._config.threads,
                differences=self.store.differences(card),
                available_bytes=self._budget.room(self._held(), between_calls=False),
            )
        note = self._stands_in(card)
        return replace(placement, reason=f"{placement.reason}; {note}") if note else placement

    def digest(self, name: str) -> str:
        """Return the sha256 of the weights as they are served, in lower-case hexadecimal; of several files that of
        their digests, one after the other. Empty for algorithms, and for what is not installed or can't run here."""
        card = self.card(name)
        if card.digest or not card.exports:
            return card.digest
        if (loaded := self._loaded.get(name)) is not None:  # also after the files were made anew
            return loaded.digest
        try:
            names = self._file_names(card)
        except (BadArgument, ModelNotInstalled):
            return ""
        recorded = self.store.digests(card)
        digests = [recorded.get(name, "").removeprefix("sha256:") for name in names]
        if len(digests) == 1 or not all(digests):
            return digests[0]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def measured(self, name: str) -> Measured | None:
        """Return what the model was found to take, also after it was unloaded; None as long as it was not loaded."""
        return self._budget.measured(self.card(name).name)

    def admit(self, name: str, pixels: int) -> None:
        """Raise OutOfMemory if a call in which the network sees so many pixels could not be had even if all other
        models were unloaded. Loads nothing; call it while a request is read, so that it is refused before it waits."""
        card = self.card(name)
        if self.state(name) is State.NOT_INSTALLED:
            return  # a fault of its own, which `use` tells
        need = self._need(card, self.placement(name), pixels)
        room = self._budget.room(self._held(), between_calls=False)
        if need.all_bytes > room:
            raise self._budget.shortage(card, need, room, self._setting)

    @contextmanager
    def use(self, name: str, *, job: Job | None = None, pixels: int = 0) -> Iterator[Any]:
        """Have the loaded model, as `get`; memory that runs out inside is told as OutOfMemory with what the call needs
        and what is free."""
        model = self.get(name, job=job, pixels=pixels)
        with self._running_out(name, pixels, "at work"):
            yield model

    def get(self, name: str, *, job: Job | None = None, pixels: int = 0) -> Any:
        """Return the loaded model, loading it first if need be. Call it on the device's thread: it may take seconds.

        Other models, those that were not used for longest first, are unloaded to make room for it and for a call in
        which the network sees `pixels`. With a `job`, loading is told as its stage `load`.
        Raises UnknownModel, ModelNotInstalled with the command that mends it, and OutOfMemory.
        """
        with self._lock:
            card = self.card(name)
            if missing := self.store.missing(card) if name not in self._loaded else []:
                raise ModelNotInstalled(
                    f"{name} is not installed ({', '.join(missing)} missing): {mend(card)}",
                    metadata={"model": name},
                )
            placement = self.placement(name)
            if name in self._loaded:
                self._make_room(card, placement, pixels)
            else:
                self._load(card, placement, pixels, job)
            self._loaded[name].last_use = time.monotonic()
            return self._loaded[name].model

    def unload(self, name: str) -> None:
        """Forget a loaded model, so that its memory goes. Call it on the device's thread: nothing uses it then."""
        self.card(name)
        with self._lock:
            self._forget(name)

    def _load(self, card: ModelCard, placement: Placement, pixels: int, job: Job | None) -> None:
        """Load a model that isn't. The stage of a network has three steps: room is made, weights are read and compiled,
        it has run once."""
        began, digest = time.perf_counter(), self.digest(card.name)
        at_once = placement.precision == "native"
        with nullcontext(lambda done: None) if job is None or at_once else job.stage("load", 3) as step:
            self._make_room(card, placement, pixels)
            with self._running_out(card.name, pixels, "being loaded"):
                model = self._budget.measure(
                    card,
                    placement,
                    self._file_bytes(card, placement),
                    lambda: self._models[card.name].load(placement, self.store),
                    step,
                )
        self._loaded[card.name] = _Loaded(model, placement, digest, time.monotonic())
        _log.info(
            "loaded %s in %.1f s, %d MiB: %s, %s, %s (%s)",
            card.name,
            time.perf_counter() - began,
            self._need(card, placement, 0).loaded_bytes >> 20,
            placement.device,
            placement.precision,
            placement.engine,
            placement.reason,
        )

    def _make_room(self, card: ModelCard, placement: Placement, pixels: int) -> None:
        """Unload other networks until the model and its call fit. Raises OutOfMemory if they can't."""
        need = self._need(card, placement, pixels)
        if not need.all_bytes:
            return
        room = self._budget.room(self._held(), between_calls=True)
        if need.all_bytes > room:
            memory.collect()  # what a load or a call that failed left may wait for it
            room = self._budget.room(self._held(), between_calls=True)
        if need.all_bytes > room:
            raise self._budget.shortage(card, need, room, self._setting)
        others = {name: takes for name in self._loaded if (takes := self._takes(name)) and name != card.name}
        for name in sorted(others, key=lambda name: self._loaded[name].last_use):
            if need.all_bytes + need.doubt_bytes + sum(others.values()) <= room:
                return
            del others[name]
            self._forget(name)
            _log.info("unloaded %s to make room for %s", name, card.name)

    def _forget(self, name: str) -> None:
        if self._loaded.pop(name, None) is not None:
            memory.collect()

    def _held(self) -> int:
        """Return what all loaded models take."""
        return sum(self._takes(name) for name in list(self._loaded))

    def _takes(self, name: str) -> int:
        """Return what a model takes; nothing if it isn't loaded any more, as other threads may ask."""
        loaded = self._loaded.get(name)
        return self._need(self.card(name), loaded.placement, 0).loaded_bytes if loaded else 0

    def _need(self, card: ModelCard, placement: Placement, pixels: int) -> Need:
        return self._budget.need(card, placement, self._file_bytes(card, placement), pixels)

    def _file_bytes(self, card: ModelCard, placement: Placement) -> int:
        names = self._file_names(card, placement) if card.exports else []
        files = [path for name in names if (path := self.store.folder(card) / name).is_file()]
        return sum(path.stat().st_size for path in files)

    def _file_names(self, card: ModelCard, placement: Placement | None = None) -> list[str]:
        """Return the names of an exported model's files in the precision that is served."""
        precision = (placement or self.placement(card.name)).precision
        return [in_precision(name, precision) for name in card.exports]

    @contextmanager
    def _running_out(self, name: str, pixels: int, doing: str) -> Iterator[None]:
        try:
            yield
        except (MemoryError, OutOfMemory) as error:
            card = self.card(name)
            ran_out = self._budget.ran_out(card, self._need(card, self.placement(name), pixels), doing)
            if isinstance(error, OutOfMemory):  # its message knows better
                error.metadata = {**ran_out.metadata, **error.metadata}
                raise
            raise ran_out from error

    def _stands_in(self, card: ModelCard) -> str:
        """Say for which model this one stands in as the default, as that one is not installed; empty for others."""
        configured = self._defaults.get(card.task, card.name)
        if configured == card.name or self.default(card.task) != card.name:
            return ""
        absent = self.card(configured)
        return f"{card.name} is the default as long as {configured} is not installed ({mend(absent)})"

    @property
    def _setting(self) -> str:
        return f"LIMNER_{self.server.upper()}_MEMORY_BUDGET_MB"

    def state(self, name: str) -> State:
        """Return whether the model can be used. Does not wait for one that is being loaded."""
        if name in self._loaded:
            return State.LOADED
        card = self._models[name].CARD
        runnable = card.precisions == ("native",) or bool(self._machine.engines)
        return State.INSTALLED if runnable and not self.store.missing(card) else State.NOT_INSTALLED
