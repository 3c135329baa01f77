"""Runs a function on a thread of its own that goes on only when it is told to, up to its next pause: a loop that
belongs to somebody else becomes one that is stepped. Knows nothing of diffusion."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Turns:
    """turns = Turns("row", function)   # nothing runs yet
    turns.resume()                      # runs until function calls turns.pause(), or ends; raises what it raised
    turns.resume()                      # and so on
    turns.close()                       # at any time: the function sees Closed in its pause, and the thread is gone
    """

    def __init__(self, name: str, function: Callable[[], None]) -> None:
        self._function = function
        self._changed = threading.Condition()
        self._running = False
        self._ended = False
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def ended(self) -> bool:
        """Whether the function has returned or raised."""
        return self._ended

    def resume(self) -> None:
        """Let the function go on and wait for its next pause, or its end. Raises what it raised. Does nothing once it
        has ended, or was closed."""
        with self._changed:
            if self._ended or self._closed:
                return
            self._running = True
            if self._thread.ident is None:
                self._thread.start()
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ended or not self._running)
            error, self._error = self._error, None
        if error is not None:
            raise error

    def pause(self) -> None:
        """Wait for the next turn. Called by the function. Raises Closed."""
        with self._changed:
            self._running = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._running or self._closed)
            if self._closed:
                raise Closed

    def close(self) -> None:
        """End the function at its next pause, and return when its thread has ended. By any thread but its own."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            started = self._thread.ident is not None
        if started:
            self._thread.join()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._function()
        except Closed:
            pass
        except BaseException as raised:
            error = raised  # told to whoever waits
        with self._changed:
            self._error, self._ended, self._running = error, True, False
            self._changed.notify_all()


class Closed(Exception):
    """What ends a function in its pause."""
