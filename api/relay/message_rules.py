"""What a node may send, of a generation whose route is known: pure rules.

The relay does not look into hidden states. Their values are the receiver's to check; that they are
as many as the header says, :mod:`mesh.wire` has checked before.
"""

import re
from collections.abc import Callable
from typing import Any

from mesh.route_record import RouteRecord
from mesh.wire import Ended, GenerationRefused, Pong, PrefixCached, PrefixReused, Step, Token
from mesh.wire.limits import (
    MAX_DRAFT_TOKENS,
    MAX_REFUSAL_CODE,
    MAX_REQUEST_ID,
    MAX_STEP_ROWS,
    MAX_TOKEN_ID,
    MAX_TOKEN_TEXT,
)
from mesh.wire.logprobs import is_packed
from mesh.wire.refusal_codes import OWN_FAULTS

EPOCH_OVER = "epoch_over"
"""The generation has ended or goes on with another epoch: nobody's fault."""

IN_BAD_COMPANY = "in_bad_company"
"""A step that is right, in a message with one that is not: of its generation nothing is known that
would be against its sender."""

NOT_ON_ROUTE = "not_on_route"
MALFORMED = "malformed"

FLOOD = "flood"
"""More than a stage has to say of a generation: see :mod:`api.relay.quotas.message_counts`."""

FINISH_REASONS = ("stop", "length")

_REQUEST_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_REQUEST_ID}}}", re.ASCII)

Event = Token | Ended | GenerationRefused | Pong | PrefixReused
"""What goes to readers and supervisors."""


def is_request_id(text: str) -> bool:
    """Whether a generation can be called that: what else it might be would be part of a key."""
    return _REQUEST_ID.fullmatch(text) is not None


def check_step(node_id: str, to: str, step: Step, width: int, route: RouteRecord) -> str | None:
    """Why this node may not send this step to that node; none if it may."""
    stage = route.stage_of(node_id)
    if stage is None:
        return NOT_ON_ROUTE
    last = stage == len(route.nodes) - 1
    rules = {
        "wrong_receiver": to != route.next_node(stage) or to == node_id,
        "wrong_width": width != route.width,
        "wrong_rows": step.rows > MAX_STEP_ROWS or (last and step.rows != step.wanted),
        # Nobody comes after the last stage, and nobody samples what is replayed.
        "wrong_stage": step.replay and (last or step.wanted > 0),
        "out_of_capacity": step.position + step.rows > route.capacity,
    }
    return next((code for code, broken in rules.items() if broken), None)


def check_ready(node_id: str, to: str, message: PrefixCached, route: RouteRecord) -> str | None:
    """Why a node may not say that a prompt's prefix is in its cache; none if it may."""
    stage = route.stage_of(node_id)
    if stage is None:
        return NOT_ON_ROUTE
    if to != route.edge_node:
        return "wrong_receiver"
    if stage == 0 or message.stage != stage:
        return "wrong_stage"
    if not 0 <= message.positions <= route.capacity:
        return "out_of_capacity"
    return None


def check_event(node_id: str, message: Event, route: RouteRecord) -> str | None:
    """Why a node may not send this to readers or the supervisor; none if it may."""
    stage = route.stage_of(node_id)
    if stage is None:
        return NOT_ON_ROUTE
    rule = _EVENT_RULES[type(message)]
    return rule(node_id, stage, message, route)


def _token(node_id: str, stage: int, message: Token, route: RouteRecord) -> str | None:
    if stage != 0:
        return "not_the_edge"
    if not 0 <= message.index < route.capacity or not 0 <= message.token_id <= MAX_TOKEN_ID:
        return "out_of_capacity"
    if not is_packed(message.logprobs):
        return MALFORMED
    return "too_long" if len(message.text) > MAX_TOKEN_TEXT else None


def _ended(node_id: str, stage: int, message: Ended, route: RouteRecord) -> str | None:
    if stage != 0:
        return "not_the_edge"
    if message.reason not in FINISH_REASONS:
        return MALFORMED
    drafts = message.accepted_drafts, message.rejected_drafts
    counts_hold = 0 <= message.count <= route.capacity and all(
        0 <= count <= MAX_DRAFT_TOKENS * route.capacity for count in drafts
    )
    return None if counts_hold else "out_of_capacity"


def _refused(
    node_id: str, stage: int, message: GenerationRefused, route: RouteRecord
) -> str | None:
    # A node may name itself, or, for steps that cannot be right, who sends them.
    if message.node_id != node_id and (
        message.node_id != route.previous_node(stage) or message.code in OWN_FAULTS
    ):
        return "wrong_node"
    return "too_long" if len(message.code) > MAX_REFUSAL_CODE else None


def _pong(node_id: str, stage: int, message: Pong, route: RouteRecord) -> str | None:
    if message.node_id != node_id:
        return "wrong_node"
    return None if 0 <= message.positions <= route.capacity else "out_of_capacity"


def _reused(node_id: str, stage: int, message: PrefixReused, route: RouteRecord) -> str | None:
    if stage != 0:
        return "not_the_edge"
    return None if 0 <= message.positions <= route.capacity else "out_of_capacity"


_EVENT_RULES: dict[type, Callable[[str, int, Any, RouteRecord], str | None]] = {
    Token: _token,
    Ended: _ended,
    GenerationRefused: _refused,
    Pong: _pong,
    PrefixReused: _reused,
}
