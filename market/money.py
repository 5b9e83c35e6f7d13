"""Amounts of $FAR: exact, never a float.

In Python and SQL an amount is a ``Decimal`` of FAR with 18 places (NUMERIC(38,18)); on-chain it is
an integer of base units (10⁻¹⁸ FAR).
"""

from collections.abc import Mapping
from decimal import ROUND_DOWN, Context, Decimal, DefaultContext, getcontext

PLACES = 18
UNITS_PER_FAR = 10**PLACES

EXACT = Context(prec=60)
"""Wide enough that no product of two NUMERIC(38,18) amounts is rounded before we round it."""

# Python's own 28 digits round sums of more than 10¹⁰ FAR, and the contract takes seven times that.
# For this thread and all to come.
getcontext().prec = DefaultContext.prec = EXACT.prec

ZERO = Decimal(0)


def to_units(far: Decimal) -> int:
    """FAR as base units.

    Raises:
        ValueError: the amount has more than 18 places, so it would have to be rounded.
    """
    scaled = EXACT.scaleb(far, PLACES)
    units = int(scaled)
    if units != scaled:
        raise ValueError(f"{far} FAR has more than {PLACES} decimal places.")
    return units


def from_units(units: int) -> Decimal:
    """Base units as FAR."""
    return EXACT.scaleb(Decimal(units), -PLACES)


def floor_far(far: Decimal) -> Decimal:
    """The amount cut to 18 places, towards zero."""
    return far.quantize(Decimal(1).scaleb(-PLACES), rounding=ROUND_DOWN, context=EXACT)


def format_exact(far: Decimal) -> str:
    """The exact amount as people write it: no exponent, no trailing zeros."""
    text = f"{far:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def multiply(price: Decimal, count: int) -> Decimal:
    """What ``count`` tokens cost at a price each. Python's own context would round long amounts."""
    return EXACT.multiply(price, Decimal(count))


def fee_of(cost: Decimal, rate: Decimal) -> Decimal:
    """The platform's part of a cost, cut to 18 places so that the rest never falls short."""
    return floor_far(EXACT.multiply(cost, rate))


def split(amount: Decimal, weights: Mapping[str, int]) -> dict[str, Decimal]:
    """Divide an amount by integer weights; the parts equal the whole to the last base unit.

    Rounding is by largest remainder; ties go by name, so that the same input always gives the
    same parts.

    Args:
        amount: FAR, at least 0.
        weights: Weight by name, each at least 0 and one of them above 0.

    Raises:
        ValueError: no weight is above 0, or one is below.
    """
    total_weight = sum(weights.values())
    if total_weight <= 0 or min(weights.values()) < 0:
        raise ValueError("A split needs weights of at least 0 that do not all vanish.")
    units = to_units(amount)
    parts = {name: units * weight // total_weight for name, weight in weights.items()}
    left = units - sum(parts.values())
    by_remainder = sorted(weights, key=lambda name: (-(units * weights[name] % total_weight), name))
    for name in by_remainder[:left]:
        parts[name] += 1
    return {name: from_units(part) for name, part in parts.items()}
