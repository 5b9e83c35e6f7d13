"""What a request may cost, and whether it can be served."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from market.catalog.models import Model
from market.catalog.prices import Prices
from market.errors import InvalidRequest
from market.jobs.errors import ContextExceeded
from market.jobs.request import JobRequest
from market.nodes.node import Node
from market.resources import Resources
from market.routing.coverage import Coverage, coverage_of
from market.routing.errors import DeadlineUnreachable, KvCapacityExceeded, NoRoute
from market.routing.speed import speed_of
from market.routing.tiers import Tier
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


async def quote_of(resources: Resources, request: JobRequest) -> Quote:
    """
    Raises:
        InvalidRequest: the prompt or the tier is not what can be served here.
        ContextExceeded: prompt and answer are longer than the model's context.
        NoRoute: not every layer has a node for the price.
        KvCapacityExceeded: prompt and answer are longer than any route's KV caches.
        DeadlineUnreachable: at the speed measured now the answer would not end in time.
    """
    model = resources.catalog.get(request.model_id)
    _check(request, resources.settings.limits.max_prompt_chars)
    token_ids = await _tokenize(model, request.prompt)
    positions = len(token_ids) + request.max_tokens
    if positions > model.context:
        raise ContextExceeded(
            f"{len(token_ids)} tokens of prompt and max_tokens {request.max_tokens} exceed the "
            f"model's context of {model.context} tokens."
        )
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


def _check(request: JobRequest, max_prompt_chars: int) -> None:
    if len(request.prompt) > max_prompt_chars:
        raise InvalidRequest(
            f"prompt: {len(request.prompt)} characters; at most {max_prompt_chars} are allowed.",
            code="prompt_too_long",
        )
    if request.tier is not Tier.STANDARD:
        raise InvalidRequest(
            f"tier: {request.tier} is not offered here yet; use standard.", code="tier_unavailable"
        )


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


async def _tokenize(model: Model, prompt: str) -> list[int]:
    try:
        # Of the tokenizer's calls this one lets go of the interpreter while it works.
        [encoded] = await asyncio.to_thread(model.tokenizer.encode_batch_fast, [prompt])
    except Exception:  # it raises nothing more special
        raise InvalidRequest(
            f"prompt: the tokenizer of {model.id} cannot read it.", code="prompt_malformed"
        ) from None
    token_ids: list[int] = encoded.ids
    if not token_ids:
        raise InvalidRequest("prompt: there is nothing in it to continue.", code="prompt_empty")
    highest = max(token_ids)
    if highest >= model.vocab:
        raise InvalidRequest(
            f"prompt: {model.id} has no embedding for its token "
            f"{model.tokenizer.id_to_token(highest)!r}; leave it out.",
            code="prompt_token_unknown",
        )
    return token_ids
