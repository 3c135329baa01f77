"""Makes ONNX files in the store of published checkpoints: parameters compared, outputs compared, differences measured.

    pull(store, card, ...)             fetches the card's files first, and throws them away afterwards
    import_files(store, card, ...)     takes files that are on disk, the published ones or others of the same network

Nothing in the store changes until every file is made and found good; then all get their names, and card.json says what
they were made of. Knows no network: `exports.EXPORTS` does.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from limner.core.card import ModelCard, WeightFile
from limner.core.errors import LimnerError
from limner.engine.fetch import Report, StoreError
from limner.engine.machine import this_machine
from limner.engine.networks import OWN_FILES, in_precision
from limner.engine.onnx_check import check_onnx
from limner.engine.placement import LARGEST_DIFFERENCE
from limner.engine.placement import PRECISIONS as OFFERED
from limner.engine.store import Store, check_licence, digest, is_right
from limner.export import photographs
from limner.export.checkpoint import BadCheckpoint, read_tensors
from limner.export.exports import EXPORTS, Export
from limner.export.onnx_file import write_onnx
from limner.export.parameters import load_parameters
from limner.export.precisions import difference, fills, write_fp16, write_int8

EXPORTER_VERSION = 1
PRECISIONS = OFFERED[1:]  # without `auto`
TOLERANCE = 1e-3  # between torch and ONNX Runtime, of the largest value, or of one if that is less
SIDE = 256  # of the photographs, where the network leaves it open

Tell = Callable[[str], None]
"""Told in a sentence what is being done."""


@dataclass(frozen=True)
class Source:
    """A file of a card, where it lies, and where it came from."""

    file: WeightFile
    path: Path
    origin: str  # the URL, or the name of the file that was given

    @property
    def is_published(self) -> bool:
        return is_right(self.path, self.file)


def pull(
    store: Store,
    card: ModelCard,
    *,
    mirror: str = "",
    accept_licence: bool = False,
    precisions: Collection[str] = PRECISIONS,
    report: Report | None = None,
    tell: Tell,
) -> list[str]:
    """Fetch the published weights of `card`, export them, and return the names of the files made; nothing if they are
    here. What was fetched stays until its export has succeeded. Raises StoreError."""
    if not store.missing(card):
        return []
    check_licence(card, accepted=accept_licence)
    with store.locked(card):
        if not store.missing(card):  # another process has made it while this one waited
            return []
        sources = []
        for file in card.files:
            url = store.fetch(card, file, mirror=mirror, report=report)
            sources.append(Source(file, store.folder(card) / file.name, url))
        return _export(store, card, sources, precisions, tell)


def import_files(
    store: Store,
    card: ModelCard,
    paths: Sequence[Path],
    *,
    accept_licence: bool = False,
    precisions: Collection[str] = PRECISIONS,
    tell: Tell,
) -> list[str]:
    """Export files that lie on this machine, in the place of what is there, and return the names of the files made.

    Files are known by the names they have in the card; one of another name stands for the first that is still open.
    They need not be the published ones, only weights of the same network. Raises StoreError.
    """
    sources = [Source(file, path, path.name) for file, path in _assigned(card, paths)]
    check_licence(card, accepted=accept_licence)
    with store.locked(card):
        store.folder(card).mkdir(exist_ok=True)
        return _export(store, card, sources, precisions, tell)


def _assigned(card: ModelCard, paths: Sequence[Path]) -> list[tuple[WeightFile, Path]]:
    names = [file.name for file in card.files]
    if len(paths) != len(names):
        made_of = f"{len(names)} files, in this order:" if len(names) > 1 else "one file:"
        raise StoreError(f"{card.name} is made from {made_of} {', '.join(names)}")
    if absent := [str(path) for path in paths if not path.is_file()]:
        raise StoreError(f"there is no file {', '.join(absent)}")
    by_name = {path.name: path for path in paths if path.name in names}
    others = [path for path in paths if path not in by_name.values()]
    if len(by_name) + len(others) != len(names):
        raise StoreError(f"a file is given twice; {card.name} is made from {', '.join(names)}")
    return [(file, by_name[file.name] if file.name in by_name else others.pop(0)) for file in card.files]


def _export(
    store: Store, card: ModelCard, sources: Sequence[Source], precisions: Collection[str], tell: Tell
) -> list[str]:
    exports = EXPORTS[card.name]
    made: dict[str, Path] = {}

    def say(text: str) -> None:
        tell(f"{card.name}: {text}")

    differences: dict[str, float] = {}
    with _all_or_nothing(store, card, made):
        for source in sources:
            is_published = "the published file" if source.is_published else "not the published file"
            say(f"reading {source.path.name}, {is_published}")
            tensors = read_tensors(source.path)
            for export in (export for export in exports if export.file == source.file.name):
                part = made[export.onnx] = store.folder(card) / f"{export.onnx}.part"
                _write(export, source, tensors, part, say)
        if len(exports) == 1 and set(exports[0].inputs()) == {"image", "mask"}:
            differences = _add_precisions(exports[0], made, precisions, say)
        record = {
            "made_from": {source.file.name: _origin(source) for source in sources},
            "differences": differences,
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "made_by": {
                "exporter": EXPORTER_VERSION,
                "torch": torch.__version__,
                "onnxruntime": onnxruntime.__version__,
            },
        }
        store.keep(card, made, record)
    return list(made)


def _origin(source: Source) -> dict[str, str]:
    found = {"digest": digest(source.path), "from": source.origin}
    return {**found, "published": source.file.digest} if source.is_published else found


@contextmanager
def _all_or_nothing(store: Store, card: ModelCard, made: Mapping[str, Path]) -> Iterator[None]:
    """Remove what was made if not all of it was, and say a full disk, or a network that can't be run, in words."""
    try:
        yield
    except LimnerError as error:
        raise StoreError(f"what was made can't be used: {error.message}; nothing was kept") from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise store.full(f"{card.name}'s export", 0) from error
    finally:
        for path in made.values():
            path.unlink(missing_ok=True)


def _write(export: Export, source: Source, tensors: Mapping[str, Tensor], target: Path, tell: Tell) -> None:
    """Write the ONNX file of one network to `target`, and run it once beside torch."""
    network = export.network().eval().requires_grad_(False)
    try:
        load_parameters(network, tensors, export.prefixes, export.beside)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"{source.path.name} does not fit: {error}") from error
    tell(f"writing {export.onnx}")
    wrapped = export.wrap(network).eval()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        inputs = export.inputs()
    write_onnx(wrapped, inputs, export.outputs, target, dynamic=export.dynamic)
    check_onnx(target)
    tell(f"comparing {export.onnx} with torch")
    _compare(export, wrapped, inputs, target)


def _compare(export: Export, network: nn.Module, inputs: dict[str, Tensor], path: Path) -> None:
    with torch.inference_mode():
        outputs = network(*inputs.values())
    expected = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    known = {value.name for value in session.get_inputs()}  # one that changes nothing is left out of the file
    found = session.run(list(export.outputs), {name: inputs[name].numpy() for name in inputs if name in known})
    for name, one, other in zip(export.outputs, expected, found, strict=True):
        apart = float(np.abs(one.numpy() - other).max())
        largest = max(1.0, float(one.abs().max()))
        if not apart <= TOLERANCE * largest:  # so that NaN is refused
            raise StoreError(
                f"{export.onnx} gives other values than torch: {name} differs by {apart:.3g} at {largest:.3g}; "
                "nothing was kept"
            )


def _add_precisions(export: Export, made: dict[str, Path], precisions: Collection[str], tell: Tell) -> dict[str, float]:
    """Make the precisions asked for that are near enough to fp32, and return the difference of each that was tried."""
    source, differences = made[export.onnx], {}
    wanted = [name for name in PRECISIONS[1:] if name in precisions]
    if not wanted:
        return {}
    side = SIDE if 2 in export.dynamic.get("image", {}) else export.inputs()["image"].shape[2]
    held_out = photographs.examples(photographs.HELD_OUT, side)
    expected = fills(source, "fp32", "onnxruntime", held_out)
    machine = this_machine()
    on_cpu = "openvino" if "openvino" in machine.engines else "onnxruntime"
    for precision in wanted:
        if precision == "bf16" and not (machine.bf16_unit and on_cpu == "openvino"):
            tell("bf16 is not measured: this machine doesn't multiply in it")
            continue
        name = in_precision(export.onnx, precision)
        path = source
        if precision in OWN_FILES:
            tell(f"writing {name}")
            path = made[name] = source.with_name(f"{name}.part")
            if precision == "int8":
                write_int8(source, path, photographs.examples(photographs.CALIBRATION, side))
            else:
                write_fp16(source, path)
        found = fills(path, precision, "onnxruntime" if precision == "fp16" else on_cpu, held_out)
        apart = difference(found, expected, held_out)
        is_near = apart <= LARGEST_DIFFERENCE
        tell(f"{precision} differs from fp32 by {255 * apart:.3f}/255 on average{'' if is_near else ': too much'}")
        if not is_near and precision in OWN_FILES:
            made.pop(name).unlink()
        differences[precision] = apart if math.isfinite(apart) else 1.0
    return differences
