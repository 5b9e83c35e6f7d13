"""The bill of a generation: how many tokens each node served, and what each is paid for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from market.jobs.tables import RouteHop
from market.money import ZERO, fee_of, multiply, split
from mesh.model.compute_cost import EDGE_UNITS_PER_LAYER


@dataclass(frozen=True, slots=True)
class Share:
    """One node's part of a generation."""

    node_id: str
    wallet: str
    layers: list[int]
    tokens: int
    payment: Decimal


@dataclass(frozen=True, slots=True)
class Bill:
    """Cost = fee + the shares' payments, to the last base unit."""

    cost: Decimal
    fee: Decimal
    shares: list[Share]

    def by_wallet(self) -> dict[str, Decimal]:
        """What each provider is owed, over all of his nodes."""
        totals: dict[str, Decimal] = {}
        for share in self.shares:
            totals[share.wallet] = totals.get(share.wallet, ZERO) + share.payment
        return totals


def make_bill(
    hops: Sequence[RouteHop], *, tokens: int, price: Decimal, fee_rate: Decimal, edge_units: int
) -> Bill:
    """Split the cost of ``tokens`` tokens among the nodes of all epochs.

    A node's weight is tokens served times layers, the edge counted as its equivalent in layers.
    A token that was generated twice, since its first stream was lost, counts for the last epoch.
    """
    served = _tokens_by_epoch(hops, tokens)
    weights: dict[str, int] = {}
    counts: dict[str, int] = {}
    for hop in hops:
        units = (hop.end_layer - hop.start_layer) * EDGE_UNITS_PER_LAYER
        units += edge_units if hop.stage == 0 else 0
        weights[hop.node_id] = weights.get(hop.node_id, 0) + units * served[hop.epoch]
        counts[hop.node_id] = counts.get(hop.node_id, 0) + served[hop.epoch]
    cost = multiply(price, tokens)
    if tokens == 0:
        return Bill(cost=ZERO, fee=ZERO, shares=[])
    fee = fee_of(cost, fee_rate)
    payments = split(cost - fee, weights)
    last = {hop.node_id: hop for hop in hops if served[hop.epoch]}
    return Bill(
        cost=cost,
        fee=fee,
        shares=[
            Share(
                node_id=node_id,
                wallet=hop.wallet_address,
                layers=list(range(hop.start_layer, hop.end_layer)),
                tokens=counts[node_id],
                payment=payments[node_id],
            )
            for node_id, hop in sorted(last.items(), key=lambda item: item[1].start_layer)
        ],
    )


def _tokens_by_epoch(hops: Sequence[RouteHop], total: int) -> dict[int, int]:
    """How many of the delivered tokens each epoch generated, each token counted once."""
    first = {hop.epoch: hop.first_token for hop in hops}
    served = {}
    until = total
    for epoch in sorted(first, reverse=True):
        served[epoch] = max(0, until - first[epoch])
        until = min(until, first[epoch])
    return served
