"""A native function in a process of its own, which can be ended in the middle of a call.

PatchMatch's library works for seconds without a way to stop it. Here it runs in a child process that is killed when
the call is over, and started again for the next one; if it crashes, the server goes on. Requests and answers pass
through the child's standard input and output:

    request   height, width, patch radius, seed (four uint32), RGB bytes, one byte a pixel of the hole
    answer    one byte, its kind, then length (uint32) and that many bytes: of RGB, of a message why there is none, or
              of a float64, the share of the work done, after which more answers follow

The child ends when its input does, so it never outlives the server by more than one call. Knows no model's card.
"""

from __future__ import annotations

import contextlib
import os
import re
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
_SHARE = struct.Struct("<d")
_FAILED, _FILLED, _WORKING = range(3)  # kinds of answers
_LEVELS_PART = 0.7  # what all but the finest level take of the time, and so on; measured
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
        progress: Callable[[float], None],
    ) -> NDArray[np.uint8]:
        """Return (height, width, 3) uint8 with the hole, (height, width) bool, filled.

        Whatever `progress` raises ends the work at once. Raises ModelNotInstalled without the library, and OutOfMemory
        if the system killed the process.
        """
        height, width = hole.shape
        header = _REQUEST.pack(height, width, patch_radius, seed % 2**32)
        process = self._started()
        answer: Future[tuple[int, bytes]] = Future()
        parts = (header, rgb.tobytes(), hole.tobytes())
        share = [0.0]
        threading.Thread(target=_ask, args=(process, parts, answer, share), daemon=True).start()
        try:
            kind, payload = _await(answer, lambda: progress(share[0]))
        except EOFError:
            code = process.wait()
            self.close()
            if code == -signal.SIGKILL:
                raise OutOfMemory("the system ended patchmatch's process; send a smaller picture or hole") from None
            raise RuntimeError(f"patchmatch's process ended by itself with status {code}") from None
        except BaseException:
            self.close()
            raise
        if kind == _FAILED:
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


def _ask(process: _Process, request: tuple[bytes, ...], answer: Future[tuple[int, bytes]], share: list[float]) -> None:
    """Send a request and take its answer; EOFError as the future's exception if the process ends meanwhile.

    `share` always holds one number, how much of the work is done."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for part in request:
            process.stdin.write(part)
        process.stdin.flush()
        while True:
            kind, length = _ANSWER.unpack(_read(process.stdout, _ANSWER.size))
            payload = _read(process.stdout, length)
            if kind != _WORKING:
                break
            (share[0],) = _SHARE.unpack(payload)
        answer.set_result((kind, payload))
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
    listener = _Listener(lambda share: _send(answers, _WORKING, _SHARE.pack(share)))
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            height, width, patch_radius, seed = _REQUEST.unpack(_read(sys.stdin.buffer, _REQUEST.size))
            rgb = np.frombuffer(_read(sys.stdin.buffer, height * width * 3), np.uint8).reshape(height, width, 3)
            hole = np.frombuffer(_read(sys.stdin.buffer, height * width), np.bool_).reshape(height, width)
            kind, payload = _answer(rgb, hole, patch_radius, seed)
            listener.catch_up()
            _send(answers, kind, payload)


def _send(answers: IO[bytes], kind: int, payload: bytes) -> None:
    answers.write(_ANSWER.pack(kind, len(payload)) + payload)
    answers.flush()


class _Listener:
    """Hears how far the library is from what it prints to standard error, and passes on what else is printed there."""

    _END = b"limner: end of call\n"
    _CHATTER = re.compile(rb"Initialization done|  (NNF|Expectation|Minimization)|Energy with")
    _NEWS = re.compile(rb"Inpainting level: (?P<level>\d+)|EM Iteration: (?P<iteration>\d+)")

    def __init__(self, tell: Callable[[float], None]) -> None:
        self._tell = tell
        self._caught_up = threading.Event()
        heard, printed = os.pipe()
        self._errors = os.fdopen(os.dup(2), "wb", buffering=0)
        os.dup2(printed, 2)
        os.close(printed)
        threading.Thread(target=self._listen, args=(os.fdopen(heard, "rb"),), daemon=True).start()

    def catch_up(self) -> None:
        """Return when all that was printed until now is heard, so that no share is told after the call's answer."""
        self._caught_up.clear()
        os.write(2, self._END)
        self._caught_up.wait()

    def _listen(self, lines: IO[bytes]) -> None:
        level, share = 0, 0.0
        for line in lines:
            if line == self._END:
                level, share = 0, 0.0
                self._caught_up.set()
            elif news := self._NEWS.match(line):
                level = int(news["level"] or level)
                now = share_done(level, int(news["iteration"] or 0))
                if now > share:  # after the coarsest levels it goes some back and does them better
                    share = now
                    self._tell(share)
            elif not self._CHATTER.match(line):
                self._errors.write(line)


def share_done(level: int, iteration: int) -> float:
    """Return about how much of the time has passed when an iteration begins: level 0 is the picture's own size, each
    one above half of it, done before, in 2 * level + 1 iterations."""
    part = iteration / (2 * level + 1)
    return float(_LEVELS_PART ** (level + 1) * (1 - part) + _LEVELS_PART**level * part)


def _answer(rgb: NDArray[np.uint8], hole: NDArray[np.bool_], patch_radius: int, seed: int) -> tuple[int, bytes]:
    try:
        import patchmatch  # here, so that the parent's side needs no package

        if not patchmatch.patchmatch_available:
            return (
                _FAILED,
                b"its native library was not built; pip install --force-reinstall --no-cache-dir pypatchmatch",
            )
    except ImportError:
        return _FAILED, b"pip install 'limner[inpaint]'"
    patchmatch.set_random_seed(seed)
    patchmatch.set_verbose(True)
    return _FILLED, patchmatch.inpaint(rgb, hole, patch_size=patch_radius).tobytes()


if __name__ == "__main__":
    main()
