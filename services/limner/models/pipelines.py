"""Diffusion models on this machine: pipelines of several parts, which lie in the hub's cache or where the configuration
says, not in the model directory. Reads no weights but to hash them."""

from __future__ import annotations

import re
from pathlib import Path

from limner.core.card import ModelCard
from limner.core.errors import ModelNotInstalled
from limner.core.placement import Placement
from limner.diffusion.config import DiffusionConfig
from limner.diffusion.digests import SHA256
from limner.diffusion.facts import variant_of
from limner.diffusion.hardware import hardware
from limner.diffusion.lora.store import LoraStore
from limner.diffusion.models import MODELS
from limner.diffusion.plan import plan
from limner.diffusion.shelf import Shelf
from limner.diffusion.sources import fetch, find, is_hub_id, is_whole
from limner.engine.fetch import StoreError
from limner.engine.machine import Machine
from limner.engine.store import Store, check_licence, check_removable, digest, mend

QUANTISED = ("int8", "fp8", "nf4")  # of weights, while values stay in another precision
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class Pipelines:
    """Pipelines(config, store), as the diffusion server is configured."""

    def __init__(self, config: DiffusionConfig, store: Store) -> None:
        self._config = config
        self._store = store
        lora_dir = Path(config.lora_dir).expanduser() if config.lora_dir else store.root / "loras"
        self._shelf = Shelf(config, LoraStore(lora_dir))

    def cards(self) -> list[ModelCard]:
        """Return the cards of all models, known and of one's own, by name; no LoRAs."""
        return sorted(map(self._shelf.card, self._shelf.names()), key=lambda card: card.name)

    def missing(self, card: ModelCard) -> str:
        """Return what keeps the model from being used, and the mend; empty if it is here."""
        try:
            self._shelf.files(self._shelf.place(card.name))
        except ModelNotInstalled as error:
            return error.message
        return ""

    def mend(self, card: ModelCard) -> str:
        """Return what installs the model: a command, or what to correct."""
        if self._shelf.ships(card.name):
            return mend(card)
        return f"limner models pull {card.name}" if self._is_of_hub(card) else "correct [diffusion.sources]"

    def size(self, card: ModelCard) -> int:
        """Return the bytes of the model's weights on this disk; where it isn't here, about what there is to fetch."""
        try:
            files = self._shelf.files(self._shelf.place(card.name))
        except ModelNotInstalled:
            return card.hub_bytes or sum(file.size_bytes for file in card.files)
        return sum(file.stat().st_size for file in files)

    def plan(
        self, card: ModelCard, machine: Machine, *, device: str, precision: str, memory_bytes: int | None
    ) -> Placement:
        """Return where and how the model would be loaded, of its published size if it isn't here. Raises BadArgument,
        OutOfMemory with the figures, and ModelNotInstalled for one of one's own that isn't here."""
        try:
            place = self._shelf.place(card.name)
            shape, variant = self._shelf.shape(place), variant_of(place)
        except ModelNotInstalled:
            if card.name not in MODELS:
                raise
            shape, variant = MODELS[card.name].SHAPE, MODELS[card.name].VARIANT
        return plan(
            shape,
            hardware(machine, device, memory_bytes=memory_bytes),
            precision="auto" if precision in QUANTISED else precision,
            quantisation=precision if precision in QUANTISED else self._config.quantisation,
            text_encoders=self._config.text_encoder_placement,
            t5=self._config.t5,
            pixels=variant.width * variant.height,
            text_length=variant.text_length,
        ).placement

    def pull(self, card: ModelCard, *, accept_licence: bool) -> str:
        """Fetch what is missing of a model from the hub and say what was done. Raises StoreError."""
        where = self._shelf.where(card.name)
        if self._shelf.ships(card.name):
            self._store.pull(card)  # fetches nothing: it says what to install if something is missing
            return "is here already"
        if not self._is_of_hub(card):
            return f"nothing to pull: it is at {where}"
        if not self.missing(card):
            return "is here already"
        check_licence(card, accepted=accept_licence)
        path = fetch(where, cache=self._config.hub_cache, t5=self._config.t5)
        try:
            find(card.name, where, cache=self._config.hub_cache, t5=self._config.t5)
        except ModelNotInstalled as error:
            raise StoreError(f"what was fetched can't be used: {error.message}") from error
        return f"pulled to {path}"

    def verify(self, card: ModelCard) -> list[str]:
        """Check every file: those that ship and those that the hub fetched by their digest, other weights by their
        length. Return what is wrong, a sentence each."""
        if self._shelf.ships(card.name):
            return self._store.verify(card)
        try:
            files = self._shelf.files(self._shelf.place(card.name))
        except ModelNotInstalled as error:
            return [error.message]
        return [f"{file} is damaged or cut off: remove it, then {self.mend(card)}" for file in files if _is_bad(file)]

    def rm(self, card: ModelCard) -> int:
        """Remove the model's repository from the hub's cache and return the bytes freed. Raises StoreError for models
        that were put elsewhere, or ship."""
        where = self._shelf.where(card.name)
        if self._shelf.ships(card.name):
            check_removable(card)
        if not self._is_of_hub(card):
            raise StoreError(f"it is at {where}, which was not pulled: remove it yourself")
        from huggingface_hub import CacheNotFound, scan_cache_dir

        try:
            cache = scan_cache_dir(self._config.hub_cache or None)
        except CacheNotFound:
            return 0
        revisions = [each.commit_hash for repo in cache.repos if repo.repo_id == where for each in repo.revisions]
        if not revisions:
            return 0
        strategy = cache.delete_revisions(*revisions)
        strategy.execute()
        return strategy.expected_freed_size

    def _is_of_hub(self, card: ModelCard) -> bool:
        return is_hub_id(self._shelf.where(card.name))


def bytes_of(text: str) -> int:
    """Return what `12GiB`, `8 GB` or a number of bytes means. Raises ValueError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if found is None or found[2] not in UNITS:
        raise ValueError(f"{text!r} is no amount of memory; give one such as 12GiB, 8GB or 8192MiB")
    return round(float(found[1]) * UNITS[found[2]])


def _is_bad(file: Path) -> bool:
    real = file.resolve()
    if SHA256.fullmatch(real.name) and real.parent.name == "blobs":
        return digest(real) != f"sha256:{real.name}"
    return not is_whole(file)
