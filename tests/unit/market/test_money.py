"""Amounts are exact, and parts add up to the whole."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.money import floor_far, format_exact, from_units, multiply, split, to_units

UNITS = st.integers(min_value=0, max_value=10**30)


NAMES = st.text(alphabet="abcdef0123456789", min_size=1, max_size=8)


@given(units=UNITS)
def test_units_and_far_are_the_same_amount(units: int) -> None:
    assert to_units(from_units(units)) == units


def test_an_amount_that_would_be_rounded_is_refused() -> None:
    with pytest.raises(ValueError, match="18 decimal places"):
        to_units(Decimal("1e-19"))


@given(units=UNITS, weights=st.dictionaries(NAMES, st.integers(0, 10**9), min_size=1))
def test_parts_add_up_to_the_whole_to_the_last_unit(units: int, weights: dict[str, int]) -> None:
    amount = from_units(units)
    if not any(weights.values()):
        with pytest.raises(ValueError, match="weights"):
            split(amount, weights)
        return
    parts = split(amount, weights)
    assert sum(map(to_units, parts.values())) == units
    total = sum(weights.values())
    for name, part in parts.items():
        exact = units * weights[name] / total if units < 10**12 else None
        assert exact is None or abs(to_units(part) - exact) < 1
        assert part >= 0


@given(units=UNITS, weights=st.dictionaries(NAMES, st.integers(1, 100), min_size=1))
def test_a_split_does_not_depend_on_the_order_of_its_names(
    units: int, weights: dict[str, int]
) -> None:
    backwards = dict(reversed(weights.items()))
    assert split(from_units(units), weights) == split(from_units(units), backwards)


def test_largest_remainder_wins_the_odd_unit() -> None:
    parts = split(from_units(10), {"a": 1, "b": 1, "c": 2})
    assert {name: to_units(part) for name, part in parts.items()} == {"a": 3, "b": 2, "c": 5}


@pytest.mark.parametrize(
    ("amount", "text"),
    [("1.50", "1.5"), ("100", "100"), ("0E-18", "0"), ("1E-18", f"0.{'0' * 17}1")],
)
def test_amounts_are_written_as_people_write_them(amount: str, text: str) -> None:
    assert format_exact(Decimal(amount)) == text


@given(units=UNITS, count=st.integers(0, 10**6))
def test_a_product_is_exact_however_long(units: int, count: int) -> None:
    assert to_units(multiply(from_units(units), count)) == units * count


def test_cutting_never_rounds_up() -> None:
    assert floor_far(Decimal("0.9999999999999999999")) == Decimal("0.999999999999999999")
