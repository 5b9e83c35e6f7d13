"""A batch as it is planned, stored, and read back."""

from decimal import Decimal

from market.escrow.settle_call import BatchTotals, SettlementBatch
from market.settlement.planned_batch import plan_keepalive_batch, stored_batch
from market.settlement.tables import Settlement

CONTRACT, RECIPIENT, USER = ("0x" + digit * 40 for digit in "abc")


def test_a_stored_batch_is_what_the_contract_takes() -> None:
    row = Settlement(
        id="0x" + "11" * 32,
        debits={USER: str(10**18 + 1)},
        credits={RECIPIENT: str(10**18)},
        fee_units=Decimal(1),
        usage_root="0x" + "22" * 32,
    )
    batch = stored_batch(row)
    assert batch == SettlementBatch(
        id=row.id,
        debits={USER: 10**18 + 1},
        credits={RECIPIENT: 10**18},
        fee=1,
        usage_root="0x" + "22" * 32,
    )
    assert batch.totals == BatchTotals(debited=10**18 + 1, credited=10**18, fee=1)


def test_each_keepalive_batch_has_an_id_of_its_own() -> None:
    first, again, later = (
        plan_keepalive_batch(seconds, chain_id=1, contract=CONTRACT, fee_recipient=RECIPIENT)
        for seconds in (100, 100, 101)
    )
    assert first.content == again.content
    assert first.content.id != later.content.id
    assert first.content.totals == BatchTotals(0, 0, 0)
