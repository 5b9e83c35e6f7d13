"""Errors of routing: no route, request longer than any KV cache or than the deadline."""

from market.errors import InvalidRequest, Unavailable


class KvCapacityExceeded(InvalidRequest):
    code = "room_exceeded"
    title = "Room exceeded"


class DeadlineUnreachable(InvalidRequest):
    code = "deadline_unreachable"
    title = "Deadline unreachable"


class NoRoute(Unavailable):
    code = "no_route"
