"""Brings one file of weights to this machine, going on where an earlier attempt stopped. Knows no digests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

from limner.core.card import WeightFile

if TYPE_CHECKING:
    import requests

Report = Callable[[str, int, int], None]
"""Told (file name, bytes there, bytes in all or 0) while a file is fetched."""

CHUNK = 1 << 16  # what a connection that breaks can lose
TIMEOUT_S = (10, 60)  # to connect; between two reads
FRUITLESS_ATTEMPTS = 3  # attempts in a row that bring no byte before a pull gives up


class StoreError(Exception):
    """Weights could not be fetched, checked or removed. The message says how to mend it."""


def fetch(url: str, part: Path, file: WeightFile, report: Report) -> None:
    """Bring `part` to its whole length. A broken connection is taken up again while that brings something."""
    if urlsplit(url).scheme == "file":
        _copy(url, part, file, report)
        return
    import requests  # a fifth of a second that servers, which never fetch, needn't wait for

    session = requests.Session()
    fruitless = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        if before and before == file.size_bytes:
            return
        try:
            _download(session, url, part, file, report)
            return
        except requests.HTTPError as error:
            raise StoreError(
                f"{url} answers {error.response.status_code} {error.response.reason}; try a mirror"
            ) from error
        except requests.RequestException as error:
            there = part.stat().st_size if part.exists() else 0
            fruitless = 0 if there > before else fruitless + 1
            if fruitless == FRUITLESS_ATTEMPTS:
                raise StoreError(
                    f"{url} could not be fetched whole, {there} bytes are there: {_cause(error)}; pull again to go on "
                    "from there, or use --mirror"
                ) from error


def _cause(error: BaseException) -> str:
    """Return what lies behind an error, without the layers of libraries that wrapped it."""
    inner = getattr(error, "reason", None) or next((each for each in error.args if isinstance(each, Exception)), None)
    return _cause(inner) if isinstance(inner, Exception) else str(error)


def _download(session: requests.Session, url: str, part: Path, file: WeightFile, report: Report) -> None:
    there = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={there}-"} if there else {})
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing comes after what is there; the digest tells whether that is the file
        response.raise_for_status()
        resumed = response.status_code == HTTPStatus.PARTIAL_CONTENT
        there = there if resumed else 0
        total = there + int(response.headers.get("Content-Length", 0))
        with part.open("ab" if resumed else "wb") as output:
            _pour(response.iter_content(CHUNK), output, file, there, max(total, file.size_bytes), report)


def _copy(url: str, part: Path, file: WeightFile, report: Report) -> None:
    source = Path(url2pathname(urlsplit(url).path))
    try:
        size = source.stat().st_size
        with source.open("rb") as chunks, part.open("wb") as output:
            _pour(iter(lambda: chunks.read(CHUNK), b""), output, file, 0, size, report)
    except FileNotFoundError as error:
        raise StoreError(f"there is no {source}") from error


def _pour(chunks: Iterator[bytes], output: BinaryIO, file: WeightFile, there: int, total: int, report: Report) -> None:
    for chunk in chunks:
        output.write(chunk)
        there += len(chunk)
        report(file.name, there, total)
