"""The text of jobs so far, of which each part is read from Redis once while it is asked for."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from redis.asyncio import Redis

from market.jobs import live_session
from mesh.token_stream import token_count_at

KEPT_CHARACTERS = 8_000_000
"""Of all jobs together."""

KEPT_SECONDS = 60.0
"""Seconds for which a text that nobody asks for is kept: it is to be forgotten with Redis' copy."""


@dataclass(frozen=True, slots=True)
class JobText:
    """``tokens``: how many the text has."""

    text: str
    tokens: int
    read_at: float


class JobTexts:
    """One a process. Whoever asks for one job at a time shares the answer (see
    :class:`market.jobs.reading.shared_answers.SharedAnswers`)."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._kept: OrderedDict[str, JobText] = OrderedDict()
        self._characters = 0
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, request_id: str) -> JobText:
        """All that Redis has of a job's text."""
        known = self._kept.get(request_id)
        newest = token_count_at(await live_session.last_entry_id(self._redis, request_id))
        if known is not None and known.tokens > newest:  # forgotten, or begun again
            self._drop(request_id)
            known = None
        parts, tokens = ([known.text], known.tokens) if known else ([], 0)
        if tokens < newest:
            found = await live_session.tokens(self._redis, request_id, tokens)
            parts += [token.text for token in found]
            tokens += len(found)
        text = JobText("".join(parts), tokens, asyncio.get_running_loop().time())
        self._keep(request_id, text)
        return text

    def _keep(self, request_id: str, text: JobText) -> None:
        self._drop(request_id)
        self._kept[request_id] = text
        self._characters += len(text.text)
        while self._characters > KEPT_CHARACTERS:
            self._drop(next(iter(self._kept)))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(KEPT_SECONDS, self._drop_old)

    def _drop(self, request_id: str) -> None:
        text = self._kept.pop(request_id, None)
        if text is not None:
            self._characters -= len(text.text)

    def _drop_old(self) -> None:
        loop = asyncio.get_running_loop()
        for request_id, text in list(self._kept.items()):
            if text.read_at > loop.time() - KEPT_SECONDS:
                break
            self._drop(request_id)
        self._timer = loop.call_later(KEPT_SECONDS, self._drop_old) if self._kept else None
