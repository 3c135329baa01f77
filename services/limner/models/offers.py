"""Which models Limner offers, over all its model servers. Knows no weights."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from limner.core.card import ModelCard

SERVERS = ("inpaint", "segment", "postprocess")


@dataclass(frozen=True)
class Offer:
    """A model and the server that runs it."""

    server: str
    card: ModelCard


def gather() -> tuple[list[Offer], list[str]]:
    """Return the models of every server that is installed, by server and name, and a sentence on each that isn't."""
    offers, absent = [], []
    for server in SERVERS:
        try:
            models = importlib.import_module(f"limner.{server}.models").MODELS
        except ModuleNotFoundError as error:
            if (error.name or "limner").startswith("limner"):  # a fault of ours, not a package that isn't there
                raise
            absent.append(
                f"the {server} server is not installed ({error.name} is missing): pip install 'limner[{server}]'"
            )
            continue
        offers += [Offer(server, models[name].CARD) for name in sorted(models)]
    return offers, absent
