"""Answers that all who ask the same at one time share."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class SharedAnswers(Generic[K, V]):
    """Asks for one key at most once at a time, however many callers there are.

    A caller that comes while an answer is being made gets the next one, so that nobody's answer is
    older than the question.

    Args:
        ask: Makes the answer to a key. What it raises, all callers get who share the answer.
    """

    def __init__(self, ask: Callable[[K], Awaitable[V]]) -> None:
        self._ask = ask
        self._running: dict[K, asyncio.Task[V]] = {}
        self._next: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K) -> V:
        """The answer, from a question that is put to the source after this call."""
        task = self._next.get(key)
        if task is None:
            task = asyncio.create_task(self._answer(key, self._running.get(key)))
            task.add_done_callback(_retrieve)
            self._next[key] = task
        return await asyncio.shield(task)

    async def _answer(self, key: K, earlier: asyncio.Task[V] | None) -> V:
        if earlier is not None:
            await asyncio.wait([earlier])
        task = self._running[key] = self._next.pop(key)
        try:
            return await self._ask(key)
        finally:
            if self._running[key] is task:
                del self._running[key]


def _retrieve(task: asyncio.Task[V]) -> None:
    """Whoever asked may have gone away: then nobody looks at the error."""
    if not task.cancelled():
        task.exception()
