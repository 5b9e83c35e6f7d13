"""What a request may cost, and whether it can be served."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from market.catalog.models import Model
from market.catalog.prices import Prices
from market.jobs.request import JobRequest
from market.nodes.node import Node
from market.resources import Resources
from market.routing.coverage import Coverage, coverage_of
from market.routing.errors import DeadlineUnreachable, KvCapacityExceeded, NoRoute
from market.routing.speed import speed_of
from market.settings.generation import GenerationSettings

NO_ROUTE_RETRY = 30
"""Seconds: a heartbeat interval, after which a node that comes back is known."""


@dataclass(frozen=True, slots=True)
class Quote:
    """A request that can be served. ``hold``: FAR that it may cost at most. ``coverage``: by which
    nodes."""

    model: Model
    token_ids: list[int]
    prices: Prices
    hold: Decimal
    coverage: Coverage


async def quote_of(resources: Resources, request: JobRequest, token_ids: list[int]) -> Quote:
    """
    Args:
        token_ids: Of the prompt, see :mod:`market.jobs.submission.prompt_tokens`.

    Raises:
        NoRoute: not every layer has a node for the price.
        KvCapacityExceeded: prompt and answer are longer than any route's KV caches.
        DeadlineUnreachable: at the speed measured now the answer would not end in time.
    """
    model = resources.catalog.get(request.model_id)
    positions = len(token_ids) + request.max_tokens
    prices = model.prices
    coverage = await coverage_of(resources.redis, model)
    if coverage.missing:
        await coverage.count_skips(resources.skips)
        raise NoRoute(coverage.missing, retry_after=NO_ROUTE_RETRY)
    route = coverage.route_for(positions)
    if route is None:
        raise KvCapacityExceeded(
            f"{len(token_ids)} tokens of prompt and max_tokens {request.max_tokens} are more than "
            f"the nodes of {model.id} have memory for: {coverage.longest_servable} together."
        )
    _check_speed(route, len(token_ids), request.max_tokens, resources.settings.generation)
    hold = prices.most(len(token_ids), request.max_tokens)
    return Quote(model, token_ids, prices, hold, coverage)


def _check_speed(
    route: Sequence[Node], prompt_tokens: int, max_tokens: int, settings: GenerationSettings
) -> None:
    speed = speed_of(route)
    if speed is None:
        return
    seconds = speed.seconds(prompt_tokens, max_tokens)
    if seconds <= settings.deadline * settings.deadline_slack:
        return
    raise DeadlineUnreachable(
        f"{prompt_tokens} tokens of prompt and max_tokens {max_tokens} would take "
        f"{seconds:.0f} s at the speed measured now, and a "
        f"generation has {settings.deadline:.0f} s, in which "
        f"{speed.tokens_within(settings.deadline, prompt_tokens)} tokens fit: lower max_tokens."
    )
