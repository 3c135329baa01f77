"""Which pictures are advanced next: weighted fair sharing between calls, deadlines first where that helps.

Each call has an account of the work done for it, divided by its weight (virtual time, as in weighted fair queueing:
Demers, Keshav and Shenker, 1989). Whoever has had least goes next, and the others that fit into the same evaluation go
along. Going along costs nobody else anything, so it is charged only as far as a call's own next turn: a call of small
weight that rode along for a while isn't made to wait for all of it when others come.
Knows no models, no clock and no pictures.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

SPARE = 0.5  # of the time that a call still needs: with less than that to spare, it goes first


@dataclass(eq=False)
class Account:
    """What a call has had."""

    weight: float
    spent: float  # cost divided by weight
    number: int  # in the order in which they were opened


class Ledger:
    """The accounts of the calls that are being worked on."""

    def __init__(self) -> None:
        self._accounts: set[Account] = set()
        self._least = 0.0  # as of when there was somebody
        self._opened = 0

    def open(self, weight: float) -> Account:
        """Return a newcomer's account, which stands at the least of all: neither owed nor owing for the time before."""
        self._opened += 1
        account = Account(weight, self._now(), self._opened)
        self._accounts.add(account)
        return account

    def close(self, account: Account) -> None:
        """Forget a call's account; as often as one likes."""
        self._now()
        self._accounts.discard(account)

    def charge(self, costs: Mapping[Account, float]) -> None:
        """Write down what one evaluation cost each of these calls."""
        least = self._now()
        for account, cost in costs.items():
            quantum = cost / account.weight
            account.spent = min(account.spent + quantum, max(account.spent, least + quantum))

    def _now(self) -> float:
        self._least = min((account.spent for account in self._accounts), default=self._least)
        return self._least


@dataclass(frozen=True)
class Candidate(Generic[T]):
    """A picture that can be advanced."""

    item: T
    bucket: Hashable  # those of one bucket fit into one evaluation
    size: int  # how much of an evaluation's room it takes
    account: Account
    step: int  # steps done; of one call's pictures the last goes first
    slack: float | None = None  # seconds that it can spare, if it is urgent


def urgent_slack(left_s: float | None, needed_s: float, blocked_s: float, *, urgent: bool = False) -> float | None:
    """Return the seconds that a call can spare if it must go first to meet its deadline, else None.

    `left_s` is the time to the deadline or None, `needed_s` what it still takes without interruption, `blocked_s` how
    long it may have to wait for an evaluation that has begun. One that is `urgent` already stays so: at every step it
    needs less, and would be put off again until nothing is left to spare. One that cannot make it any more isn't helped
    by going first, and would only harm others.
    """
    if left_s is None or left_s < needed_s:
        return None
    slack = left_s - needed_s
    return slack if urgent or slack <= blocked_s + SPARE * needed_s else None


def in_order(candidates: Sequence[Candidate[T]]) -> list[Candidate[T]]:
    """Return who goes first: the urgent by what they can spare, then the calls by what they have had."""

    def place(candidate: Candidate[T]) -> tuple[float, ...]:
        account = candidate.account
        if candidate.slack is not None:
            return 0, candidate.slack, account.number, candidate.step
        return 1, account.spent, account.number, candidate.step

    return sorted(candidates, key=place)


def fill(ordered: Sequence[Candidate[T]], most: int) -> list[Candidate[T]]:
    """Return the first and, in the same order, those of its bucket that fit beside it; `most` is the sizes' sum."""
    first = ordered[0]
    chosen, taken = [first], first.size
    for candidate in ordered[1:]:
        if candidate.bucket == first.bucket and taken + candidate.size <= most:
            chosen.append(candidate)
            taken += candidate.size
    return chosen
