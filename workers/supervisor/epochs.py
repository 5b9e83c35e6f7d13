"""A new epoch: its route found, reserved, claimed, recorded and opened; the one before closed."""

import random
import time
from collections.abc import Collection, Sequence

import structlog
from cryptography.exceptions import InvalidTag
from sqlalchemy import and_, func, insert, literal, update

from market import metrics
from market.jobs import live_session, messaging
from market.jobs.admission import waiting
from market.jobs.tables import Job, RouteHop
from market.nodes.node import Node
from market.prompt_vault import PromptText
from mesh.route_record import RouteRecord
from mesh.wire import Close, Ended
from workers.supervisor.errors import GenerationOver, LeaseLost, NoRouteNow
from workers.supervisor.open_messages import open_messages
from workers.supervisor.route_finder import Hop
from workers.supervisor.supervision import Supervision

log = structlog.get_logger()

POLL_SECONDS = 0.4
"""Seconds between searches for a route while there is none, give or take half, so that those
who wait do not all search at once."""

SEARCH_SECONDS = 1.0
"""Seconds for which a supervisor looks for a route before the generation waits without it: what a
node needs to free the KV cache that its last keep-alive still counts as used."""

OPEN_GRACE_SECONDS = 60
"""Seconds for which a node keeps a generation beyond its deadline, if nobody closes it."""


async def open_next(supervision: Supervision, reason: str, *, keep_kv: bool = True) -> None:
    """Find a route and begin the next epoch on it. Nodes of the epoch before can no longer write
    from the moment the next begins.

    Args:
        supervision: Of the generation.
        reason: Why, for metric and log: ``first``, ``taken_over``, ``redis_lost``, ``silent``,
            ``stalled``, or the code of a refusal.
        keep_kv: Whether nodes that stay on the route may go on with the KV cache they have.

    Raises:
        GenerationOver: the user has cancelled, the end was reached, no route found before the
            deadline, or the prompt cannot be read any more.
        NoRouteNow: the generation has to wait for a route.
        LeaseLost: another supervisor has taken over.
    """
    supervision.state.reason = reason
    prompt = _prompt(supervision)  # first: without it a route would be of no use
    try:
        route = await _search_route(supervision)
    except NoRouteNow:
        if not keep_kv:
            await free_kv(supervision)
        raise
    if reason != "first":
        metrics.reroutes.labels(supervision.model.id, reason).inc()
    job = supervision.job
    supervision.epoch = await _claim_epoch(supervision, route)
    supervision.positions = {}
    positions = job.prompt_tokens + job.max_tokens
    record = RouteRecord(supervision.model.width, positions, [node.node_id for node in route])
    if not await live_session.begin_epoch(
        supervision.redis, supervision.id, supervision.epoch, record, ttl=supervision.live_ttl()
    ):
        await supervision.check_cancelled()
        raise LeaseLost
    generated = [token.token_id for token in await supervision.tokens()]
    if len(generated) >= job.max_tokens:
        raise GenerationOver("length", tokens=len(generated))
    await _record_route(supervision, route, first_token=len(generated))
    served, supervision.route = supervision.route, [Hop.of(node) for node in route]
    supervision.speakers, supervision.first_token = supervision.node_ids, len(generated)
    kept = set(served) & set(supervision.route) if keep_kv and generated else set()
    await close(supervision, set(served) - set(supervision.route), supervision.epoch - 1)
    await _open_route(supervision, prompt, generated, kept)
    log.info(
        "route_opened",
        request_id=supervision.id,
        epoch=supervision.epoch,
        reason=reason,
        nodes=supervision.node_ids,
        kept=len(kept),
        tokens_so_far=len(generated),
    )
    await supervision.route_finder.count_skips()


async def free_kv(supervision: Supervision) -> None:
    """Let all nodes of the route free the generation's KV cache; the next epoch prefills anew."""
    await close(supervision, supervision.route, supervision.epoch)
    supervision.route = []


async def close(supervision: Supervision, hops: Collection[Hop], epoch: int) -> None:
    """Tell nodes that the generation, as of an epoch, no longer needs them."""
    for hop in hops:
        await messaging.send_to_inbox(
            supervision.redis,
            hop.node_id,
            [Close(supervision.id, epoch)],
            ttl=supervision.generation_settings.stream_ttl,
        )


async def _search_route(supervision: Supervision) -> list[Node]:
    """A route whose nodes have reserved KV cache.

    Raises:
        NoRouteNow: there was none for :data:`SEARCH_SECONDS`, or it is the turn of others.
    """
    if await _others_first(supervision):
        raise NoRouteNow
    give_up = time.monotonic() + SEARCH_SECONDS
    counted = supervision.has_waited
    while True:
        route = await supervision.route_finder.find(supervision.route)
        if route is not None and await supervision.route_finder.reserve(route, supervision.route):
            return route
        if route is None and not counted:
            await supervision.route_finder.count_skips()
            counted = True
        for event in await supervision.read_events(POLL_SECONDS * random.uniform(0.5, 1.5)):
            if isinstance(event, Ended):  # nodes of the epoch before write until the next begins
                await supervision.check_ended(event)
        supervision.check_time_and_cancel(late="no_route")
        if time.monotonic() > give_up:
            raise NoRouteNow


async def _others_first(supervision: Supervision) -> bool:
    """Whether a new generation would take what others wait for already."""
    if supervision.epoch > 0 or supervision.has_waited:
        return False
    async with supervision.resources.sessions() as db:
        return await waiting.any_before(db, supervision.job)


async def _claim_epoch(supervision: Supervision, route: Sequence[Node]) -> int:
    """The next epoch's number, from Postgres, so that it outlives Redis; with it, how the epoch's
    tokens are computed."""
    invariant = all(node.batch_invariant for node in route)
    async with supervision.resources.sessions.begin() as db:
        epoch: int | None = await db.scalar(
            update(Job)
            .where(
                Job.id == supervision.job.id,
                Job.lease_counter == supervision.lease.counter,
            )
            .values(
                epoch=Job.epoch + 1,
                cached_prompt_tokens=supervision.cached,
                batch_invariant=and_(func.coalesce(Job.batch_invariant, True), literal(invariant)),
                quantization="+".join(sorted({node.quantization for node in route})),
                waiting_since=None,
                waiting_state=None,
            )
            .returning(Job.epoch)
        )
    if epoch is None:
        raise LeaseLost
    return epoch


async def _record_route(
    supervision: Supervision, route: Sequence[Node], *, first_token: int
) -> None:
    """Keep who serves the epoch, for the bill. ``first_token``: index of its first token."""
    rows = [
        {
            "session_id": supervision.job.id,
            "epoch": supervision.epoch,
            "stage": stage,
            "node_id": node.node_id,
            "wallet_address": node.wallet_address,
            "start_layer": node.start_layer,
            "end_layer": node.end_layer,
            "first_token": first_token,
        }
        for stage, node in enumerate(route)
    ]
    async with supervision.resources.sessions.begin() as db:
        await db.execute(insert(RouteHop), rows)


def _prompt(supervision: Supervision) -> PromptText:
    """The prompt in clear.

    Raises:
        GenerationOver: it was erased, or stored under another key.
    """
    cipher = supervision.job.request_cipher
    if cipher is None:
        raise GenerationOver("failed", "prompt_lost")
    try:
        return PromptText.from_bytes(supervision.resources.vault.decrypt(supervision.id, cipher))
    except InvalidTag:
        log.error("prompt_key_changed", request_id=supervision.id)
        raise GenerationOver("failed", "prompt_lost") from None


async def _open_route(
    supervision: Supervision, prompt: PromptText, generated: list[int], kept: Collection[Hop]
) -> None:
    """Send every node of the route its part of the epoch. ``kept``: hops that go on with the KV
    cache of the epoch before."""
    job, vault = supervision.job, supervision.resources.vault
    messages = open_messages(
        job,
        prompt,
        vault.prefix(job.user_wallet, prompt.token_ids)
        if supervision.state.use_prefix and not generated
        else [],
        supervision.route,
        epoch=supervision.epoch,
        generated=generated,
        kept=kept,
        expires_in=supervision.seconds_left() + OPEN_GRACE_SECONDS,
    )
    for node_id, message in messages:
        await messaging.send_to_inbox(
            supervision.redis, node_id, [message], ttl=supervision.generation_settings.stream_ttl
        )
