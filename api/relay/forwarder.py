"""From a node's push to the inboxes and streams it is for: each message checked against the live
session, then all of them in one round trip."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import structlog
from redis.exceptions import RedisError, ResponseError

from api.relay import message_rules, metrics
from api.relay.message_rules import (
    EPOCH_OVER,
    FLOOD,
    IN_BAD_COMPANY,
    MALFORMED,
    NOT_ON_ROUTE,
    Event,
)
from api.relay.pipelined_connection import Command, PipelinedConnection
from api.relay.quotas.inbox_sizes import CHECKS_OF_ALL, CHECKS_PER_INBOX, InboxSizes
from api.relay.quotas.message_counts import MessageCounts, StageKey
from api.relay.quotas.throttle import NodeThrottle
from api.relay.route_cache import RouteCache, RouteKey
from api.relay.stream_trimming import StreamTrimmer
from market.settings.relay import RelaySettings
from mesh import redis_keys, wire
from mesh.errors import WireError
from mesh.relay import MAX_ITEMS, OutgoingMessage, Push, PushAck, Refusal
from mesh.route_record import RouteRecord
from mesh.token_stream import APPEND_TOKEN
from mesh.wire import GenerationRefused, Message, PrefixCached, Step, Steps, Token
from mesh.wire.limits import INBOX_TTL, MAX_NODE_HEADER_BYTES, MAX_STEPS

MAX_EVENTS_PER_GENERATION = 1000
"""Of a generation, kept at a time, or a few more: a supervisor reads them as they come, and nodes
send few."""

ENTRY_OVERHEAD = 64
"""Bytes that Redis needs for a short message beside it."""

LOOKUPS_AT_ONCE = 256
"""Generations whose routes are looked up in one round trip for one push: a push names many
thousands in few bytes, and other nodes' commands wait behind them."""

RoutesByKey = Mapping[RouteKey, RouteRecord]

log = structlog.get_logger()


@dataclass(slots=True)
class _Plan:
    """What will be done for one push.

    Attributes:
        commands: To Redis, in their order.
        inbox_bytes: That go to each node.
        inbox_checks: Indices of commands that measure an inbox, and the node whose it is.
        tokens: Indices of commands that write tokens, and what to refuse if Redis refuses them.
        counted: Steps that were counted, and of which stage.
        refused: What is refused already.
    """

    commands: list[Command] = field(default_factory=list)
    inbox_bytes: Counter[str] = field(default_factory=Counter)
    inbox_checks: list[tuple[int, str]] = field(default_factory=list)
    tokens: list[tuple[int, Refusal]] = field(default_factory=list)
    counted: list[tuple[StageKey, Step]] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)


class Forwarder:
    """Forwards pushes of all nodes of the process by one connection: what many push at once goes
    out together."""

    def __init__(
        self,
        connection: PipelinedConnection,
        settings: RelaySettings,
        inboxes: InboxSizes,
        throttle: NodeThrottle,
    ) -> None:
        self._connection = connection
        self._routes = RouteCache(connection)
        self._counts = MessageCounts()
        self._inboxes = inboxes
        self._throttle = throttle
        self._trimmer = StreamTrimmer()
        self._logged = StreamTrimmer()
        self._inbox_trimmer = StreamTrimmer(
            settings.max_inbox_bytes // CHECKS_PER_INBOX,
            settings.max_inboxes_bytes // CHECKS_OF_ALL,
        )

    async def forward(self, node_id: str, session: str, push: Push) -> PushAck:
        """Forward what the node may send; the answer says what was refused.

        Raises:
            RedisError: Redis does not answer, or is full; the node pushes again.
        """
        plan = _Plan()
        messages: list[tuple[OutgoingMessage, Message | None]] = []
        for outgoing in push.messages:
            message = _decoded(outgoing)
            messages.append((outgoing, message))
            if isinstance(message, Steps):
                await self._throttle.acquire_steps(node_id, len(message.steps))
        routes = await self._find_routes(node_id, [each for _, each in messages])
        for outgoing, message in messages:
            if message is None:
                plan.refused.append(Refusal("", 0, "wire_error"))
            elif isinstance(message, Steps):
                self._plan_steps(node_id, outgoing, message, routes, plan)
                if len(messages) > 1:
                    await asyncio.sleep(0)  # others have their turn
            elif isinstance(message, PrefixCached | Event):
                self._plan_control(node_id, outgoing, message, routes, plan)
            else:
                plan.refused.append(Refusal("", 0, "not_allowed"))
        plan.commands += self._reports(node_id, plan.refused, routes)
        connection_key = redis_keys.relay_connection(node_id)
        plan.commands.append(("HSET", connection_key, "session", session, "number", push.number))
        if self._trimmer.due(connection_key):
            plan.commands.append(("EXPIRE", connection_key, INBOX_TTL))
        self._measure_inboxes(plan)
        answers = await self._do(plan)
        if plan.inbox_checks:
            await self._inboxes.sum_up(
                [self._inboxes.measured(owner, answers[at]) for at, owner in plan.inbox_checks]
            )
        plan.refused += [refusal for index, refusal in plan.tokens if answers[index] == -1]
        refused = _one_each(plan.refused)
        _count(len(push.messages), plan.refused)
        self._log(node_id, refused)
        return PushAck(push.number, refused)

    async def _find_routes(
        self, node_id: str, messages: Iterable[Message | None]
    ) -> dict[RouteKey, RouteRecord]:
        """The routes of all generations that may write. Each other one counts as a message: it is
        looked up whenever it is named. They are not remembered as none, since who knows what comes
        next could keep an epoch from beginning."""
        named = [message for message in messages if message is not None]
        keys = list({key for message in named for key in _keys(message)})
        routes: dict[RouteKey, RouteRecord] = {}
        for start in range(0, len(keys), LOOKUPS_AT_ONCE):
            some = keys[start : start + LOOKUPS_AT_ONCE]
            found = await self._routes.find(some)
            routes |= found
            if len(found) < len(some):
                await self._throttle.acquire(node_id, len(some) - len(found), 0)
        return routes

    def _log(self, node_id: str, refused: Sequence[Refusal]) -> None:
        """A line a minute for each node and code: who is refused may ask two thousand times a
        second. The metric has all of them."""
        for refusal in refused:
            code = refusal.code
            if code != EPOCH_OVER and self._logged.due(f"{node_id} {code}"):
                log.warning(
                    "push_refused",
                    node_id=node_id,
                    request_id=refusal.request_id,
                    epoch=refusal.epoch,
                    code=code,
                )

    def _plan_steps(
        self,
        node_id: str,
        outgoing: OutgoingMessage,
        message: Steps,
        routes: RoutesByKey,
        plan: _Plan,
    ) -> None:
        """Forward all steps of a message or none; except that steps whose epoch is over are refused
        alone, since batches end one by one; their receiver drops them."""
        any_good = False
        refused: list[Refusal] = []
        for step in message.steps:
            code = self._step_code(node_id, outgoing.to, step, message.width, routes, plan)
            if code is None:
                any_good = True
            else:
                refused.append(Refusal(step.request_id, step.epoch, code))
        plan.refused += refused
        if any_good and all(refusal.code == EPOCH_OVER for refusal in refused):
            _add_to_inbox(outgoing, plan)
        elif any_good:  # the good steps are refused with the bad: their generations have to know
            bad = {(refusal.request_id, refusal.epoch) for refusal in refused}
            plan.refused += [
                Refusal(step.request_id, step.epoch, IN_BAD_COMPANY)
                for step in message.steps
                if (step.request_id, step.epoch) not in bad
            ]

    def _step_code(
        self,
        node_id: str,
        to: str,
        step: Step,
        width: int,
        routes: RoutesByKey,
        plan: _Plan,
    ) -> str | None:
        """Why a step may not be sent; none if it may, which is counted."""
        key = (step.request_id, step.epoch)
        route = routes.get(key)
        if not to:
            return "wrong_receiver"
        if route is None:
            return EPOCH_OVER
        code = message_rules.check_step(node_id, to, step, width, route)
        if code is not None:
            return code
        stage = _stage(node_id, key, route)
        plan.counted.append((stage, step))
        few = self._counts.step(stage, step, route.capacity, self._routes.tokens(key))
        return None if few else FLOOD

    def _plan_control(
        self,
        node_id: str,
        outgoing: OutgoingMessage,
        message: PrefixCached | Event,
        routes: RoutesByKey,
        plan: _Plan,
    ) -> None:
        key = (message.request_id, message.epoch)
        route = routes.get(key)
        if route is None:
            code: str | None = EPOCH_OVER
        elif isinstance(message, PrefixCached):
            code = message_rules.check_ready(node_id, outgoing.to, message, route)
        else:
            code = (
                message_rules.check_event(node_id, message, route) if not outgoing.to else MALFORMED
            )
        if code is None and route is not None:
            code = self._count_control(_stage(node_id, key, route), message, route)
        if code is not None:
            plan.refused.append(Refusal(message.request_id, message.epoch, code))
        elif isinstance(message, PrefixCached):
            _add_to_inbox(outgoing, plan)
        elif isinstance(message, Token):
            late = Refusal(message.request_id, message.epoch, EPOCH_OVER)
            plan.tokens.append((len(plan.commands), late))
            keys = (
                redis_keys.live_record(message.request_id),
                redis_keys.tokens(message.request_id),
            )
            token = (message.epoch, message.index, message.token_id, message.text, message.logprobs)
            plan.commands.append(("EVAL", APPEND_TOKEN, 2, *keys, *token))
        else:
            plan.commands += _add_event(message.request_id, outgoing.header, sender=node_id)

    def _count_control(
        self, stage: StageKey, message: PrefixCached | Event, route: RouteRecord
    ) -> str | None:
        """Why a stage may not send such a message once more; none if it may."""
        if isinstance(message, Token):
            few = self._counts.token(stage, message, route.capacity)
        else:
            few = self._counts.event(stage)
        return None if few else FLOOD

    def _reports(self, node_id: str, refused: list[Refusal], routes: RoutesByKey) -> list[Command]:
        """Events for the supervisors of generations whose rules a node of the route has broken."""
        broken = {
            (refusal.request_id, refusal.epoch): refusal.code
            for refusal in refused
            if refusal.code not in (EPOCH_OVER, NOT_ON_ROUTE, IN_BAD_COMPANY)
            and (refusal.request_id, refusal.epoch) in routes
            and node_id in routes[refusal.request_id, refusal.epoch].nodes
        }
        commands: list[Command] = []
        for (request_id, epoch), code in broken.items():
            key = (request_id, epoch)
            if self._counts.report(_stage(node_id, key, routes[key])):
                entry = wire.encode(GenerationRefused(request_id, epoch, node_id, code))
                commands += _add_event(request_id, entry[wire.HEADER], sender=wire.PLATFORM)
        return commands

    def _measure_inboxes(self, plan: _Plan) -> None:
        due = {
            owner
            for owner, size in plan.inbox_bytes.items()
            if self._inbox_trimmer.due(owner, size)
        }
        for owner in sorted(due.union(self._inbox_trimmer.all_due())):
            plan.inbox_checks.append((len(plan.commands), owner))
            plan.commands.append(self._inboxes.measure(owner))

    async def _do(self, plan: _Plan) -> list[Any]:
        try:
            answers = await self._connection.call(plan.commands)
            for answer in answers:
                if isinstance(answer, ResponseError):
                    raise answer
        except RedisError:
            self._trimmer.reset()
            self._inbox_trimmer.reset()
            for stage, step in plan.counted:
                self._counts.undo(stage, step)
            raise
        return answers


def _decoded(outgoing: OutgoingMessage) -> Message | None:
    """The message; none if it is not one, or not one that a node may send."""
    if len(outgoing.header) > MAX_NODE_HEADER_BYTES:
        return None
    fields = {wire.HEADER: outgoing.header, wire.TENSOR: outgoing.tensor}
    try:
        message = wire.decode(fields, max_items=MAX_STEPS)
    except WireError:
        return None
    if outgoing.tensor and not isinstance(message, Steps):
        return None
    return message if all(message_rules.is_request_id(key[0]) for key in _keys(message)) else None


def _keys(message: Message) -> Iterable[RouteKey]:
    if isinstance(message, Steps):
        return [(step.request_id, step.epoch) for step in message.steps]
    return [(message.request_id, message.epoch)]


def _stage(node_id: str, key: RouteKey, route: RouteRecord) -> StageKey:
    """The stage of a node that is on the route."""
    return (*key, route.nodes.index(node_id))


def _add_to_inbox(outgoing: OutgoingMessage, plan: _Plan) -> None:
    tensor = (wire.TENSOR, outgoing.tensor) if outgoing.tensor else ()
    plan.commands.append(
        ("XADD", redis_keys.inbox(outgoing.to), "*", wire.HEADER, outgoing.header, *tensor)
    )
    plan.inbox_bytes[outgoing.to] += len(outgoing.header) + len(outgoing.tensor) + ENTRY_OVERHEAD


def _add_event(request_id: str, header: Any, *, sender: str) -> list[Command]:
    events, limit = redis_keys.events(request_id), ("MAXLEN", "~", MAX_EVENTS_PER_GENERATION)
    return [
        ("XADD", events, *limit, "*", wire.HEADER, header, wire.SENDER, sender),
        ("EXPIRE", events, INBOX_TTL),
    ]


def _one_each(refused: Iterable[Refusal]) -> list[Refusal]:
    """The first of each generation and epoch, at which the node then works no more; and no more
    than one frame may have. What is left out is refused when the node sends it again."""
    first: dict[RouteKey, Refusal] = {}
    for refusal in refused:
        first.setdefault((refusal.request_id, refusal.epoch), refusal)
    return list(islice(first.values(), MAX_ITEMS))


def _count(messages: int, refused: Sequence[Refusal]) -> None:
    metrics.relay_messages.inc(messages)
    for code, count in Counter(refusal.code for refusal in refused).items():
        metrics.relay_refusals.labels(code).inc(count)
