"""Prices of a model, as they are set and where they are not."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from market.catalog.prices import Prices
from market.money import from_units, to_units
from market.settings.models import ModelSettings


def priced(**prices: str) -> Prices:
    return Prices.of(ModelSettings.model_validate({"id": "m", **prices}))


@pytest.mark.parametrize(
    ("prices", "prompt", "cached"),
    [
        ({}, "0.00001", "0.000001"),
        ({"payment_per_prompt_token": "0.00002"}, "0.00002", "0.000002"),
        ({"payment_per_prompt_token": "0"}, "0", "0"),
        ({"payment_per_cached_prompt_token": "0"}, "0.00001", "0"),
        ({"payment_per_cached_prompt_token": "0.00001"}, "0.00001", "0.00001"),
    ],
)
def test_what_is_not_set_is_a_tenth_of_the_next_higher(
    prices: dict[str, str], prompt: str, cached: str
) -> None:
    assert priced(payment_per_token="0.0001", **prices) == Prices(
        Decimal("0.0001"), Decimal(prompt), Decimal(cached)
    )


@given(st.integers(0, 10**38 - 1))
def test_default_prices_are_amounts_for_any_price(units: int) -> None:
    prices = priced(payment_per_token=str(from_units(units)))
    assert to_units(prices.prompt_token) == units // 10
    assert to_units(prices.cached_prompt_token) == units // 100


@pytest.mark.parametrize(
    "prices",
    [
        {"payment_per_cached_prompt_token": "0.000010000000000001"},
        {"payment_per_prompt_token": "1", "payment_per_cached_prompt_token": "1.1"},
        {"payment_per_prompt_token": "-1"},
        {"payment_per_prompt_token": "0.0000000000000000001"},
    ],
    ids=["above the default", "above the prompt's", "below zero", "beyond 18 places"],
)
def test_prices_that_cannot_be_are_refused(prices: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="payment_per"):
        priced(payment_per_token="0.0001", **prices)


def test_the_most_is_an_uncached_prompt_and_all_tokens() -> None:
    prices = Prices(Decimal("0.1"), Decimal("0.01"), Decimal("0.001"))
    assert prices.most(prompt_tokens=5, max_tokens=3) == Decimal("0.35")
