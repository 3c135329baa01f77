"""LoRAs at work: each row of a batch gets additions of its own, from as many LoRAs as it likes. The model's own weights
stay as they are. Knows neither files nor steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional

from limner.core.errors import BadArgument, OutOfMemory
from limner.diffusion.lora.lora import Lora, LowRank, ScaledLora

_FUSED = {
    "to_q": ("to_qkv", 0),
    "to_k": ("to_qkv", 1),
    "to_v": ("to_qkv", 2),
    "add_q_proj": ("to_added_qkv", 0),
    "add_k_proj": ("to_added_qkv", 1),
    "add_v_proj": ("to_added_qkv", 2),
}
"""Layers that may be joined to one, and which third of its output they are."""

_SHOWN = 5  # layers that an error names


@dataclass(frozen=True)
class _Addition:
    """One layer of a LoRA at its place in a model."""

    module: torch.nn.Module
    outputs: slice  # of the module's
    low_rank: LowRank
    _placed: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def weights(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return down and up as the layer's input needs them. They are kept."""
        found = self._placed.get((device, dtype))
        if found is None:
            found = (self.low_rank.down.to(device, dtype), self.low_rank.up.to(device, dtype))
            self._placed[device, dtype] = found
        return found


@dataclass(frozen=True)
class _Run:
    """Rows next to each other that one LoRA changes alike."""

    lora: Lora
    rows: slice
    scale: float


class Adapters:
    """The places of a model that LoRAs change: `Adapters({"transformer": transformer, "text_encoder": clip})`.

    Components that are None, such as a T5 that was left out, have no places, and what a LoRA has for them is ignored.
    Build it when the model is as it will run: projections fused, layers quantised. May be used by several threads.
    What it keeps of a LoRA goes when nobody else holds the LoRA any more.
    """

    def __init__(self, components: Mapping[str, torch.nn.Module | None]) -> None:
        self._components = {name: module for name, module in components.items() if module is not None}
        self._modules = {name: dict(module.named_modules()) for name, module in self._components.items()}
        self._additions: WeakKeyDictionary[Lora, dict[str, list[_Addition]]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def attach(self, lora: Lora) -> None:
        """Find the LoRA's places and put its weights where the model's are; nothing is done twice.

        Raises BadArgument, naming layers, if the model hasn't all of them, or has them of other sizes; OutOfMemory.
        """
        self._of(lora)

    def of_text(self, loras: Sequence[ScaledLora]) -> tuple[tuple[int, float], ...]:
        """Return serials and scales of those that change text encoders: what encoded prompts depend on."""
        return tuple(
            (each.lora.serial, each.scale)
            for each in loras
            if each.scale
            and any(name.startswith("text_encoder") and name in self._components for name in each.lora.layers)
        )

    @contextmanager
    def applied(self, component: str, rows: Sequence[Sequence[ScaledLora]]) -> Iterator[None]:
        """While in it, calls of the component by this thread add to row i of a batch of `len(rows)` what `rows[i]`
        names. The batch is dimension 0 of everything in the component. Without LoRAs it costs nothing; with them, what
        was compiled runs as it was written."""
        changes: dict[torch.nn.Module, list[tuple[_Addition, _Run]]] = {}
        for run in _runs(rows):
            for addition in self._of(run.lora).get(component, ()):
                changes.setdefault(addition.module, []).append((addition, run))
        # Hooks are there for the call alone: other calls don't pay for them, and there is nothing to take back later.
        hooks = [
            module.register_forward_hook(_adding(additions, len(rows), threading.get_ident()))
            for module, additions in changes.items()
        ]
        try:
            with _uncompiled(self._modules[component].values()) if hooks else nullcontext():
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _of(self, lora: Lora) -> dict[str, list[_Addition]]:
        with self._lock:
            found = self._additions.get(lora)
            if found is None:
                found = self._placed(lora)
                self._additions[lora] = found
            return found

    def _placed(self, lora: Lora) -> dict[str, list[_Addition]]:
        placed: dict[str, list[_Addition]] = {}
        faults: list[str] = []
        layers = {name: layers for name, layers in lora.layers.items() if name in self._components}
        for name, of_component in layers.items():
            for path, low_rank in of_component.items():
                place = _place(self._modules[name], path)
                fault = _fault(place, low_rank)
                if fault:
                    faults.append(f"{name}.{path} ({fault})")
                elif place:
                    placed.setdefault(name, []).append(_Addition(*place, low_rank))
        if faults:
            raise _unfitting(lora, faults, sum(map(len, layers.values())))
        try:
            for name, additions in placed.items():
                device, dtype = _kind(self._components[name])
                for addition in additions:
                    addition.weights(device, dtype)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"the device has not enough memory for LoRA {lora.name!r}, {lora.byte_count >> 20} MiB as saved: leave "
                f"it out, or try again when less is going on",
                metadata={"lora": lora.name},
            ) from error
        return placed


def _place(modules: Mapping[str, torch.nn.Module], path: str) -> tuple[torch.nn.Module, slice] | None:
    parent, _, last = path.rpartition(".")
    fused, third = _FUSED.get(last, ("", 0))
    module: Any = modules.get(f"{parent}.{fused}") if fused else None
    if module is not None:
        count = module.out_features // 3
        return module, slice(third * count, (third + 1) * count)
    module = modules.get(path)
    if module is None or not hasattr(module, "in_features"):
        return None
    return module, slice(0, module.out_features)


def _fault(place: tuple[Any, slice] | None, low_rank: LowRank) -> str:
    if place is None:
        return "not there"
    module, outputs = place
    sizes = (module.in_features, outputs.stop - outputs.start)
    wanted = (low_rank.down.shape[1], low_rank.up.shape[0])
    if sizes != wanted:
        return f"{wanted[0]} to {wanted[1]} channels, and {sizes[0]} to {sizes[1]} here"
    return ""


def _unfitting(lora: Lora, faults: Sequence[str], count: int) -> BadArgument:
    more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return BadArgument(
        f"LoRA {lora.name!r} was made for another model: {len(faults)} of its {count} layers don't fit: "
        f"{', '.join(faults[:_SHOWN])}{more}; take one that was trained for this model",
        field="options.loras",
        metadata={"lora": lora.name},
    )


def _kind(module: torch.nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return device and dtype of the layers' inputs, as far as weights tell: those of a byte are quantised."""
    weight = next(weight for weight in module.parameters() if weight.is_floating_point() and weight.itemsize > 1)
    return weight.device, weight.dtype


def _uncompiled(modules: Iterable[torch.nn.Module]) -> AbstractContextManager[Any]:
    """Hooks that come and go would have everything compiled anew for each step."""
    if any(module._compiled_call_impl is not None for module in modules):
        stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance
    return nullcontext()


def _runs(rows: Sequence[Sequence[ScaledLora]]) -> Iterator[_Run]:
    """Rows as slices, which are views, so that nothing is gathered or copied."""
    first = 0
    for index in range(1, len(rows) + 1):
        if index == len(rows) or rows[index] != rows[first]:
            yield from (_Run(each.lora, slice(first, index), each.scale) for each in rows[first] if each.scale)
            first = index


def _adding(
    additions: Sequence[tuple[_Addition, _Run]], row_count: int, thread: int
) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
    def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if threading.get_ident() != thread:
            return
        (values,) = inputs
        if len(values) != row_count:
            raise ValueError(f"a batch of {len(values)} rows where LoRAs were given for {row_count}")
        for addition, run in additions:
            down, up = addition.weights(values.device, values.dtype)
            change = functional.linear(functional.linear(values[run.rows], down), up)
            output[run.rows, ..., addition.outputs].add_(change, alpha=run.scale * addition.low_rank.scale)

    return add
