"""How many rows one run of the transformer takes, by bucket: measured once, lowered when memory was not enough."""

from __future__ import annotations

import time
from collections.abc import Callable

from limner.diffusion.sd3.row import Bucket

LEAST = 2  # a row with guidance is two of the transformer's
MOST = 64
UNMEASURED = 8

_TRIED = (1, 2, 4, 8, 16)
_LONGEST_STEP_S = 2.0  # cancelling, and joining the loop, take as long as a step
_ABOUT = 1.05  # times as long is about as long


class Capacity:
    """Caps of buckets. Those of other sizes than the measured one follow by their tokens."""

    def __init__(self) -> None:
        self._measured: tuple[int, int] | None = None  # rows, and tokens of each
        self._lowered: dict[Bucket, int] = {}

    def of(self, bucket: Bucket) -> int:
        """Return how many rows one run takes, 1 to 64."""
        most = UNMEASURED
        if self._measured is not None:
            rows, tokens = self._measured
            most = min(max(rows * tokens // bucket.tokens, LEAST), MOST)
        return min(most, self._lowered.get(bucket, most))

    def assume(self, bucket: Bucket, rows: int) -> None:
        """Take a bucket's cap for measured."""
        self._measured = (rows, bucket.tokens)

    def lower(self, bucket: Bucket, rows: int) -> None:
        """Take at most so many from now on, at least one."""
        self._lowered[bucket] = max(min(rows, self.of(bucket)), 1)

    def measure(self, bucket: Bucket, run: Callable[[int], bool], *, share: float, budget_s: float) -> None:
        """Find the cap of a bucket: the fewest rows that take about as little time each as any number does, in steps of
        two seconds at most. More would gain nothing, and make steps long. Uses no more time than there is for it.

        `run(rows)` does `share` of a step's work, waits for its end, and says whether memory was enough.
        """
        end = time.monotonic() + budget_s
        each_s: dict[int, float] = {}  # by rows, the time that one of them takes
        for rows in _TRIED:
            seconds = self._seconds(run, rows, end)
            if seconds is None or (rows > 1 and seconds / share > _LONGEST_STEP_S):
                break
            each_s[rows] = seconds / rows
            # the next run has twice the rows, is warmed up once and timed once
            if time.monotonic() + 4 * seconds > end:
                break
        least = min(each_s.values(), default=0.0)
        self.assume(bucket, max(min((rows for rows in each_s if each_s[rows] <= least * _ABOUT), default=1), LEAST))

    @staticmethod
    def _seconds(run: Callable[[int], bool], rows: int, end: float) -> float | None:
        """Return the time of the fastest of up to three runs after one that warms up; None without enough memory."""
        fastest = None
        for attempt in range(4):
            begin = time.perf_counter()
            if not run(rows):
                return None
            seconds = time.perf_counter() - begin
            if attempt == 0 and time.monotonic() + seconds > end:
                return seconds  # there is no time to warm up
            if attempt:
                fastest = min(seconds, fastest or seconds)
                if time.monotonic() + seconds > end:
                    break
        return fastest
