"""Straight to Redis: for nodes that the operator runs beside it."""

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
from mesh.token_stream import APPEND_TOKEN
from mesh.wire import Halt, Message, Token
from mesh.wire.limits import INBOX_TTL
from node_runner.outputs import EngineOutput, NodeMessage
from node_runner.transport.interface import HopClock, Unreachable

TRIM_EVERY = 64
"""Exchanges between two trims of the part of the inbox that was read."""

SILENCE_LIMIT = 5.0
"""Seconds without an answer after which Redis counts as gone. Longer than any wait for work."""

PULSE_RETRY = 1.0
"""Seconds until a lost connection for pulses is tried again."""

PASSING = (redis.ReadOnlyError, redis.OutOfMemoryError, redis.exceptions.MasterDownError)
"""Errors of a Redis that is becoming a replica or is full, and will be well again."""

Command = tuple[Any, ...]
Entry = tuple[bytes, list[bytes]]
"""A stream entry: its ID, and its fields' names and values in turn."""

log = structlog.get_logger()


class RedisTransport:
    """One connection, one round trip an exchange: all pushes and the blocking read go out together.

    Commands are packed and answers parsed by redis-py's connection; its client and pipeline, which
    do the same, would cost a hop half as much again.
    """

    def __init__(self, url: str, node_id: str, room: Callable[[], int]) -> None:
        """
        Args:
            room: Tells how many positions there is KV room for.

        Raises:
            Unreachable: Redis does not answer.
        """
        self._connection = redis.ConnectionPool.from_url(
            url, socket_connect_timeout=SILENCE_LIMIT, socket_timeout=SILENCE_LIMIT
        ).make_connection()
        self._inbox = redis_keys.inbox(node_id)
        [newest] = self._call([("XREVRANGE", self._inbox, "+", "-", "COUNT", 1)])
        self._after: bytes = newest[0][0] if newest else b"0-0"
        self._exchanges = 0
        self._hop = HopClock()
        self._stop = threading.Event()
        self._pulse = threading.Thread(
            target=_beat, args=(url, node_id, room, self._hop, self._stop), daemon=True
        )
        self._pulse.start()

    @property
    def hop_ms(self) -> float:
        return self._hop.milliseconds

    def exchange(self, results: Sequence[EngineOutput], *, wait: float) -> list[Message]:
        # Steps first: the next node works while Redis takes in what readers want.
        steps = [result for result in results if isinstance(result, NodeMessage)]
        others = [result for result in results if not isinstance(result, NodeMessage)]
        answers = self._call(
            [
                *self._upkeep(),
                *(_add(redis_keys.inbox(forward.to), forward.message) for forward in steps),
                *map(_report, others),
                _read(self._inbox, self._after, wait),
            ]
        )
        entries = _entries(answers.pop())
        if entries:
            self._after = entries[-1][0]
        return [*_refused(others, answers[len(answers) - len(others) :]), *_decoded(entries)]

    def close(self) -> None:
        self._stop.set()
        self._pulse.join()
        self._connection.disconnect()

    def _upkeep(self) -> list[Command]:
        self._exchanges += 1
        if self._exchanges % TRIM_EVERY:
            return []
        milliseconds, _, sequence = self._after.decode().partition("-")
        unread = f"{milliseconds}-{int(sequence) + 1}"
        return [("XTRIM", self._inbox, "MINID", unread), ("EXPIRE", self._inbox, INBOX_TTL)]

    def _call(self, commands: Sequence[Command]) -> list[Any]:
        """One answer a command. After an error the connection begins anew: it holds answers that
        nobody will read."""
        connection = self._connection
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            answers = [connection.read_response() for _ in commands]
        except (redis.ConnectionError, redis.TimeoutError) as error:
            connection.disconnect()
            raise Unreachable(f"Redis does not answer ({type(error).__name__}).") from error
        except PASSING as error:
            connection.disconnect()
            raise Unreachable(f"Redis does not take writes ({error}).") from error
        except redis.ResponseError:
            connection.disconnect()
            raise
        return answers


def _beat(
    url: str, node_id: str, room: Callable[[], int], hop: HopClock, stop: threading.Event
) -> None:
    """Tell that this process runs, even while it computes for long, and how much room it has; on a
    connection of its own."""
    key, ttl = redis_keys.keepalive(node_id), round(KEEPALIVE_TTL * 1000)
    with redis.Redis.from_url(url, socket_timeout=PULSE_RETRY) as client:
        delay = 0.0
        while not stop.wait(delay):
            try:
                free, began = room(), time.perf_counter()
                client.set(key, free, px=ttl)
                hop.observe(time.perf_counter() - began)
                delay = KEEPALIVE_INTERVAL
            except redis.RedisError:
                delay = PULSE_RETRY
        with contextlib.suppress(redis.RedisError):
            client.delete(key)


def _add(stream: str, message: Message) -> Command:
    fields = wire.encode(message)
    return ("XADD", stream, "*", *(part for field in fields.items() for part in field))


def _report(result: EngineOutput) -> Command:
    """What goes to readers or to the supervisor: exactly one command a result."""
    if isinstance(result, Token):
        stream = redis_keys.tokens(result.request_id)
        place = (result.epoch, result.index, result.token_id, result.text)
        return ("EVAL", APPEND_TOKEN, 2, redis_keys.live_record(result.request_id), stream, *place)
    return _add(redis_keys.events(result.request_id), result)


def _read(inbox: str, after: bytes, wait: float) -> Command:
    block = ("BLOCK", max(1, round(wait * 1000))) if wait else ()
    return ("XREAD", *block, "STREAMS", inbox, after)


def _entries(answer: list[Any] | None) -> list[Entry]:
    """What a read of one stream found."""
    return answer[0][1] if answer else []


def _refused(results: Sequence[EngineOutput], answers: Sequence[object]) -> list[Message]:
    """For tokens that came too late: their epoch is over."""
    return [
        Halt(result.request_id, result.epoch)
        for result, answer in zip(results, answers, strict=True)
        if isinstance(result, Token) and answer == -1
    ]


def _decoded(entries: Sequence[Entry]) -> list[Message]:
    messages = []
    for _, fields in entries:
        try:
            messages.append(wire.decode(dict(zip(fields[::2], fields[1::2], strict=True))))
        except WireError as error:
            log.warning("message_refused", code=error.code, reason=error.detail)
    return messages
