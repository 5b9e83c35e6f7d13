"""Straight to Redis: for nodes that the operator runs beside it."""

import time
from collections.abc import Sequence

import redis
import structlog

from mesh import names, wire
from mesh.errors import WireError
from mesh.streams import APPEND_TOKEN
from mesh.wire import Close, Ended, Message, Pong, Refused, Token
from node_runner.engine.engine import Forward, Result

INBOX_TTL = 3600
"""Seconds after which an inbox that nobody feeds or reads is gone."""

TRIM_EVERY = 64
"""Exchanges between two trims of the part of the inbox that was read."""

RETRY_DELAYS = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds between tries while Redis does not answer; the last repeats."""

Entry = tuple[bytes, dict[bytes, bytes]]
"""A stream entry: its ID and its fields."""

log = structlog.get_logger()


class RedisTransport:
    """One connection, one round trip an exchange: all pushes and the blocking read are sent as
    one pipeline.

    Steps that leave together arrive together, so that a batch stays one from node to node: they
    are pushed in one transaction, since a reader that waits is woken by the first it sees.
    """

    def __init__(self, url: str, node_id: str) -> None:
        self._redis = redis.Redis.from_url(url, socket_connect_timeout=5)
        self._inbox = names.inbox(node_id)
        newest = self._redis.xrevrange(self._inbox, count=1)
        self._after = newest[0][0] if newest else b"0-0"
        self._exchanges = 0

    def exchange(
        self, results: Sequence[Result], *, wait: float, generations: int = 1
    ) -> list[Message]:
        tries = 0
        while True:
            try:
                return self._exchange(results, wait, generations)
            except (redis.ConnectionError, redis.TimeoutError) as error:
                # What was pushed may have arrived: pushing again is harmless.
                delay = RETRY_DELAYS[min(tries, len(RETRY_DELAYS) - 1)]
                tries += 1
                log.warning("redis_unreachable", error=type(error).__name__, retry_in=delay)
                time.sleep(delay)

    def close(self) -> None:
        self._redis.close()

    def _exchange(self, results: Sequence[Result], wait: float, generations: int) -> list[Message]:
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.execute_command("MULTI")
            for result in results:
                self._push(pipe, result)
            pipe.execute_command("EXEC")
            self._exchanges += 1
            if self._exchanges % TRIM_EVERY == 0:
                pipe.xtrim(self._inbox, minid=_after(self._after), approximate=False)
                pipe.expire(self._inbox, INBOX_TTL)
            pipe.xread(
                {self._inbox: self._after}, block=max(1, round(wait * 1000)) if wait else None
            )
            answers = pipe.execute()
        pushed = _checked(answers[len(results) + 1])
        entries = _entries(answers[-1])
        if wait and 0 < len(entries) < generations:
            # The first to arrive ended the wait; others may have come since.
            entries += _entries(self._redis.xread({self._inbox: entries[-1][0]}))
        if entries:
            self._after = entries[-1][0]
        return [*_refused(results, pushed), *_decoded(entries)]

    def _push(self, pipe: "redis.client.Pipeline", result: Result) -> None:
        """Exactly one command a result, so that answers can be matched to them."""
        match result:
            case Forward():
                pipe.xadd(names.inbox(result.to), wire.encode(result.step))
            case Token():
                pipe.eval(
                    APPEND_TOKEN,
                    2,
                    names.live(result.request_id),
                    names.tokens(result.request_id),
                    result.epoch,
                    result.index,
                    result.token_id,
                    result.text,
                )
            case Ended() | Refused() | Pong():
                pipe.xadd(names.events(result.request_id), wire.encode(result))


def _checked(answers: Sequence[object]) -> Sequence[object]:
    """A transaction's answers, of which redis-py raises no errors itself."""
    for answer in answers:
        if isinstance(answer, redis.ResponseError):
            raise answer
    return answers


def _refused(results: Sequence[Result], answers: Sequence[object]) -> list[Message]:
    """For tokens that came too late: their generation is to be forgotten."""
    return [
        Close(result.request_id, result.epoch)
        for result, answer in zip(results, answers, strict=True)
        if isinstance(result, Token) and answer == -1
    ]


def _entries(answer: Sequence[tuple[bytes, list[Entry]]]) -> list[Entry]:
    """What a read of one stream found."""
    return answer[0][1] if answer else []


def _decoded(entries: Sequence[Entry]) -> list[Message]:
    messages = []
    for _, fields in entries:
        try:
            messages.append(wire.decode(fields))
        except WireError as error:
            log.warning("message_refused", code=error.code, reason=error.detail)
    return messages


def _after(entry: bytes) -> str:
    milliseconds, _, sequence = entry.decode().partition("-")
    return f"{milliseconds}-{int(sequence) + 1}"
