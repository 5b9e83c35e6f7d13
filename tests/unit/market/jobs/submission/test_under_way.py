"""Submissions under way are counted until they are decided, and a little longer."""

import time

import pytest

from market.jobs.submission import under_way
from market.jobs.submission.under_way import Submission, UnderWay


def submission(wallet: str = "0xa", model_id: str = "model") -> Submission:
    return Submission(model_id, wallet, 10, can_pay=True)


def test_a_wallet_has_room_for_so_many_and_all_together_for_more() -> None:
    counted = UnderWay(of_wallet=1, in_all=2)
    with counted.enter(submission("0xa")):
        assert not counted.has_room("0xa")
        assert counted.has_room("0xb")
        with counted.enter(submission("0xb")):
            assert not counted.has_room("0xc")
        assert counted.has_room("0xc")
    assert len(counted) == 0


def test_what_a_reading_lacks_is_not_decided_or_was_accepted_since() -> None:
    counted = UnderWay()
    accepted, other = submission(), submission(model_id="other")
    with counted.enter(accepted), counted.enter(other):
        assert counted.unseen("model", time.monotonic()) == [accepted]
    assert accepted.accepted_at is not None
    assert counted.unseen("model", accepted.accepted_at) == [accepted]
    assert counted.unseen("model", accepted.accepted_at + 1) == []


def test_whoever_may_be_without_money_is_not_before_others() -> None:
    counted = UnderWay()
    with counted.enter(Submission("model", "0xa", 10)):
        assert counted.unseen("model", 0) == []
        assert len(counted) == 1


def test_whoever_could_pay_a_moment_ago_counts_at_once() -> None:
    counted = UnderWay()
    with counted.enter(submission("0xa")):
        pass
    new, other = Submission("model", "0xa", 10), Submission("model", "0xb", 10)
    with counted.enter(new), counted.enter(other):
        assert (new.can_pay, other.can_pay) == (True, False)


def test_a_refused_one_is_forgotten_and_not_its_twin() -> None:
    counted = UnderWay()
    twin, refused = submission(), submission()
    with counted.enter(twin):
        with pytest.raises(ZeroDivisionError), counted.enter(refused):
            raise ZeroDivisionError
        assert counted.unseen("model", 0)[0] is twin
    assert counted.unseen("model", 0) == [twin]


def test_those_accepted_long_ago_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody ever asks for them, as long as there is no load."""
    monkeypatch.setattr(under_way, "KEPT_SECONDS", 0.0)
    counted = UnderWay()
    for _ in range(100):
        with counted.enter(submission()):
            pass
    assert len(counted.unseen("model", 0)) <= 1
