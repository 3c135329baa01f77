"""The same pipeline over many pictures: what is to be done, what was done before, and doing it several at once.

Knows files and the client; what is shown of it is the command's business.

An output folder holds the results and `.limner-batch.jsonl`, the journal: a line for each picture that is done, under a
key made of the pipeline, of the bytes that went in and of where the results go. A picture is skipped if its key is
there and its results are.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from limner.client import pictures
from limner.client.asynchronous import AsyncClient
from limner.client.errors import Overloaded, RequestFailed, Unavailable, is_lost_connection
from limner.client.options import write_whole
from limner.client.results import Result
from limner.v1 import router_pb2

JOURNAL = ".limner-batch.jsonl"
_PATIENCE_SECONDS = 600.0  # how long one picture is tried again while the servers have too much to do
_LOST_SECONDS = 30.0  # how long a router that is gone may take to come back
_USUAL_WAIT_SECONDS = 2.0

Status = Literal["done", "skipped", "failed"]


@dataclass(frozen=True)
class Item:
    """One picture and what goes with it. `name` is its path in the input folder; `place` that of its results, without
    a suffix. `problem` says why it can't be done at all."""

    name: str
    place: str
    inputs: Mapping[str, Path]
    problem: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of an item."""

    item: Item
    status: Status
    outputs: tuple[str, ...] = ()
    seconds: float = 0.0
    error: Exception | None = None

    @property
    def reason(self) -> str:
        """Why it failed, in words; empty if it didn't."""
        if isinstance(self.error, OSError) and self.error.filename:
            return f"{self.error.strerror}: {self.error.filename}"
        return "" if self.error is None else str(self.error)


@dataclass
class Journal:
    """What an output folder holds already."""

    path: Path
    done: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Journal:
        """Reads the journal, makes it and the folder if need be; a line that was cut off by a crash doesn't count.

        Raises OSError if nothing can be written there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        journal = cls(folder / JOURNAL)
        with journal.path.open("a+", encoding="utf-8", errors="replace") as file:
            file.seek(0)
            for line in file:
                try:
                    entry = json.loads(line)
                    journal.done[entry["key"]] = tuple(entry["outputs"])
                except (ValueError, KeyError, TypeError):
                    continue
        return journal

    def find(self, key: str) -> tuple[str, ...] | None:
        """The results of a picture that is done, if they are still there."""
        outputs = self.done.get(key)
        if outputs is None or not all((self.path.parent / output).is_file() for output in outputs):
            return None
        return outputs

    def add(self, key: str, item: Item, outputs: Sequence[str]) -> None:
        """Notes that a picture is done, on disk before it returns."""
        line = json.dumps({"key": key, "source": item.name, "outputs": list(outputs)})
        # A line of its own even after one that was cut off.
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
            file.flush()
            os.fsync(file.fileno())
        self.done[key] = tuple(outputs)


def find_items(
    folder: Path, companions: Mapping[str, Path], *, recursive: bool = False, excluded: Path | None = None
) -> list[Item]:
    """The pictures of a folder in order, each with its companions.

    A companion, such as `mask`, is a file that goes with every picture, or a folder in which the one of the same stem,
    in the same subfolder, does. Files under `excluded` are left out.
    """
    found = sorted(_pictures_in(folder, recursive=recursive, excluded=excluded))
    shelves = {
        name: _by_stem(path, recursive=recursive, excluded=excluded) if path.is_dir() else path
        for name, path in companions.items()
    }
    places = _places(found)
    items = []
    for path in found:
        inputs, problems = {"source": folder / path}, []
        for name, shelf in shelves.items():
            matches = [shelf] if isinstance(shelf, Path) else shelf.get(_stem(path), [])
            if len(matches) == 1:
                inputs[name] = matches[0]
            elif matches:
                problems.append(f"several files for {name}: {', '.join(match.name for match in matches)}; keep one")
            else:
                problems.append(f"no {name} named {path.stem} in {companions[name]}")
        items.append(Item(path.as_posix(), places[path].as_posix(), inputs, "; ".join(problems)))
    return items


def _places(found: Sequence[Path]) -> dict[Path, Path]:
    """Where the result of each picture goes, without a suffix, no two in the same place.

    photo.jpg and photo.png would both give photo.png: both keep their whole name then.
    """
    whole: set[Path] = set()
    while True:
        places = {path: path if path in whole else path.with_suffix("") for path in found}
        taken = Counter(place.as_posix().casefold() for place in places.values())
        crowded = {path for path, place in places.items() if taken[place.as_posix().casefold()] > 1} - whole
        if not crowded:
            return places
        whole |= crowded


def _pictures_in(folder: Path, *, recursive: bool, excluded: Path | None) -> Iterator[Path]:
    """Paths of picture files, relative to the folder; hidden ones, and those in `excluded` within it, are left out.

    A link that leads nowhere counts: that it can't be read is to be told.
    """
    skipped = excluded.resolve() if excluded is not None else None
    if skipped is not None and folder.resolve() not in skipped.parents:
        skipped = None
    for path in folder.rglob("*") if recursive else folder.glob("*"):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or path.suffix.lower() not in pictures.READABLE_SUFFIXES:
            continue
        if not path.is_file() and not (path.is_symlink() and not path.exists()):
            continue
        if skipped is None or skipped not in path.resolve().parents:
            yield relative


def _by_stem(folder: Path, *, recursive: bool, excluded: Path | None) -> dict[str, list[Path]]:
    shelf: dict[str, list[Path]] = {}
    for path in sorted(_pictures_in(folder, recursive=recursive, excluded=excluded)):
        shelf.setdefault(_stem(path), []).append(folder / path)
    return shelf


def _stem(path: Path) -> str:
    """Path without suffix, alike where file systems that ignore case would find it alike."""
    return path.with_suffix("").as_posix().casefold()


async def run_batch(
    client: AsyncClient,
    pipeline: router_pb2.Pipeline,
    items: Sequence[Item],
    output: Path,
    *,
    jobs: int = 2,
    redo: bool = False,
    tell: Callable[[Outcome], None] = lambda outcome: None,
) -> None:
    """Does all items, `jobs` at once, telling of each as it ends; one that fails doesn't stop the others.

    Raises OSError if nothing can be written to `output`, Unavailable if the router went away and did not come back:
    the items that were not begun are not told of then.
    """
    journal = await asyncio.to_thread(Journal.open, output)
    sources = {path.resolve() for item in items for path in item.inputs.values()}
    waiting = iter(items)
    lost: RequestFailed | None = None

    async def work() -> None:
        nonlocal lost
        for item in waiting:  # shared: each worker takes the next one
            outcome = await _do(client, pipeline, item, output, journal, sources, redo=redo)
            tell(outcome)
            if isinstance(outcome.error, RequestFailed) and is_lost_connection(outcome.error):
                lost = outcome.error
            if lost is not None:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(jobs):
            group.create_task(work())
    if lost is not None:
        raise lost


async def _do(
    client: AsyncClient,
    pipeline: router_pb2.Pipeline,
    item: Item,
    output: Path,
    journal: Journal,
    sources: Collection[Path],
    *,
    redo: bool,
) -> Outcome:
    began = time.monotonic()
    try:
        if item.problem:
            raise ValueError(item.problem)
        data = {name: await asyncio.to_thread(path.read_bytes) for name, path in item.inputs.items()}
        if empty := [item.inputs[name].name for name in data if not data[name]]:
            raise ValueError(f"{', '.join(empty)} is empty; give an image file")
        key = await asyncio.to_thread(_key, pipeline, item.place, data)
        if not redo and (outputs := journal.find(key)) is not None:
            return Outcome(item, "skipped", outputs)
        results = await _patiently(client, pipeline, data)
        written = await asyncio.to_thread(_write, results, item, output, sources)
        journal.add(key, item, written)
        return Outcome(item, "done", written, time.monotonic() - began)
    except Exception as error:
        return Outcome(item, "failed", (), time.monotonic() - began, error)


async def _patiently(
    client: AsyncClient, pipeline: router_pb2.Pipeline, data: Mapping[str, bytes]
) -> Mapping[str, Result]:
    """Runs the pipeline, coming again when the servers say that they have too much to do, or the router restarts."""
    began = time.monotonic()
    while True:
        try:
            async with client.run(pipeline, data) as run:
                await run.wait()
                return run.results
        except Overloaded as failure:
            if failure.reason != "OVERLOADED" or time.monotonic() - began > _PATIENCE_SECONDS:
                raise
            await asyncio.sleep(failure.retry_after or _USUAL_WAIT_SECONDS)
        except Unavailable as failure:
            if not is_lost_connection(failure) or time.monotonic() - began > _LOST_SECONDS:
                raise
            await asyncio.sleep(_USUAL_WAIT_SECONDS)


def _key(pipeline: router_pb2.Pipeline, place: str, data: Mapping[str, bytes]) -> str:
    """The same for the same work: sha256 over pipeline, place and the digests of the inputs, in hexadecimal."""
    digest = hashlib.sha256(pipeline.SerializeToString(deterministic=True))
    digest.update(place.encode() + b"\0")
    for name in sorted(data):
        digest.update(name.encode() + b"\0" + hashlib.sha256(data[name]).digest())
    return digest.hexdigest()


def _write(results: Mapping[str, Result], item: Item, output: Path, sources: Collection[Path]) -> tuple[str, ...]:
    """Writes an item's results, of several steps into a folder a step, of a step that makes several pictures into a
    folder a picture, `1` and so on; their paths within the output folder.

    Never over what any item is made from.
    """
    written = []
    for step, result in results.items():
        place = f"{step}/" if len(results) > 1 else ""
        for number, data in enumerate(result.files, start=1):
            folder = f"{place}{number}/" if result.more else place
            path = output / f"{folder}{item.place}{pictures.suffix_of(data)}"
            if path.resolve() in sources:
                raise ValueError(f"its result would overwrite {path}, which is an input; choose another output folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)
            written.append(path.relative_to(output).as_posix())
    return tuple(written)


def report(outcomes: Sequence[Outcome], total: int) -> dict[str, Any]:
    """What became of all `total` pictures, for report.json; `left` counts those that an end before time left over."""
    counts = Counter(outcome.status for outcome in outcomes)
    return {
        "total": total,
        **{status: counts[status] for status in ("done", "skipped", "failed")},
        "left": total - len(outcomes),
        "pictures": [outcome_as_json(outcome) for outcome in sorted(outcomes, key=lambda each: each.item.name)],
    }


def outcome_as_json(outcome: Outcome) -> dict[str, Any]:
    """One line of the report."""
    entry: dict[str, Any] = {
        "source": outcome.item.name,
        "status": outcome.status,
        "outputs": list(outcome.outputs),
        "seconds": round(outcome.seconds, 3),
    }
    if isinstance(outcome.error, RequestFailed):
        entry["error"] = outcome.error.as_dict()
    elif outcome.error is not None:
        entry["error"] = {"message": outcome.reason}
    return entry
