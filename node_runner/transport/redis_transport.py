"""The transport straight to Redis, for nodes that the operator runs beside it."""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis
import structlog

from mesh import redis_keys, wire
from mesh.errors import WireError
from mesh.keepalive import KEEPALIVE_INTERVAL, KEEPALIVE_TTL
from mesh.tcp_keepalive import TCP_OPTIONS
from mesh.token_stream import APPEND_TOKEN
from mesh.wire import Message, StopEpoch, Token
from mesh.wire.limits import INBOX_TTL
from node_runner.outputs import EngineOutput, NodeMessage, Report
from node_runner.transport.interface import RoundTripMeter, TransportUnreachable

TRIM_EVERY = 64
"""Exchanges between two trims of the part of the inbox that was read."""

SILENCE_TIMEOUT = 5.0
"""Seconds without an answer after which Redis counts as gone."""

MAX_WAIT = 2.0
"""Seconds that one read waits for work, at most: well below :data:`SILENCE_TIMEOUT`."""

KEEPALIVE_RETRY_DELAY = 1.0
"""Seconds until a lost connection for keep-alives is tried again."""

TEMPORARY_ERRORS = (redis.ReadOnlyError, redis.OutOfMemoryError, redis.exceptions.MasterDownError)
"""Errors of a Redis that is becoming a replica or is full."""

Command = tuple[Any, ...]
Entry = tuple[bytes, list[bytes]]
"""A stream entry: its ID, and its fields' names and values in turn."""

log = structlog.get_logger()


class RedisTransport:
    """Exchanges messages with Redis in one round trip: all pushes and the blocking read go out
    together on one connection.

    Commands are packed and answers parsed by redis-py's connection; its client and pipeline, which
    do the same, would cost a hop half as much again.
    """

    def __init__(self, url: str, node_id: str, free_kv: Callable[[], int]) -> None:
        """
        Args:
            free_kv: Gives the positions that are free in the KV cache.

        Raises:
            TransportUnreachable: Redis does not answer.
        """
        self._connection: Any = _open_pool(url, SILENCE_TIMEOUT).make_connection()
        self._node_id = node_id
        self._inbox = redis_keys.inbox(node_id)
        [newest] = self._call([("XREVRANGE", self._inbox, "+", "-", "COUNT", 1)])
        self._after: bytes = newest[0][0] if newest else b"0-0"
        self._exchanges = 0
        self._round_trip = RoundTripMeter()
        self._stop = threading.Event()
        self._keepalives = threading.Thread(
            target=_send_keepalives,
            args=(url, node_id, free_kv, self._round_trip, self._stop),
            daemon=True,
        )
        self._keepalives.start()

    @property
    def hop_ms(self) -> float:
        return self._round_trip.milliseconds

    def exchange(self, outputs: Sequence[EngineOutput], *, wait: float) -> list[Message]:
        # Steps first: the next node works while Redis takes in what readers want.
        forwarded = [output for output in outputs if isinstance(output, NodeMessage)]
        reports = [output for output in outputs if not isinstance(output, NodeMessage)]
        answers = self._call(
            [
                *self._trim(),
                *(_add(redis_keys.inbox(each.to), each.message) for each in forwarded),
                *(_report(report, self._node_id) for report in reports),
                _read(self._inbox, self._after, wait),
            ]
        )
        entries = _entries(answers.pop())
        if entries:
            self._after = entries[-1][0]
        return [
            *_stopped_epochs(reports, answers[len(answers) - len(reports) :]),
            *_decoded(entries),
        ]

    def close(self) -> None:
        self._stop.set()
        self._keepalives.join()
        self._connection.disconnect()

    def _trim(self) -> list[Command]:
        self._exchanges += 1
        if self._exchanges % TRIM_EVERY:
            return []
        milliseconds, _, sequence = self._after.decode().partition("-")
        unread = f"{milliseconds}-{int(sequence) + 1}"
        return [("XTRIM", self._inbox, "MINID", unread), ("EXPIRE", self._inbox, INBOX_TTL)]

    def _call(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands; returns one answer for each. After an error the connection begins anew: it
        holds answers that nobody will read."""
        connection = self._connection
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            answers = [connection.read_response() for _ in commands]
        except (redis.ConnectionError, redis.TimeoutError) as error:
            connection.disconnect()
            raise TransportUnreachable(
                f"Redis does not answer ({type(error).__name__})."
            ) from error
        except TEMPORARY_ERRORS as error:
            connection.disconnect()
            raise TransportUnreachable(f"Redis does not take writes ({error}).") from error
        except redis.ResponseError:
            connection.disconnect()
            raise
        return answers


def _open_pool(url: str, silence: float) -> redis.ConnectionPool:
    """Connections to Redis: the one place here that opens them.

    Args:
        silence: Seconds without an answer after which Redis counts as gone.
    """
    tcp = {"socket_keepalive": True, "socket_keepalive_options": TCP_OPTIONS}
    return redis.ConnectionPool.from_url(
        url,
        socket_connect_timeout=silence,
        socket_timeout=silence,
        **({} if url.startswith("unix:") else tcp),
    )


def _send_keepalives(
    url: str,
    node_id: str,
    free_kv: Callable[[], int],
    round_trip: RoundTripMeter,
    stop: threading.Event,
) -> None:
    """Say that this process runs, even while it computes for long, and how much KV is free; on a
    connection of its own."""
    key, ttl = redis_keys.keepalive(node_id), round(KEEPALIVE_TTL * 1000)
    with redis.Redis.from_pool(_open_pool(url, KEEPALIVE_RETRY_DELAY)) as client:
        delay = 0.0
        while not stop.wait(delay):
            try:
                free, began = free_kv(), time.perf_counter()
                client.set(key, free, px=ttl)
                round_trip.observe(time.perf_counter() - began)
                delay = KEEPALIVE_INTERVAL
            except redis.RedisError:
                delay = KEEPALIVE_RETRY_DELAY
        with contextlib.suppress(redis.RedisError):
            client.delete(key)


def _add(stream: str, message: Message) -> Command:
    fields = wire.encode(message)
    return ("XADD", stream, "*", *(part for field in fields.items() for part in field))


def _report(report: Report, node_id: str) -> Command:
    """Exactly one Redis command for a report of this node."""
    if isinstance(report, Token):
        stream = redis_keys.tokens(report.request_id)
        token = (report.epoch, report.index, report.token_id, report.text, report.logprobs)
        return ("EVAL", APPEND_TOKEN, 2, redis_keys.live_record(report.request_id), stream, *token)
    return (*_add(redis_keys.events(report.request_id), report), wire.SENDER, node_id)


def _read(inbox: str, after: bytes, wait: float) -> Command:
    block = ("BLOCK", max(1, round(1000 * min(wait, MAX_WAIT)))) if wait else ()
    return ("XREAD", *block, "STREAMS", inbox, after)


def _entries(answer: list[Any] | None) -> list[Entry]:
    """What a read of one stream found."""
    return answer[0][1] if answer else []


def _stopped_epochs(reports: Sequence[Report], answers: Sequence[object]) -> list[Message]:
    """A :class:`StopEpoch` for each token that came too late: its epoch is over."""
    return [
        StopEpoch(report.request_id, report.epoch)
        for report, answer in zip(reports, answers, strict=True)
        if isinstance(report, Token) and answer == -1
    ]


def _decoded(entries: Sequence[Entry]) -> list[Message]:
    messages = []
    for _, fields in entries:
        try:
            messages.append(wire.decode(dict(zip(fields[::2], fields[1::2], strict=True))))
        except WireError as error:
            log.warning("message_undecodable", code=error.code, reason=error.detail)
    return messages
