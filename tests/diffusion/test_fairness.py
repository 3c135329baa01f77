"""Who goes next."""

from __future__ import annotations

import pytest

from limner.diffusion.fairness import Account, Candidate, Ledger, fill, in_order, urgent_slack


def candidate(item: str, account: Account, *, bucket: str = "a", size: int = 1, **more) -> Candidate[str]:
    return Candidate(item, bucket, size, account, more.get("step", 0), more.get("slack"))


def served(ledger: Ledger, accounts: dict[str, Account], turns: int, *, together: bool = False, cost: float = 1.0):
    """Return how often each call was advanced in so many evaluations; each is of a bucket of its own, or all of one."""
    count = dict.fromkeys(accounts, 0)
    for _ in range(turns):
        ordered = in_order(
            [candidate(name, account, bucket="" if together else name) for name, account in accounts.items()]
        )
        chosen = fill(ordered, 100)
        ledger.charge({each.account: cost for each in chosen})
        for each in chosen:
            count[each.item] += 1
    return count


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def test_calls_get_work_in_proportion_to_their_weights(ledger):
    accounts = {name: ledger.open(weight) for name, weight in [("p", 1.0), ("q", 2.0), ("r", 0.5)]}
    count = served(ledger, accounts, 700)
    assert count == pytest.approx({"p": 200, "q": 400, "r": 100}, abs=2)


def test_a_dear_call_is_advanced_less_often(ledger):
    small, large = ledger.open(1), ledger.open(1)
    for _ in range(90):
        first = in_order([candidate("small", small, bucket="s"), candidate("large", large, bucket="l")])[0]
        ledger.charge({first.account: 1 if first.item == "small" else 8})
    assert small.spent == pytest.approx(large.spent, abs=8)


def test_newcomers_are_neither_owed_nor_owing_for_the_time_before_them(ledger):
    old = {"old": ledger.open(1)}
    served(ledger, old, 100)
    both = old | {"new": ledger.open(1)}
    assert served(ledger, both, 20) == {"old": 10, "new": 10}
    for account in both.values():
        ledger.close(account)
    assert ledger.open(1).spent == ledger.open(1).spent >= 110, "also after everybody has gone"


def test_riding_along_for_a_while_is_not_held_against_a_call_of_small_weight(ledger):
    accounts = {"light": ledger.open(0.1), "heavy": ledger.open(1)}
    assert served(ledger, accounts, 100, together=True) == {"light": 100, "heavy": 100}
    accounts["new"] = ledger.open(1)
    count = served(ledger, accounts, 42)
    assert count["light"] >= 1, "it would have waited for 900 evaluations of each of the others"
    assert count["heavy"] == pytest.approx(count["new"], abs=1)


def test_a_call_of_small_weight_is_advanced_however_many_others_come_and_go(ledger):
    accounts = {"light": ledger.open(0.1)}
    light = 0
    for number in range(50):
        accounts[f"new{number}"] = ledger.open(1)
        light += served(ledger, accounts, 10)["light"]
        ledger.close(accounts.pop(f"new{number}"))
    assert 30 <= light <= 90


def test_those_who_have_had_least_go_first_and_in_a_call_the_picture_that_is_behind(ledger):
    first, second = ledger.open(1), ledger.open(1)
    ledger.charge({first: 1})
    ordered = in_order(
        [candidate("first", first), candidate("ahead", second, step=3), candidate("behind", second, step=2)]
    )
    assert [each.item for each in ordered] == ["behind", "ahead", "first"]


def test_an_evaluation_is_filled_in_order_with_whoever_fits(ledger):
    accounts = [ledger.open(1) for _ in range(5)]
    offered = [("p", "a", 2), ("q", "b", 1), ("r", "a", 3), ("s", "a", 1), ("t", "a", 1)]
    ordered = in_order(
        [
            candidate(name, account, bucket=bucket, size=size)
            for (name, bucket, size), account in zip(offered, accounts, strict=True)
        ]
    )
    assert [each.item for each in fill(ordered, 4)] == ["p", "s", "t"]
    assert [each.item for each in fill(ordered, 1)] == ["p"], "the first goes however large it is"


def test_the_urgent_go_first_and_among_them_who_can_spare_least(ledger):
    accounts = [ledger.open(1) for _ in range(3)]
    ledger.charge({accounts[1]: 1, accounts[2]: 1})
    ordered = in_order(
        [
            candidate("patient", accounts[0]),
            candidate("urgent", accounts[1], slack=2.0),
            candidate("most urgent", accounts[2], slack=0.5),
        ]
    )
    assert [each.item for each in ordered] == ["most urgent", "urgent", "patient"]


@pytest.mark.parametrize(
    ("left", "needed", "slack"),
    [(None, 4, None), (10, 4, None), (5, 4, 1), (6.5, 4, 2.5), (7, 4, None), (4, 4, 0), (3.9, 4, None)],
)
def test_a_call_is_urgent_while_it_can_just_make_its_deadline(left, needed, slack):
    assert urgent_slack(left, needed, blocked_s=0.5) == slack


def test_an_urgent_call_stays_so_until_it_cannot_make_its_deadline_any_more():
    assert urgent_slack(9, 1, blocked_s=0.5, urgent=True) == 8
    assert urgent_slack(0.9, 1, blocked_s=0.5, urgent=True) is None
