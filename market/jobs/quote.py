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
class PromptQuote:
    """A prompt that can be served. ``hold``: FAR that a generation of it may cost at most."""

    token_ids: list[int]
    max_tokens: int
    hold: Decimal

    @property
    def positions(self) -> int:
        """KV positions that a generation of it reserves."""
        return len(self.token_ids) + self.max_tokens


@dataclass(frozen=True, slots=True)
class Quote:
    """A request that can be served. ``coverage``: by which nodes."""

    model: Model
    prompts: Sequence[PromptQuote]
    prices: Prices
    coverage: Coverage


async def quote_of(
    resources: Resources, request: JobRequest, prompts: Sequence[list[int]]
) -> Quote:
    """
    Args:
        prompts: Tokens of each prompt, see :mod:`market.jobs.submission.prompt_tokens`.

    Raises:
        NoRoute: not every layer has a node for the price.
        KvCapacityExceeded: prompt and answer are longer than any route's KV caches.
        DeadlineUnreachable: at the speed measured now the answer would not end in time.
    """
    model = resources.catalog.get(request.model_id)
    settings = resources.settings.generation
    coverage = await coverage_of(resources.redis, model)
    if coverage.missing:
        await coverage.count_skips(resources.skips)
        raise NoRoute(coverage.missing, retry_after=NO_ROUTE_RETRY)
    quotes = []
    for token_ids in prompts:
        max_tokens = request.max_tokens or _fitting(coverage, len(token_ids), settings)
        _check_prompt(coverage, len(token_ids), max_tokens, settings)
        hold = model.prices.most(len(token_ids), max_tokens)
        quotes.append(PromptQuote(token_ids, max_tokens, hold))
    return Quote(model, quotes, model.prices, coverage)


def _fitting(coverage: Coverage, prompt_tokens: int, settings: GenerationSettings) -> int:
    """Tokens of an answer whose user does not say how many: as many as context, KV caches and
    deadline allow, up to the default; 1 if there is no room for any, which is then refused."""
    most = min(settings.default_max_tokens, coverage.model.context - prompt_tokens)
    route = coverage.route_for(prompt_tokens + most)
    if route is None:
        most = max(1, coverage.longest_servable - prompt_tokens)
        route = coverage.route_for(prompt_tokens + most)
    speed = None if route is None else speed_of(route)
    if speed is not None:
        most = min(most, speed.tokens_within(settings.deadline, prompt_tokens))
    return max(1, most)


def _check_prompt(
    coverage: Coverage, prompt_tokens: int, max_tokens: int, settings: GenerationSettings
) -> None:
    route = coverage.route_for(prompt_tokens + max_tokens)
    if route is None:
        raise KvCapacityExceeded(
            f"{prompt_tokens} tokens of prompt and max_tokens {max_tokens} are more than the nodes "
            f"of {coverage.model.id} have memory for: {coverage.longest_servable} together."
        )
    _check_speed(route, prompt_tokens, max_tokens, settings)


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
