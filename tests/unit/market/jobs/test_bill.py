"""A bill adds up, and pays each token once."""

from collections.abc import Sequence
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.catalog.prices import Prices
from market.jobs.bill import Bill, PromptUse, make_bill
from market.jobs.tables import RouteHop
from market.money import fee_of, from_units, to_units
from market.placement.solver import even_split
from tests.support.factories import hop

NO_PROMPT = PromptUse(0)
TEN_FOR_ONE = Prices(Decimal(10), Decimal(1), Decimal("0.1"))
"""A generated token costs ten of the prompt, and one of those ten cached ones."""


def bill_of(
    hops: Sequence[RouteHop],
    *,
    tokens: int,
    price: Decimal = Decimal(1),
    fee_rate: Decimal = Decimal(0),
    edge_units: int = 0,
) -> Bill:
    """A bill without a prompt."""
    return make_bill(
        hops,
        tokens=tokens,
        prompt=NO_PROMPT,
        prices=Prices(price, Decimal(0), Decimal(0)),
        fee_rate=fee_rate,
        edge_units=edge_units,
    )


def prompt_bill(hops: Sequence[RouteHop], prompt: PromptUse, *, tokens: int = 0) -> Bill:
    """A bill without a fee."""
    return make_bill(
        hops, tokens=tokens, prompt=prompt, prices=TEN_FOR_ONE, fee_rate=Decimal(0), edge_units=500
    )


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
    hops = [
        hop(stage=stage, start=start, end=end)
        for stage, (start, end) in enumerate(even_split(layers, nodes))
    ]
    price = from_units(price_units)
    bill = bill_of(hops, tokens=tokens, price=price, fee_rate=fee_rate, edge_units=edge_units)
    assert to_units(bill.cost) == price_units * tokens
    paid = [to_units(share.payment) for share in bill.shares]
    assert sum(paid) + to_units(bill.fee) == to_units(bill.cost)
    assert sum(map(to_units, bill.by_wallet().values())) == sum(paid)
    assert bill.fee == fee_of(bill.cost, fee_rate) <= bill.cost * fee_rate
    if edge_units == 0 and layers % nodes == 0:
        assert max(paid) - min(paid) <= 1


@st.composite
def epochs(draw: st.DrawFn) -> list[RouteHop]:
    """Routes one after the other, each over some of the same nodes, and each from a later token on
    or again from an earlier one."""
    layers = draw(st.integers(1, 40))
    hops = []
    for epoch in range(1, draw(st.integers(1, 5)) + 1):
        first = draw(st.integers(0, 300))
        spans = even_split(layers, draw(st.integers(1, min(6, layers))))
        names = draw(st.permutations("abcdefgh"))
        hops += [
            hop(epoch=epoch, stage=stage, node=names[stage], start=a, end=b, first_token=first)
            for stage, (a, b) in enumerate(spans)
        ]
    return hops


@given(
    hops=epochs(),
    tokens=st.integers(0, 400),
    prompt_tokens=st.integers(0, 10_000),
    cached=st.integers(0, 20_000),
    reported=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(-5, 20_000)),
    units=st.tuples(*[st.integers(0, 10**18)] * 3),
    fee_rate=st.decimals("0", "0.99", places=6),
)
def test_a_bill_adds_up_for_any_epochs_prompt_and_reports(
    hops: list[RouteHop],
    tokens: int,
    prompt_tokens: int,
    cached: int,
    reported: dict[str, int],
    units: tuple[int, int, int],
    fee_rate: Decimal,
) -> None:
    token, *prompts = map(from_units, units)
    prices = Prices(token, max(prompts), min(prompts))
    prompt = PromptUse(prompt_tokens, cached, reported)
    bill = make_bill(
        hops, tokens=tokens, prompt=prompt, prices=prices, fee_rate=fee_rate, edge_units=941
    )
    assert sum(to_units(share.payment) for share in bill.shares) + to_units(bill.fee) == to_units(
        bill.cost
    )
    assert min([Decimal(0), *(share.payment for share in bill.shares)]) == 0
    assert 0 <= bill.prompt_cost <= prices.most(prompt_tokens, 0)
    assert bill.cost <= prices.most(prompt_tokens, tokens)
    assert bill.fee == fee_of(bill.cost, fee_rate)


def test_each_token_is_paid_once_when_a_generation_changed_its_route() -> None:
    """Tokens 0 to 9 by one route, 10 to 29 by another, of which 20 to 29 were generated twice."""
    hops = [
        hop(epoch=1, node="a", start=0, end=4, first_token=0),
        hop(epoch=2, node="b", start=0, end=4, first_token=10),
        hop(epoch=3, node="c", start=0, end=4, first_token=20),
    ]
    bill = bill_of(hops, tokens=30)
    assert {share.node_id: share.tokens for share in bill.shares} == {"a": 10, "b": 10, "c": 10}
    assert {share.payment for share in bill.shares} == {Decimal(10)}


def test_work_that_was_lost_with_its_stream_is_not_paid() -> None:
    hops = [
        hop(epoch=1, node="a", start=0, end=4, first_token=0),
        hop(epoch=2, node="b", start=0, end=4, first_token=0),
    ]
    bill = bill_of(hops, tokens=5)
    assert [(share.node_id, share.tokens) for share in bill.shares] == [("b", 5)]


def test_the_edge_counts_as_its_equivalent_in_layers() -> None:
    hops = [hop(stage=0, node="a", start=0, end=1), hop(stage=1, node="b", start=1, end=2)]
    bill = bill_of(hops, tokens=1, price=Decimal(4), edge_units=2000)
    assert [share.payment for share in bill.shares] == [Decimal(3), Decimal(1)]


def test_nothing_delivered_costs_nothing() -> None:
    bill = bill_of([hop()], tokens=0, fee_rate=Decimal("0.05"))
    assert (bill.cost, bill.fee, bill.shares) == (0, 0, [])


TWO = [hop(stage=0, node="a", start=0, end=1), hop(stage=1, node="b", start=1, end=4)]


def test_a_prompt_is_split_by_layers_alone() -> None:
    """The head that follows it is the first token's, and paid with it."""
    bill = prompt_bill(TWO, PromptUse(8), tokens=1)
    assert (bill.cost, bill.prompt_cost) == (18, 8)
    assert [share.prompt_tokens for share in bill.shares] == [8, 8]
    weights_of_the_token = [Decimal(1500) / 4500, Decimal(3000) / 4500]
    assert bill.shares[0].payment == pytest.approx(2 + 10 * weights_of_the_token[0])


def test_a_cached_prefix_is_cheaper() -> None:
    bill = prompt_bill(TWO, PromptUse(100, cached=64), tokens=1)
    assert bill.prompt_cost == 36 + Decimal("6.4")


def test_no_count_of_cached_tokens_makes_a_prompt_dearer_or_cheaper_than_all_of_it() -> None:
    assert prompt_bill(TWO, PromptUse(100, cached=10**6), tokens=1).prompt_cost == 10


def test_a_prompt_is_paid_once_to_the_last_route_that_generated() -> None:
    """The third computed it too, and generated nothing before the end."""
    hops = [
        hop(epoch=1, node="a", start=0, end=4, first_token=0),
        hop(epoch=2, node="b", start=0, end=4, first_token=10),
        hop(epoch=3, node="c", start=0, end=4, first_token=30),
    ]
    bill = prompt_bill(hops, PromptUse(50), tokens=30)
    assert bill.cost == 350
    assert {each.node_id: each.prompt_tokens for each in bill.shares} == {"a": 0, "b": 50}
    assert {each.node_id: each.payment for each in bill.shares} == {"a": 100, "b": 250}


def test_before_the_first_token_each_node_is_paid_for_what_it_computed() -> None:
    """A position costs its whole price if all layers have it, else those layers' part."""
    bill = prompt_bill(TWO, PromptUse(100, reported={"a": 100, "b": 20}))
    assert bill.cost == bill.prompt_cost == Decimal(100 + 3 * 20) / 4
    assert [share.payment for share in bill.shares] == [25, 15]
    assert [share.prompt_tokens for share in bill.shares] == [100, 20]


def test_no_node_has_more_of_a_prompt_than_the_node_before_sent() -> None:
    bill = prompt_bill(TWO, PromptUse(100, reported={"a": 10, "b": 10**9}))
    assert [share.prompt_tokens for share in bill.shares] == [10, 10]
    assert prompt_bill(TWO, PromptUse(100, reported={"b": 100})).cost == 0


def test_a_report_counts_for_nothing_beside_a_token() -> None:
    whole = prompt_bill(TWO, PromptUse(100), tokens=1)
    assert prompt_bill(TWO, PromptUse(100, reported={"a": 5}), tokens=1) == whole


def test_a_generation_that_nobody_served_costs_nothing() -> None:
    bill = prompt_bill([], PromptUse(100, reported={"a": 5}), tokens=7)
    assert (bill.cost, bill.shares) == (0, [])
