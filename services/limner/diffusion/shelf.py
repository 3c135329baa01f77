"""Which models and LoRAs the diffusion server could have, and where their files are: the known models, and what the
configuration says of models of one's own. Nothing is loaded, and nothing kept: files may come and go. Knows no torch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from limner.core.card import ModelCard
from limner.core.errors import ModelNotInstalled, UnknownModel
from limner.diffusion.config import DiffusionConfig
from limner.diffusion.encoders import Encoder, find_encoders
from limner.diffusion.facts import variant_of
from limner.diffusion.lora.store import LoraStore
from limner.diffusion.models import MODELS
from limner.diffusion.shape import Part, Shape
from limner.diffusion.shapes import shape_of
from limner.diffusion.sources import Place, fetch, find, is_hub_id
from limner.diffusion.variant import Family, Task, Variant
from limner.engine.fetch import StoreError
from limner.engine.shipped import folder_of, ships
from limner.engine.store import mend

FAMILIES: dict[Family, str] = {"sd3": "Stable Diffusion 3", "sdxl": "Stable Diffusion XL", "sd1": "Stable Diffusion 1"}
PRECISIONS = ("fp32", "bf16", "fp16")
OWNERS_LICENCE = "as its owner says"


class Shelf:
    """Shelf(config, LoraStore(folder)): a model's name goes before a LoRA's that is the same."""

    def __init__(self, config: DiffusionConfig, loras: LoraStore) -> None:
        self._config = config
        self._loras = loras

    def names(self, task: str | None = None) -> list[str]:
        """Return the names of the models of a task, or of all: known ones, then those of one's own, and last what ships
        with Limner, which any other goes before as a default."""
        names = [*MODELS, *(name for name in self._config.sources if name not in MODELS)]
        names.sort(key=self.ships)
        return [name for name in names if task is None or task in self.tasks(name)]

    def tasks(self, name: str) -> frozenset[Task]:
        """Return what a model does; of one of one's own that isn't there, nothing."""
        if name in MODELS and name not in self._config.sources:
            return MODELS[name].VARIANT.tasks
        try:
            return self.variant(name).tasks
        except ModelNotInstalled:
            return MODELS[name].VARIANT.tasks if name in MODELS else frozenset()

    def variant(self, name: str) -> Variant:
        """Return the facts of a model from its files. Raises as `place`."""
        return variant_of(self.place(name))

    def place(self, name: str) -> Place:
        """Return where a model's files are. Raises UnknownModel, and ModelNotInstalled as `find`."""
        where, cache, t5 = self.where(name), self._config.hub_cache, self._config.t5
        if self.ships(name):
            return find(name, where, cache=cache, t5=t5, mend=mend(MODELS[name].CARD))
        return find(name, where, cache=cache, t5=t5)

    def ships(self, name: str) -> bool:
        """Say whether the model comes with Limner, and is taken from there."""
        return name in MODELS and name not in self._config.sources and ships(MODELS[name].CARD)

    def where(self, name: str) -> str:
        """Return where a model is looked for: a folder, a file, or a repository on the hub. Raises UnknownModel."""
        if name not in self.names():
            raise UnknownModel(name, available=self.names())
        return str(folder_of(name)) if self.ships(name) else self._config.sources.get(name) or MODELS[name].CARD.hub

    def is_fetchable(self, name: str) -> bool:
        """Say whether the server may fetch the model when it is loaded."""
        return not self._config.offline and is_hub_id(self.where(name))

    def fetch(self, name: str) -> Place:
        """Fetch a model from the hub and return where it is. Raises ModelNotInstalled with what went wrong."""
        try:
            fetch(self.where(name), cache=self._config.hub_cache, t5=self._config.t5)
        except StoreError as error:
            raise ModelNotInstalled(f"{name} is not installed: {error}", metadata={"model": name}) from error
        return self.place(name)

    def encoders(self, place: Place) -> dict[str, Encoder]:
        """Return the text encoders of an SD3 model; of other families nothing, which have them among their parts."""
        if place.family != "sd3":
            return {}
        return find_encoders(place, self._config.text_encoders, cache=self._config.hub_cache, t5=self._config.t5)

    def files(self, place: Place) -> list[Path]:
        """Return all weights that are served. Raises ModelNotInstalled if text encoders are missing."""
        files = {path for paths in place.weights(t5=self._config.t5).values() for path in paths}
        files |= {path for encoder in self.encoders(place).values() for path in encoder.files}
        return sorted(files)

    def shape(self, place: Place) -> Shape:
        """Return how large the model's networks are. Raises ModelNotInstalled if text encoders are missing."""
        return shape_of(place, self.encoders(place))

    def card(self, name: str) -> ModelCard:
        """Return the card of a model or LoRA. Raises UnknownModel."""
        if name in self.names():
            return MODELS[name].CARD if name in MODELS else self._own_card(name)
        if name in self._loras.names():
            return self._lora_card(name)
        raise UnknownModel(name, available=[*self.names(), *self._loras.names()])

    def cards(self, task: str | None = None) -> list[ModelCard]:
        """Return the cards of a task, or all, by name. What a card's task says is the first of what a model does: those
        that make pictures and edit too are among both. LoRAs are of the task `lora`."""
        names = self.names(task)
        if task in (None, "lora"):
            names += [name for name in self._loras.names() if name not in self.names()]
        return sorted(map(self.card, names), key=lambda card: card.name)

    def _own_card(self, name: str) -> ModelCard:
        card = ModelCard(
            name=name,
            task="generate",
            description="A model of one's own.",
            licence=OWNERS_LICENCE,
            source=self.where(name),
            precisions=PRECISIONS,
            engine="torch",
            hub=self.where(name) if is_hub_id(self.where(name)) else "",
        )
        try:
            place = self.place(name)
            variant, shape = variant_of(place), self.shape(place)
        except ModelNotInstalled:
            return card
        parts = (shape.denoiser, *shape.clip, shape.t5 or Part(0), shape.vae)
        return replace(
            card,
            task="generate" if "generate" in variant.tasks else "edit",
            description=f"A model of one's own, of the family of {FAMILIES[place.family]}.",
            size_multiple=variant.size_multiple,
            minimum_side=variant.size_multiple,
            memory_estimate_bytes=4 * sum(part.values for part in parts),
        )

    def _lora_card(self, name: str) -> ModelCard:
        path = self._loras.path(name)
        return ModelCard(
            name=name,
            task="lora",
            description="A LoRA for models of the SD3 family.",
            licence=OWNERS_LICENCE,
            source=str(path),
            memory_estimate_bytes=path.stat().st_size,
            engine="torch",
        )
