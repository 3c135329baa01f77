"""The models of the diffusion server: which there are, where their files are, and which are in memory.

    library.variant("sd3.5-medium")                    # facts that requests are checked against
    lease = library.lease("sd3.5-medium", job)         # loaded, and stays so until the lease is closed
    lease.model

Offers what `limner.engine.catalog.Catalog` offers to the models' service. Several models stay in memory as long as
they fit; then the one that was not used for longest goes, unless a call uses it. Knows no torch until one is loaded.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from limner.core.card import ModelCard
from limner.core.errors import LimnerError, ModelNotInstalled, OutOfMemory, UnknownModel
from limner.core.placement import Placement
from limner.diffusion.config import DiffusionConfig
from limner.diffusion.digests import Digests
from limner.diffusion.facts import variant_of
from limner.diffusion.hardware import hardware
from limner.diffusion.lora.store import LoraStore
from limner.diffusion.model import Model
from limner.diffusion.models import MODELS
from limner.diffusion.plan import Plan
from limner.diffusion.plan import plan as make_plan
from limner.diffusion.shelf import Shelf
from limner.diffusion.sources import Place
from limner.diffusion.variant import Task, Variant
from limner.engine import memory
from limner.engine.budget import Measured
from limner.engine.catalog import State
from limner.engine.machine import Machine, this_machine
from limner.engine.store import Store
from limner.runtime.config import ConfigError
from limner.runtime.job import Job

_log = logging.getLogger("limner.models")

WAIT_S = 0.05  # between looks at whether a call that waits for another's loading is over
TASKS = ("generate", "edit")  # of models; LoRAs have none of these
RETRY_S = 10.0  # after which a call may find room that others use now
SOON_HASHED = 1 << 30  # bytes of weights that are hashed before a model is used rather than beside

PARTS = 4  # that `limner.diffusion.loading` tells of; before them room is made, after them the model tries itself out

LORA_PLACEMENT = Placement("cpu", "native", "torch", "a LoRA: read into memory, and applied by the calls that name it")


@dataclass
class _Loaded:
    """A model in memory."""

    model: Model
    plan: Plan
    measured: Measured
    files: list[Path]
    lease_count: int = 0
    is_doomed: bool = False  # it goes when the last lease is closed, unless it was wanted again meanwhile
    last_use: float = 0.0  # of time.monotonic()


class Lease:
    """Keeps a model loaded until it is closed."""

    def __init__(self, model: Model, close: Callable[[], None]) -> None:
        self.model = model
        self._close = close
        self._lock = threading.Lock()
        self._is_open = True

    def close(self) -> None:
        """Let go of the model. As often as one likes, from any thread."""
        with self._lock:
            was_open, self._is_open = self._is_open, False
        if was_open:
            self._close()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Library:
    """Library(config, store): safe to use from several threads.

    Raises ConfigError if a default model is neither known nor among the configured sources."""

    def __init__(self, config: DiffusionConfig, store: Store, machine: Machine | None = None) -> None:
        self.server = "diffusion"
        self.loras = LoraStore(Path(config.lora_dir).expanduser() if config.lora_dir else store.root / "loras")
        self._shelf = Shelf(config, self.loras)
        self._config = config
        self._machine = machine or this_machine()
        self._store = store
        self._digests = Digests(store.root / "diffusion-digests.json")
        self._loaded: dict[str, _Loaded] = {}
        self._measured: dict[str, Measured] = {}
        self._lock = threading.Lock()  # of what is loaded and leased; never held for long
        self._loading = threading.Lock()  # one model is loaded at a time
        self._limit = config.memory_budget_mb << 20 or sys.maxsize  # bytes that all models may take together
        for setting in ("default_model", "default_edit_model"):
            name = getattr(config, setting)
            if name and name not in self._shelf.names():
                raise ConfigError(
                    f"diffusion: {setting} is {name!r}, of which nothing is known; give one of "
                    f"{', '.join(self._shelf.names())}, or say in [diffusion.sources] where it is"
                )

    # What there is.

    def card(self, name: str) -> ModelCard:
        """Return the card of a model or LoRA. Raises UnknownModel."""
        return self._shelf.card(name)

    def cards(self, task: str | None = None) -> list[ModelCard]:
        """Return the cards of a task (`generate`, `edit`, `lora`), or all, by name."""
        return self._shelf.cards(task)

    def default(self, task: str) -> str:
        """Return the model that a request without a name gets: the configured one, or while that isn't installed, the
        first of the task that is. Empty if the task has none."""
        names = self._shelf.names(task)
        configured = self._config.default_model
        if task == "edit":
            configured = self._config.default_edit_model or configured
        if configured not in names and (task not in TASKS or self._shelf.tasks(configured)):  # else it isn't here
            configured = names[0] if names else ""
        if configured and self._config.offline and self.state(configured) is State.NOT_INSTALLED:
            return next((name for name in names if self.state(name) is not State.NOT_INSTALLED), configured)
        return configured

    def model_for(self, name: str | None, task: Task) -> str:
        """Return the model that a request means: the one it names, or the task's default. Raises UnknownModel, with the
        names of that task, also for a model that doesn't do it; ModelNotInstalled for one of one's own that isn't
        here."""
        chosen = name or self.default(task)
        if chosen not in (names := self._shelf.names(task)):
            if chosen in self._shelf.names() and not self._shelf.tasks(chosen):
                self._shelf.variant(chosen)  # says what is missing
            raise UnknownModel(chosen, available=names, that=f"can {task}" if chosen in self._shelf.names() else "")
        return chosen

    def variant(self, name: str) -> Variant:
        """Return the facts of a model, from its own files if they are here. Raises UnknownModel, and ModelNotInstalled
        unless it can be fetched when it is loaded."""
        try:
            return self._shelf.variant(name)
        except ModelNotInstalled:
            if name in MODELS and self._shelf.is_fetchable(name):
                return MODELS[name].VARIANT
            raise

    def state(self, name: str) -> State:
        """Return whether a model or LoRA can be used. Does not wait for one that is being loaded."""
        if name in self._loaded:
            return State.LOADED
        if name not in self._shelf.names():
            return State.LOADED if self.loras.is_loaded(name) else State.INSTALLED
        try:
            self._shelf.files(self._shelf.place(name))
        except ModelNotInstalled:
            return State.NOT_INSTALLED
        return State.INSTALLED

    def placement(self, name: str) -> Placement:
        """Return where the model runs, or would, and why. Raises ModelNotInstalled, and OutOfMemory with the
        numbers."""
        if (loaded := self._loaded.get(name)) is not None:
            return loaded.plan.placement
        if name not in self._shelf.names():
            self.card(name)
            return LORA_PLACEMENT
        return self._plan(self._shelf.place(name)).placement

    def digest(self, name: str) -> str:
        """Return the sha256 of the weights as they are served, in lower-case hexadecimal; of several files that of
        their digests, one after the other. Empty for what is not installed or was not hashed yet, which is done when it
        is loaded."""
        if self._shelf.ships(name):
            return self._shelf.card(name).digest
        try:
            if (loaded := self._loaded.get(name)) is not None:
                return self._digests.of(loaded.files)
            if name not in self._shelf.names():
                return self._digests.of([self.loras.path(name)])
            return self._digests.of(self._shelf.files(self._shelf.place(name)))
        except (LimnerError, OSError):
            return ""

    def measured(self, name: str) -> Measured | None:
        """Return what the model was found to take, also after it was unloaded; None as long as it was not loaded."""
        return self._measured.get(name)

    # Loading and unloading.

    def get(self, name: str, *, job: Job | None = None) -> None:
        """Load a model or LoRA, unless it is. Raises as `lease`."""
        if name in self._shelf.names():
            self.lease(name, job).close()
            return
        self.card(name)
        with nullcontext() if job is None else job.stage("load"):
            self.loras.load(name)
            self._digests.of([self.loras.path(name)], read=True)

    def unload(self, name: str) -> None:
        """Forget a loaded model or LoRA, so that its memory goes; a model that calls still use, when the last of them
        is over. Raises UnknownModel."""
        if name not in self._shelf.names():
            self.card(name)
            self.loras.unload(name)
            return
        with self._lock:
            loaded = self._loaded.get(name)
            if loaded is None:
                return
            loaded.is_doomed = True
        self._let_go(name, loaded)

    def lease(self, name: str, job: Job | None = None) -> Lease:
        """Return a model that is loaded and stays so until the lease is closed. Loads it first if need be, which may
        take minutes and is told as the job's stage `load`; what isn't here is fetched if the server may.

        Raises UnknownModel, ModelNotInstalled with the mend, OutOfMemory with the numbers, and what the job's check
        raises while it waits for another model to be loaded."""
        if name not in self._shelf.names():
            raise UnknownModel(name, available=self._shelf.names())
        if (lease := self._leased(name)) is not None:
            return lease
        with self._turn(job):
            if (lease := self._leased(name)) is not None:  # another call has loaded it while this one waited
                return lease
            place = self._found(name, job)
            with nullcontext(lambda done: None) if job is None else job.stage("load", PARTS + 2) as step:
                loaded = self._load(place, step)
            with self._lock:
                self._loaded[name] = loaded
                self._measured[name] = loaded.measured
                return self._lent(name, loaded)  # before anybody can unload it

    @contextmanager
    def _turn(self, job: Job | None) -> Iterator[None]:
        """Have loading to oneself; give up waiting for it when the call is over."""
        while not self._loading.acquire(timeout=WAIT_S):
            if job is not None:
                job.check()
        try:
            yield
        finally:
            self._loading.release()

    def _leased(self, name: str) -> Lease | None:
        with self._lock:
            loaded = self._loaded.get(name)
            return None if loaded is None else self._lent(name, loaded)

    def _lent(self, name: str, loaded: _Loaded) -> Lease:
        """Return a lease of a loaded model. Call it with the lock held."""
        loaded.is_doomed = False  # rather than to have it in memory twice
        loaded.lease_count += 1
        loaded.last_use = time.monotonic()
        return Lease(loaded.model, lambda: self._closed(name, loaded))

    def _closed(self, name: str, loaded: _Loaded) -> None:
        with self._lock:
            loaded.lease_count -= 1
            loaded.last_use = time.monotonic()
        self._let_go(name, loaded)

    def _let_go(self, name: str, loaded: _Loaded) -> None:
        """Forget a model that is to go, if nobody uses it."""
        with self._lock:
            if not loaded.is_doomed or loaded.lease_count or self._loaded.get(name) is not loaded:
                return
            del self._loaded[name]
        del loaded.model
        _collect(loaded.plan.placement.device)
        _log.info("unloaded %s", name)

    def _found(self, name: str, job: Job | None) -> Place:
        """Return where a model is, after fetching it if it isn't here and the server may."""
        try:
            return self._shelf.place(name)
        except ModelNotInstalled:
            if not self._shelf.is_fetchable(name):
                raise
        with nullcontext() if job is None else job.stage("fetch"):
            return self._shelf.fetch(name)

    def _load(self, place: Place, step: Callable[[int], None]) -> _Loaded:
        """Read a model into memory as planned, and let it find out how much it takes at once."""
        import torch

        from limner.diffusion.memory import is_out_of_memory

        began = time.perf_counter()
        if not self._loaded:  # later ones would disturb who computes
            torch.set_num_threads(self._config.threads)
        self._check(place.name)
        plan = self._plan(place, measure=True)
        device = plan.placement.device
        self._make_room(plan)
        step(1)
        before = memory.in_use(device)
        try:
            model = self._read(place, plan, lambda done: step(1 + done))
        except Exception as error:
            _collect(device)
            if isinstance(error, LimnerError) or not is_out_of_memory(error):
                raise
            raise self._ran_out(place.name, plan) from error
        memory.trim()
        taken = max(memory.in_use(device) - before, 0)
        files = self._shelf.files(place)
        self._hash(place.name, files)
        _log.info(
            "loaded %s in %.1f s, %d MiB: %s, %s (%s)",
            place.name,
            time.perf_counter() - began,
            taken >> 20,
            device,
            plan.placement.precision,
            plan.placement.reason,
        )
        return _Loaded(model, plan, Measured(plan.placement.precision, taken), files)

    def _read(self, place: Place, plan: Plan, step: Callable[[int], None]) -> Model:
        from limner.diffusion.loading import load_legacy_parts, load_sd3

        variant, config = variant_of(place), self._config
        if place.family != "sd3":
            from limner.diffusion.legacy.model import LegacyModel

            parts = load_legacy_parts(
                place,
                plan,
                text_encoders=config.text_encoders,
                hub_cache=config.hub_cache,
                offline=config.offline,
            )
            step(PARTS + 1)
            return LegacyModel(parts, variant)
        from limner.diffusion.sd3.model import Sd3Model

        components = load_sd3(
            place,
            plan,
            text_encoders=config.text_encoders,
            hub_cache=config.hub_cache,
            preview_decoder=config.preview_decoder,
            step=step,
        )
        model = Sd3Model(
            components,
            variant,
            loras=self.loras,
            prompt_cache_bytes=config.prompt_cache_mb << 20,
            vae_tiling=plan.vae_tiling,
        )
        model.profile()
        if config.compile and not plan.group_offload:
            components.transformer.compile_blocks()
        step(PARTS + 1)
        return model

    def _plan(self, place: Place, *, measure: bool = False) -> Plan:
        """Return how a model would be loaded if those that nobody uses made room for it. With `measure`, the CPU's
        precisions are tried, which imports torch."""
        shape, variant = self._shelf.shape(place), variant_of(place)
        there = hardware(self._machine, self._config.device, measure=measure)
        with self._lock:
            idle = sum(each.plan.needed_bytes for each in self._loaded.values() if not each.lease_count)
            used = sum(each.plan.needed_bytes for each in self._loaded.values() if each.lease_count)
        there = replace(there, free_bytes=min(there.free_bytes + idle, max(self._limit - used, 0)))
        try:
            return make_plan(
                shape,
                there,
                precision=self._config.precision,
                quantisation=self._config.quantisation,
                text_encoders=self._config.text_encoder_placement,
                t5=self._config.t5,
                pixels=variant.width * variant.height,
                text_length=variant.text_length,
            )
        except OutOfMemory as error:
            if used:
                error.retry_after = RETRY_S
            raise

    def _make_room(self, plan: Plan) -> None:
        """Unload models that nobody uses, those that were not used for longest first, until the plan's memory is
        free."""
        device = plan.placement.device
        while True:
            with self._lock:
                idle = [(each.last_use, name) for name, each in self._loaded.items() if not each.lease_count]
                held = sum(each.plan.needed_bytes for each in self._loaded.values())
                free = memory.free(device)
                has_room = held + plan.needed_bytes <= self._limit and (free is None or plan.needed_bytes <= free)
                if has_room or not idle:
                    return
                name = min(idle)[1]
                loaded = self._loaded.pop(name)
            del loaded
            _collect(device)
            _log.info("unloaded %s to make room", name)

    def _check(self, name: str) -> None:
        """Hash the files of a model that ships. Raises ModelNotInstalled if they are not those of its card."""
        if self._shelf.ships(name):
            card = self._shelf.card(name)
            for file in card.files:
                self._store.path(card, file.name)

    def _hash(self, name: str, files: list[Path]) -> None:
        """Find out the digest, unless it is known: at once if it takes no time, else beside."""
        if self._shelf.ships(name) or self._digests.of(files):
            return
        if sum(file.stat().st_size for file in files) <= SOON_HASHED:
            self._digests.of(files, read=True)
            return
        threading.Thread(
            target=self._digests.of, args=(files,), kwargs={"read": True}, name="limner-digest", daemon=True
        ).start()

    def _ran_out(self, name: str, plan: Plan) -> OutOfMemory:
        free = memory.free(plan.placement.device) or 0
        return OutOfMemory(
            f"the memory ran out while {name} was being loaded: it takes about {plan.needed_bytes >> 20} MiB, and "
            f"{free >> 20} MiB are free; end other programs, or set quantisation or text_encoder_placement to what "
            "takes less",
            metadata={"needed_bytes": str(plan.needed_bytes), "free_bytes": str(free)},
        )


def _collect(device: str) -> None:
    """Give back what nobody refers to any more."""
    memory.collect()
    if device != "cpu":
        import torch

        from limner.diffusion.memory import release

        release(torch.device(device))
