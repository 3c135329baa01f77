"""A native function in a process of its own, which can be ended in the middle of a call.

PatchMatch's library works for seconds without a way to stop it. Here it runs in a child process that is killed when
the call is over, and started again for the next one; if it crashes, the server goes on. Requests and answers pass
through the child's standard input and output:

    request   height, width, patch radius, seed (four uint32), RGB bytes, one byte a pixel of the hole
    answer    one byte, 1 for RGB bytes and 0 for a message, then length (uint32) and that many bytes

The child ends when its input does, so it never outlives the server by more than one call. Knows no model's card.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import IO

import numpy as np
from numpy.typing import NDArray

from limner.core.errors import ModelNotInstalled, OutOfMemory

_REQUEST = struct.Struct("<4I")
_ANSWER = struct.Struct("<BI")
_POLL_S = 0.02  # how often a running call looks whether it is over

_Process = subprocess.Popen[bytes]


class PatchMatchProcess:
    """The parent's side. Used by one thread at a time."""

    def __init__(self) -> None:
        self._process: _Process | None = None

    def inpaint(
        self,
        rgb: NDArray[np.uint8],
        hole: NDArray[np.bool_],
        *,
        patch_radius: int,
        seed: int,
        check: Callable[[], None],
    ) -> NDArray[np.uint8]:
        """Return (height, width, 3) uint8 with the hole, (height, width) bool, filled.

        Whatever `check` raises ends the work at once. Raises ModelNotInstalled without the library, and OutOfMemory if
        the system killed the process.
        """
        height, width = hole.shape
        header = _REQUEST.pack(height, width, patch_radius, seed % 2**32)
        process = self._started()
        answer: Future[tuple[int, bytes]] = Future()
        parts = (header, rgb.tobytes(), hole.tobytes())
        threading.Thread(target=_ask, args=(process, parts, answer), daemon=True).start()
        try:
            kind, payload = _await(answer, check)
        except EOFError:
            code = process.wait()
            self.close()
            if code == -signal.SIGKILL:
                raise OutOfMemory("the system ended patchmatch's process; send a smaller picture or hole") from None
            raise RuntimeError(f"patchmatch's process ended by itself with status {code}") from None
        except BaseException:
            self.close()
            raise
        if kind == 0:
            raise ModelNotInstalled(f"patchmatch cannot run here: {payload.decode()}")
        return np.frombuffer(payload, np.uint8).reshape(height, width, 3)

    def close(self) -> None:
        """End the process, whatever it does. The next call starts another."""
        if self._process is not None:
            self._end()
            self._process = None

    def _started(self) -> _Process:
        if self._process is None:
            command = [sys.executable, "-P", "-m", "limner.inpaint.worker"]  # -P: nothing from the working directory
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._end = weakref.finalize(self, _end, self._process)  # also when the model is unloaded, and at exit
        return self._process


def _await(answer: Future[tuple[int, bytes]], check: Callable[[], None]) -> tuple[int, bytes]:
    """Return the answer, calling `check` while there is none."""
    while True:
        try:
            return answer.result(timeout=_POLL_S)
        except TimeoutError:
            check()


def _ask(process: _Process, request: tuple[bytes, ...], answer: Future[tuple[int, bytes]]) -> None:
    """Send a request and take its answer; EOFError as the future's exception if the process ends meanwhile."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for part in request:
            process.stdin.write(part)
        process.stdin.flush()
        kind, length = _ANSWER.unpack(_read(process.stdout, _ANSWER.size))
        answer.set_result((kind, _read(process.stdout, length)))
    except (EOFError, OSError, ValueError):
        answer.set_exception(EOFError())


def _read(stream: IO[bytes], length: int) -> bytes:
    """Return exactly so many bytes. Raises EOFError if there are fewer."""
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _end(process: _Process) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was not written yet goes nowhere
            pipe.close()  # type: ignore[union-attr]


def main() -> None:
    """The child's side: answer requests until the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides, by ending the input
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing that is printed gets among the answers
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            height, width, patch_radius, seed = _REQUEST.unpack(_read(sys.stdin.buffer, _REQUEST.size))
            rgb = np.frombuffer(_read(sys.stdin.buffer, height * width * 3), np.uint8).reshape(height, width, 3)
            hole = np.frombuffer(_read(sys.stdin.buffer, height * width), np.bool_).reshape(height, width)
            kind, payload = _answer(rgb, hole, patch_radius, seed)
            answers.write(_ANSWER.pack(kind, len(payload)) + payload)
            answers.flush()


def _answer(rgb: NDArray[np.uint8], hole: NDArray[np.bool_], patch_radius: int, seed: int) -> tuple[int, bytes]:
    try:
        import patchmatch  # here, so that the parent's side needs no package

        if not patchmatch.patchmatch_available:
            return 0, b"its native library was not built; pip install --force-reinstall --no-cache-dir pypatchmatch"
    except ImportError:
        return 0, b"pip install 'limner[inpaint]'"
    patchmatch.set_random_seed(seed)
    return 1, patchmatch.inpaint(rgb, hole, patch_size=patch_radius).tobytes()


if __name__ == "__main__":
    main()
