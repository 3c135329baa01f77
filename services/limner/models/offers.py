"""Which models Limner offers, over all its model servers. Knows no weights."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

from limner.core.card import ModelCard
from limner.diffusion.config import DiffusionConfig
from limner.engine.store import open_store
from limner.models.pipelines import Pipelines
from limner.runtime.config import load_config

SERVERS = ("inpaint", "segment", "postprocess", "diffusion")
DIFFUSION_PACKAGES = ("torch", "diffusers", "transformers")  # facts of its models are there without them


@dataclass(frozen=True)
class Offer:
    """A model and the server that runs it."""

    server: str
    card: ModelCard


def pipelines(model_dir: str = "") -> Pipelines:
    """Return the diffusion models as the server's configuration has them (LIMNER_CONFIG, LIMNER_DIFFUSION_*). Raises
    ConfigError."""
    config = load_config("diffusion", DiffusionConfig, None)
    return Pipelines(config, open_store(model_dir or config.model_dir))


def gather() -> tuple[list[Offer], list[str]]:
    """Return the models of every server that is installed, by server and name, and a sentence on each that isn't.
    Raises ConfigError for the diffusion server's configuration, which may name models."""
    offers, absent = [], []
    for server in SERVERS:
        try:
            cards = _cards(server)
        except ModuleNotFoundError as error:
            if (error.name or "limner").startswith("limner"):  # a fault of ours, not a package that isn't there
                raise
            absent.append(
                f"the {server} server is not installed ({error.name} is missing): pip install 'limner[{server}]'"
            )
            continue
        offers += [Offer(server, card) for card in cards]
    return offers, absent


def _cards(server: str) -> list[ModelCard]:
    if server == "diffusion":
        for package in DIFFUSION_PACKAGES:
            if importlib.util.find_spec(package) is None:
                raise ModuleNotFoundError(name=package)
        return pipelines().cards()
    models = importlib.import_module(f"limner.{server}.models").MODELS
    return [models[name].CARD for name in sorted(models)]
