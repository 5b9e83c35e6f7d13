"""Fees: a replacement offers enough more in every field, and never more than the ceiling."""

import pytest

from market.chain.transactions import Fees


@pytest.mark.parametrize("old", [Fees(0, 0), Fees(1, 0), Fees(7, 3), Fees(3 * 10**9, 10**9)])
def test_a_replacement_offers_a_tenth_more_in_both_fields(old: Fees) -> None:
    new = old.bumped(Fees(0, 0))
    assert new.priority is not None
    assert old.priority is not None
    for before, after in ((old.maximum, new.maximum), (old.priority, new.priority)):
        assert after > before
        assert 10 * after >= 11 * before
    assert new.maximum >= new.priority


def test_a_replacement_offers_a_tenth_more_gas_price() -> None:
    new = Fees(10**9, None).bumped(Fees(0, None))
    assert new.priority is None
    assert 10 * new.maximum >= 11 * 10**9
    assert new.fields() == {"type": 1, "gasPrice": new.maximum}


def test_a_replacement_follows_the_market() -> None:
    assert Fees(10, 1).bumped(Fees(1000, 100)) == Fees(1000, 100)
    assert Fees(10, None).bumped(Fees(1000, None)) == Fees(1000, None)


def test_the_ceiling_holds_in_both_fields() -> None:
    assert Fees(1000, 100).at_most(50) == Fees(50, 50)
    assert Fees(1000, None).at_most(50) == Fees(50, None)
    assert Fees(40, 1).at_most(50) == Fees(40, 1)
