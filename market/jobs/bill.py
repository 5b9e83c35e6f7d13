"""The bill of a generation: what its user pays, and what each node is paid of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from market.catalog.prices import Prices
from market.jobs.tables import RouteHop
from market.money import ZERO, fee_of, from_units, multiply, split, to_units
from mesh.model.compute_cost import EDGE_UNITS_PER_LAYER


@dataclass(frozen=True, slots=True)
class PromptUse:
    """What the nodes did with a prompt of ``tokens`` tokens.

    ``cached``: of how many, from the first on, all nodes copied what they had computed before.
    ``reported``: how many each node of the last epoch says that it has computed or copied; counts
    only if no token was generated, since a token proves that all nodes have all of them.
    """

    tokens: int
    cached: int = 0
    reported: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Share:
    """One node's part of a generation. ``prompt_tokens``: positions of the prompt that it is paid
    for, ``tokens``: generated ones."""

    node_id: str
    wallet: str
    layers: list[int]
    prompt_tokens: int
    tokens: int
    payment: Decimal


@dataclass(frozen=True, slots=True)
class Bill:
    """Cost = fee + the shares' payments, to the last base unit. ``prompt_cost``: the prompt's part
    of the cost."""

    cost: Decimal
    prompt_cost: Decimal
    fee: Decimal
    shares: list[Share]

    def by_wallet(self) -> dict[str, Decimal]:
        """What each provider is owed, over all of his nodes."""
        totals: dict[str, Decimal] = {}
        for share in self.shares:
            totals[share.wallet] = totals.get(share.wallet, ZERO) + share.payment
        return totals


def make_bill(
    hops: Sequence[RouteHop],
    *,
    tokens: int,
    prompt: PromptUse,
    prices: Prices,
    fee_rate: Decimal,
    edge_units: int,
) -> Bill:
    """Split the cost of a prompt and of ``tokens`` generated tokens among the nodes of all epochs.

    For generated tokens a node's weight is tokens served times layers, the edge counted as its
    equivalent in layers; a token that was generated twice, since its first stream was lost, counts
    for the last epoch. For the prompt it is positions times layers, in the last epoch that
    generated a token: the head that follows a prompt is the first token's, and paid with it.
    """
    served = _tokens_by_epoch(hops, tokens)
    prefilled = _prefilled(hops, served, prompt)
    token_cost = multiply(prices.token, sum(served.values()))
    prompt_cost = _prompt_cost(prefilled, prompt.cached, prices)
    cost = token_cost + prompt_cost
    fee = fee_of(cost, fee_rate)
    for_tokens = token_cost - fee_of(token_cost, fee_rate)
    payments = _split(
        (for_tokens, _token_weights(hops, served, edge_units)),
        (cost - fee - for_tokens, _prompt_weights(prefilled)),
    )
    positions = {hop.node_id: count for hop, count in prefilled if count}
    last = {hop.node_id: hop for hop in hops if served[hop.epoch]}
    last |= {hop.node_id: hop for hop, count in prefilled if count}
    return Bill(
        cost=cost,
        prompt_cost=prompt_cost,
        fee=fee,
        shares=[
            Share(
                node_id=node_id,
                wallet=hop.wallet_address,
                layers=list(range(hop.start_layer, hop.end_layer)),
                prompt_tokens=positions.get(node_id, 0),
                tokens=sum(served[each.epoch] for each in hops if each.node_id == node_id),
                payment=payments.get(node_id, ZERO),
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


def _prefilled(
    hops: Sequence[RouteHop], served: Mapping[int, int], prompt: PromptUse
) -> list[tuple[RouteHop, int]]:
    """The hops of the epoch that is paid for the prompt, and the positions that each has.

    Before the first token these are what the nodes report, but no more than the node before, from
    which they come.
    """
    generating = [epoch for epoch, tokens in served.items() if tokens]
    paid = max(generating or served, default=None)
    route = sorted((hop for hop in hops if hop.epoch == paid), key=lambda hop: hop.stage)
    if generating:
        return [(hop, prompt.tokens) for hop in route]
    found = []
    positions = prompt.tokens
    for hop in route:
        positions = max(0, min(positions, prompt.reported.get(hop.node_id, 0)))
        found.append((hop, positions))
    return found


def _prompt_cost(prefilled: Sequence[tuple[RouteHop, int]], cached: int, prices: Prices) -> Decimal:
    """The whole price of each position that all layers have, and of others their layers' part of
    it, cut to a base unit."""
    layers = sum(_span(hop) for hop, _ in prefilled)
    if not layers:
        return ZERO
    copied = sum(_span(hop) * min(positions, cached) for hop, positions in prefilled)
    computed = sum(_span(hop) * positions for hop, positions in prefilled) - copied
    amount = multiply(prices.prompt_token, computed) + multiply(prices.cached_prompt_token, copied)
    return from_units(to_units(amount) // layers)


def _token_weights(
    hops: Sequence[RouteHop], served: Mapping[int, int], edge_units: int
) -> dict[str, int]:
    weights: dict[str, int] = {}
    for hop in hops:
        units = _span(hop) * EDGE_UNITS_PER_LAYER + (edge_units if hop.stage == 0 else 0)
        weights[hop.node_id] = weights.get(hop.node_id, 0) + units * served[hop.epoch]
    return weights


def _prompt_weights(prefilled: Sequence[tuple[RouteHop, int]]) -> dict[str, int]:
    return {hop.node_id: _span(hop) * positions for hop, positions in prefilled}


def _split(*parts: tuple[Decimal, Mapping[str, int]]) -> dict[str, Decimal]:
    """Each node's share of all amounts together, each split by its own weights."""
    payments: dict[str, Decimal] = {}
    for amount, weights in parts:
        for node_id, share in (split(amount, weights) if amount else {}).items():
            payments[node_id] = payments.get(node_id, ZERO) + share
    return payments


def _span(hop: RouteHop) -> int:
    return hop.end_layer - hop.start_layer
