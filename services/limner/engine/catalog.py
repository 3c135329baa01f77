"""The models of one server: which there are, which is the default, where each runs, and which are in memory.

Knows no protocol and no task; a model is a module with a `CARD` and a `load`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from enum import Enum
from typing import Any, Protocol

from limner.core.card import ModelCard
from limner.core.errors import BadArgument, ModelNotInstalled, UnknownModel
from limner.core.placement import Placement
from limner.engine.machine import Machine, this_machine
from limner.engine.placement import check, place
from limner.engine.store import Store, mend
from limner.runtime.config import ConfigError, ServerConfig

_log = logging.getLogger("limner.models")


class ModelSource(Protocol):
    """What a model's file offers. `load` returns the model ready to run; the server knows its class."""

    CARD: ModelCard

    def load(self, placement: Placement, store: Store) -> Any: ...


class State(Enum):
    """Whether a model can be used at once."""

    NOT_INSTALLED = "not installed"
    INSTALLED = "installed"
    LOADED = "loaded"


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
        self._loaded: dict[str, Any] = {}
        self._lock = threading.Lock()
        try:
            check(self._machine, config.device, config.precision)
            for task, name in self._defaults.items():
                self.card(name, task)
        except (BadArgument, UnknownModel) as error:
            raise ConfigError(f"{server}: {error.message}") from error

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
        config = self._config
        return place(
            self.card(name),
            self._machine,
            device=config.device,
            precision=config.precision,
            thread_count=config.threads,
        )

    def get(self, name: str) -> Any:
        """Return the loaded model, loading it first if need be. Call it on the device's thread: it may take seconds.

        Raises UnknownModel, and ModelNotInstalled with the command that mends it."""
        with self._lock:
            if name not in self._loaded:
                card = self.card(name)
                if missing := self.store.missing(card):
                    raise ModelNotInstalled(
                        f"{name} is not installed ({', '.join(missing)} missing): {mend(card)}",
                        metadata={"model": name},
                    )
                placement = self.placement(name)
                began = time.perf_counter()
                self._loaded[name] = self._models[name].load(placement, self.store)
                _log.info(
                    "loaded %s in %.1f s: %s, %s, %s (%s)",
                    name,
                    time.perf_counter() - began,
                    placement.device,
                    placement.precision,
                    placement.engine,
                    placement.reason,
                )
            return self._loaded[name]

    def unload(self, name: str) -> None:
        """Forget a loaded model, so that its memory goes. Call it on the device's thread: nothing uses it then."""
        self.card(name)
        with self._lock:
            self._loaded.pop(name, None)

    def state(self, name: str) -> State:
        """Return whether the model can be used. Does not wait for one that is being loaded."""
        if name in self._loaded:
            return State.LOADED
        card = self._models[name].CARD
        runnable = card.precisions == ("native",) or bool(self._machine.engines)
        return State.INSTALLED if runnable and not self.store.missing(card) else State.NOT_INSTALLED
