"""Errors of routing: no route, request longer than any KV cache."""

from market.errors import InvalidRequest, Unavailable


class KvCapacityExceeded(InvalidRequest):
    code = "room_exceeded"
    title = "Room exceeded"


class NoRoute(Unavailable):
    code = "no_route"
