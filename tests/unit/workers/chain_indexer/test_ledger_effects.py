"""Spending caps after events of the contract."""

import pytest

from workers.chain_indexer.ledger_effects import effective_cap

RAISED, ASKED = "CapRaised", "CapLoweringRequested"
CANCELLED, LOWERED = "CapLoweringCancelled", "CapLowered"


@pytest.mark.parametrize(
    ("events", "cap"),
    [
        ([], 0),
        ([(RAISED, 10)], 10),
        ([(RAISED, 10), (RAISED, 30)], 30),
        ([(RAISED, 10), (ASKED, 4)], 4),
        ([(RAISED, 10), (ASKED, 4), (ASKED, 6)], 6),
        ([(RAISED, 10), (ASKED, 4), (CANCELLED, None)], 10),
        ([(RAISED, 10), (ASKED, 4), (RAISED, 12)], 12),
        # The contract lowers to what was debited by then, if that is more than was asked for.
        ([(RAISED, 10), (ASKED, 4), (LOWERED, 5)], 5),
    ],
)
def test_a_cap_follows_its_events(events: list[tuple[str, int | None]], cap: int) -> None:
    told = [
        (name, {"user": "0x"} if maximum is None else {"user": "0x", "maximum": str(maximum)})
        for name, maximum in events
    ]
    assert effective_cap(told) == cap
