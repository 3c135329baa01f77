"""Puts a checkpoint's tensors into a network, after comparing every name and shape. Knows no file format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from limner.export.checkpoint import BadCheckpoint

NAMED = 5  # of each fault, that a message tells; the rest it counts
SAME = 1e-4  # how near a constant in a file has to be to the network's own

T = TypeVar("T")


def load_parameters(
    network: nn.Module, tensors: Mapping[str, Tensor], prefixes: Sequence[str], beside: Sequence[str] = ()
) -> None:
    """Set every parameter and buffer of `network` from `tensors`, converted to the network's types.

    One of `prefixes` may stand before all names: the first with which the most of them are found. Names that begin with
    one of `beside` are left aside. Counters of batches don't matter, they may be missing; constants that the network
    computes itself may be there, if they are the same. Raises BadCheckpoint, which names what is missing, in excess, or
    of another shape; the network is as it was then.
    """
    wanted = network.state_dict()
    prefix = max(prefixes, key=lambda prefix: sum(f"{prefix}{name}" in tensors for name in wanted))
    found = {name: tensors[f"{prefix}{name}"] for name in wanted if f"{prefix}{name}" in tensors}
    if not found:
        raise BadCheckpoint(
            f"these are another network's weights: none of the {len(wanted)} parameters is there, such as "
            f"{next(iter(wanted))}; what is there: {_listed(sorted(tensors), str)}"
        )
    constants = {name: buffer for name, buffer in network.named_buffers() if name not in wanted}
    rest = {name: tensor for name, tensor in tensors.items() if name.removeprefix(prefix) not in found}
    extra = [
        name
        for name, tensor in rest.items()
        if not name.startswith(tuple(beside)) and not _same(tensor, constants.get(name.removeprefix(prefix)))
    ]
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    misshapen = [name for name in found if found[name].shape != wanted[name].shape]
    faults = [
        f"{len(names)} {kind}: {_listed(names, tell)}"
        for kind, names, tell in (
            ("missing", missing, lambda name: f"{name} {_shape(wanted[name])}"),
            ("in excess", extra, lambda name: f"{name} {_shape(tensors[name])}"),
            (
                "of another shape",
                misshapen,
                lambda name: f"{name} expected {_shape(wanted[name])}, found {_shape(found[name])}",
            ),
        )
        if names
    ]
    if faults:
        raise BadCheckpoint(f"of {len(wanted)} parameters {'; '.join(faults)}")
    network.load_state_dict({**wanted, **found}, strict=True)


def _same(tensor: Tensor, constant: Tensor | None) -> bool:
    return (
        constant is not None
        and tensor.shape == constant.shape
        and torch.allclose(tensor.to(constant.dtype), constant, rtol=0, atol=SAME)
    )


def _listed(values: Collection[T], tell: Callable[[T], str]) -> str:
    first = ", ".join(tell(value) for value in list(values)[:NAMED])
    return f"{first} and {len(values) - NAMED} more" if len(values) > NAMED else first


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"
