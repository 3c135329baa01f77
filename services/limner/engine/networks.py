"""Opens a model's networks from the store: the file that was made for the placement's precision.

    session = open_network(store, card, "network.onnx", placement)
    (filled,) = session.run({"image": image, "mask": mask}, check=job.check)

Knows how files of a precision are called, not what they compute.
"""

from __future__ import annotations

from pathlib import PurePath

from limner.core.card import ModelCard
from limner.core.placement import Placement
from limner.engine.session import Session, open_session
from limner.engine.store import Store

OWN_FILES = ("fp16", "int8")
"""Precisions that a network is written in anew; of the others the engine takes care, with the fp32 file."""


def open_network(store: Store, card: ModelCard, file_name: str, placement: Placement) -> Session:
    """Open one network of `card`, given the name of its fp32 file. Inputs and outputs are float32 in every precision.

    Raises ModelNotInstalled if the file is not there, and as `open_session`."""
    return open_session(store.path(card, in_precision(file_name, placement.precision)), placement)


def in_precision(file_name: str, precision: str) -> str:
    """Return the name of the file for a precision: network.onnx in int8 is network.int8.onnx."""
    path = PurePath(file_name)
    return f"{path.stem}.{precision}{path.suffix}" if precision in OWN_FILES else file_name
