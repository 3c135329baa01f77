"""A bell that wakes whoever waits for a change, however many they are."""

from __future__ import annotations

import asyncio


class Bell:
    """Listen, look whether there is something to do, and only then wait: what rings in between is heard too.

    rung = bell.listen()
    if not ready():
        await rung.wait()
    """

    def __init__(self) -> None:
        """A bell nobody has rung."""
        self._next = asyncio.Event()

    def listen(self) -> asyncio.Event:
        """Return an event that the next ring sets."""
        return self._next

    def ring(self) -> None:
        """Wake everybody who listens."""
        rung, self._next = self._next, asyncio.Event()
        rung.set()
