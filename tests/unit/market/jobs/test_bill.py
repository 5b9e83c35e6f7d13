"""A bill adds up, and pays each token once."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from market.jobs.bill import make_bill
from market.money import fee_of, from_units, to_units
from market.placement.solver import even_split
from tests.support.factories import hop


@given(
    layers=st.integers(1, 200),
    data=st.data(),
    tokens=st.integers(1, 100_000),
    price_units=st.integers(1, 10**18),
    fee_rate=st.decimals("0", "0.99", places=6),
    edge_units=st.integers(0, 100_000),
)
def test_a_bill_adds_up_for_any_number_of_nodes_and_layers(
    layers: int,
    data: st.DataObject,
    tokens: int,
    price_units: int,
    fee_rate: Decimal,
    edge_units: int,
) -> None:
    nodes = data.draw(st.integers(1, layers), label="nodes")
    price = from_units(price_units)
    hops = [
        hop(stage=stage, start=start, end=end)
        for stage, (start, end) in enumerate(even_split(layers, nodes))
    ]
    bill = make_bill(hops, tokens=tokens, price=price, fee_rate=fee_rate, edge_units=edge_units)
    assert to_units(bill.cost) == price_units * tokens
    paid = [to_units(share.payment) for share in bill.shares]
    assert sum(paid) + to_units(bill.fee) == to_units(bill.cost)
    assert sum(map(to_units, bill.by_wallet().values())) == sum(paid)
    assert bill.fee == fee_of(bill.cost, fee_rate) <= bill.cost * fee_rate
    if edge_units == 0 and layers % nodes == 0:
        assert max(paid) - min(paid) <= 1


def test_each_token_is_paid_once_when_a_generation_changed_its_route() -> None:
    """Tokens 0 to 9 by one route, 10 to 29 by another, of which 20 to 29 were generated twice."""
    hops = [
        hop(epoch=1, node="a", start=0, end=4, first_token=0),
        hop(epoch=2, node="b", start=0, end=4, first_token=10),
        hop(epoch=3, node="c", start=0, end=4, first_token=20),
    ]
    bill = make_bill(hops, tokens=30, price=Decimal(1), fee_rate=Decimal(0), edge_units=0)
    assert {share.node_id: share.tokens for share in bill.shares} == {"a": 10, "b": 10, "c": 10}
    assert {share.payment for share in bill.shares} == {Decimal(10)}


def test_work_that_was_lost_with_its_stream_is_not_paid() -> None:
    hops = [
        hop(epoch=1, node="a", start=0, end=4, first_token=0),
        hop(epoch=2, node="b", start=0, end=4, first_token=0),
    ]
    bill = make_bill(hops, tokens=5, price=Decimal(1), fee_rate=Decimal(0), edge_units=0)
    assert [(share.node_id, share.tokens) for share in bill.shares] == [("b", 5)]


def test_the_edge_counts_as_its_equivalent_in_layers() -> None:
    hops = [hop(stage=0, node="a", start=0, end=1), hop(stage=1, node="b", start=1, end=2)]
    bill = make_bill(hops, tokens=1, price=Decimal(4), fee_rate=Decimal(0), edge_units=2000)
    assert [share.payment for share in bill.shares] == [Decimal(3), Decimal(1)]


def test_nothing_delivered_costs_nothing() -> None:
    bill = make_bill([hop()], tokens=0, price=Decimal(1), fee_rate=Decimal("0.05"), edge_units=0)
    assert (bill.cost, bill.fee, bill.shares) == (0, 0, [])
