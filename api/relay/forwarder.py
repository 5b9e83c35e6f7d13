"""From a node's push to the inboxes and streams it is for: each message checked against the live
session, then all of them in one round trip."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import structlog
from redis.exceptions import RedisError, ResponseError

from api.relay import message_rules, metrics
from api.relay.message_rules import EPOCH_OVER, MALFORMED, NOT_ON_ROUTE, Event
from api.relay.pipelined_connection import Command, PipelinedConnection
from api.relay.route_cache import Key, RouteCache
from api.relay.stream_trimming import KEEP_INBOX, KEY_TTL, StreamTrimmer
from mesh import redis_keys, wire
from mesh.errors import WireError
from mesh.relay import MAX_ITEMS, OutgoingMessage, Push, PushAck, Refusal
from mesh.route_record import RouteRecord
from mesh.token_stream import APPEND_TOKEN
from mesh.wire import GenerationRefused, Message, PrefixCached, Step, Steps, Token

MAX_EVENTS = 1000
"""Of a generation, kept at a time, or a few more: a supervisor reads them as they come, and nodes
have little to tell."""

LOOKS = 16
"""An inbox is measured each time that another so manieth of what it may hold has come."""

ENTRY_OVERHEAD = 64
"""Bytes that Redis needs for a short message beside it."""

MAX_HEADER_BYTES = 2**16
"""What nodes say to each other is short; only what a supervisor says carries prompts."""

Routes = Mapping[Key, RouteRecord]

log = structlog.get_logger()


@dataclass(slots=True)
class _Plan:
    """What will be done for one push. ``tokens``: places of commands that write tokens, and what
    to refuse if Redis refuses them. ``inboxes``: the bytes that go to each node. ``looks``: places
    of commands that look after an inbox, and whose it is."""

    commands: list[Command] = field(default_factory=list)
    inboxes: Counter[str] = field(default_factory=Counter)
    looks: list[tuple[int, str]] = field(default_factory=list)
    tokens: list[tuple[int, Refusal]] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)


class Forwarding:
    """``line`` is shared by all nodes of the process: what many push at once goes out together."""

    def __init__(self, line: PipelinedConnection, max_inbox_bytes: int) -> None:
        self._line = line
        self._known = RouteCache(line)
        self._max_inbox_bytes = max_inbox_bytes
        self._upkeep = StreamTrimmer(max_inbox_bytes // LOOKS)

    async def forward(self, node_id: str, session: str, push: Push) -> PushAck:
        """
        Raises:
            RedisError: Redis does not answer, or is full; the node pushes again.
        """
        plan = _Plan()
        messages = [(sent, _decoded(sent)) for sent in push.sent]
        routes = await self._known.find(
            {key for _, message in messages if message is not None for key in _keys(message)}
        )
        for sent, message in messages:
            if message is None:
                plan.refused.append(Refusal("", 0, "wire_error"))
            elif isinstance(message, Steps):
                _plan_steps(node_id, sent, message, routes, plan)
            elif isinstance(message, PrefixCached | Event):
                _plan_note(node_id, sent, message, routes, plan)
            else:
                plan.refused.append(Refusal("", 0, "not_allowed"))
        plan.commands += _complaints(node_id, plan.refused, routes)
        link = redis_keys.relay_connection(node_id)
        plan.commands.append(("HSET", link, "session", session, "number", push.number))
        if self._upkeep.due(link):
            plan.commands.append(("EXPIRE", link, KEY_TTL))
        self._look_after_inboxes(plan)
        answers = await self._do(plan.commands)
        for place, owner in plan.looks:
            if answers[place]:
                log.warning("inbox_emptied", node_id=owner)
        plan.refused += [refusal for place, refusal in plan.tokens if answers[place] == -1]
        told = _told(plan.refused)
        _count(len(push.sent), plan.refused)
        _log(node_id, told)
        return PushAck(push.number, told)

    def _look_after_inboxes(self, plan: _Plan) -> None:
        for owner, size in plan.inboxes.items():
            inbox = redis_keys.inbox(owner)
            if self._upkeep.due(inbox, size):
                plan.looks.append((len(plan.commands), owner))
                limits = (KEY_TTL, self._max_inbox_bytes)
                plan.commands.append(("EVAL", KEEP_INBOX, 1, inbox, *limits))

    async def _do(self, commands: Sequence[Command]) -> list[Any]:
        try:
            answers = await self._line.call(commands)
            for answer in answers:
                if isinstance(answer, ResponseError):
                    raise answer
        except RedisError:
            self._upkeep.forget()
            raise
        return answers


def _decoded(sent: OutgoingMessage) -> Message | None:
    """The message; none if it is not one, or tells what no node has to tell."""
    if len(sent.header) > MAX_HEADER_BYTES:
        return None
    fields = {wire.HEADER: sent.header, wire.TENSOR: sent.tensor}
    try:
        message = wire.decode(fields, max_items=message_rules.MAX_STEPS)
    except WireError:
        return None
    if sent.tensor and not isinstance(message, Steps):
        return None
    return message if all(message_rules.is_request_id(key[0]) for key in _keys(message)) else None


def _keys(message: Message) -> Iterable[Key]:
    if isinstance(message, Steps):
        return [(step.request_id, step.epoch) for step in message.steps]
    return [(message.request_id, message.epoch)]


def _plan_steps(
    node_id: str, sent: OutgoingMessage, message: Steps, routes: Routes, plan: _Plan
) -> None:
    """All or nothing: except that steps whose epoch is over are refused alone, since batches end
    one by one; their receiver drops them."""
    wrong = message_rules.check_shape(message, sent.to)
    alive = False
    refused: list[Refusal] = []
    for step in message.steps:
        code = wrong or _step_code(node_id, sent.to, step, message.width, routes)
        if code is None:
            alive = True
        else:
            refused.append(Refusal(step.request_id, step.epoch, code))
    plan.refused += refused
    if alive and all(refusal.code == EPOCH_OVER for refusal in refused):
        _add_to_inbox(sent, plan)
    elif alive:  # the good steps go down with the bad: their generations have to know
        bad = {(refusal.request_id, refusal.epoch) for refusal in refused}
        plan.refused += [
            Refusal(step.request_id, step.epoch, "in_bad_company")
            for step in message.steps
            if (step.request_id, step.epoch) not in bad
        ]


def _step_code(node_id: str, to: str, step: Step, width: int, routes: Routes) -> str | None:
    route = routes.get((step.request_id, step.epoch))
    return (
        EPOCH_OVER if route is None else message_rules.check_step(node_id, to, step, width, route)
    )


def _plan_note(
    node_id: str, sent: OutgoingMessage, message: PrefixCached | Event, routes: Routes, plan: _Plan
) -> None:
    route = routes.get((message.request_id, message.epoch))
    if route is None:
        code: str | None = EPOCH_OVER
    elif isinstance(message, PrefixCached):
        code = message_rules.check_ready(node_id, sent.to, message, route)
    else:
        code = message_rules.check_event(node_id, message, route) if not sent.to else MALFORMED
    if code is not None:
        plan.refused.append(Refusal(message.request_id, message.epoch, code))
    elif isinstance(message, PrefixCached):
        _add_to_inbox(sent, plan)
    elif isinstance(message, Token):
        late = Refusal(message.request_id, message.epoch, EPOCH_OVER)
        plan.tokens.append((len(plan.commands), late))
        keys = (redis_keys.live_record(message.request_id), redis_keys.tokens(message.request_id))
        place = (message.epoch, message.index, message.token_id, message.text)
        plan.commands.append(("EVAL", APPEND_TOKEN, 2, *keys, *place))
    else:
        plan.commands += _add_event(message.request_id, sent.header)


def _complaints(node_id: str, refused: list[Refusal], routes: Routes) -> list[Command]:
    """The supervisors hear of a node on their route that breaks its rules: as of a bad step."""
    blamed = {
        (refusal.request_id, refusal.epoch): refusal.code
        for refusal in refused
        if refusal.code not in (EPOCH_OVER, NOT_ON_ROUTE)
        and (refusal.request_id, refusal.epoch) in routes
        and node_id in routes[refusal.request_id, refusal.epoch].nodes
    }
    commands: list[Command] = []
    for (request_id, epoch), code in blamed.items():
        entry = wire.encode(GenerationRefused(request_id, epoch, node_id, code))
        commands += _add_event(request_id, entry[wire.HEADER])
    return commands


def _add_to_inbox(sent: OutgoingMessage, plan: _Plan) -> None:
    tensor = (wire.TENSOR, sent.tensor) if sent.tensor else ()
    plan.commands.append(
        ("XADD", redis_keys.inbox(sent.to), "*", wire.HEADER, sent.header, *tensor)
    )
    plan.inboxes[sent.to] += len(sent.header) + len(sent.tensor) + ENTRY_OVERHEAD


def _add_event(request_id: str, header: Any) -> list[Command]:
    events = redis_keys.events(request_id)
    return [
        ("XADD", events, "MAXLEN", "~", MAX_EVENTS, "*", wire.HEADER, header),
        ("EXPIRE", events, KEY_TTL),
    ]


def _told(refused: Iterable[Refusal]) -> list[Refusal]:
    """One for each generation, at which its node then works no more; and no more than one frame
    may bring. Of the others the node hears when it sends for them again."""
    first: dict[Key, Refusal] = {}
    for refusal in refused:
        first.setdefault((refusal.request_id, refusal.epoch), refusal)
    return list(islice(first.values(), MAX_ITEMS))


def _count(messages: int, refused: Sequence[Refusal]) -> None:
    metrics.relay_messages.inc(messages)
    for refusal in refused:
        metrics.relay_refusals.labels(refusal.code).inc()


def _log(node_id: str, refused: Sequence[Refusal]) -> None:
    for refusal in refused:
        if refusal.code != EPOCH_OVER:
            log.warning(
                "push_refused",
                node_id=node_id,
                request_id=refusal.request_id,
                epoch=refusal.epoch,
                code=refusal.code,
            )
