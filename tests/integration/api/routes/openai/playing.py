"""Requests whose jobs a test plays."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from market.prompt_vault import PromptText
from tests.support.gateway.api import Gateway, Job

T = TypeVar("T")


async def answered(
    gateway: Gateway,
    asking: Coroutine[Any, Any, T],
    play: Callable[[list[Job]], Coroutine[Any, Any, None]],
    jobs: int = 1,
) -> T:
    """The answer to a request whose jobs the test plays, in the order of its choices."""
    known = await gateway.request_ids()
    task = asyncio.create_task(asking)
    made = await new_jobs(gateway, known, jobs, task)
    await play(made)
    return await task


async def new_jobs(
    gateway: Gateway, known: set[str], count: int, asking: asyncio.Task[Any] | None = None
) -> list[Job]:
    """So many jobs that are written beside the known ones, in the order of their choices."""
    while len(new := await gateway.request_ids() - known) < count:
        if asking is not None and asking.done():
            await asking
        await asyncio.sleep(0.01)
    jobs = [Job(gateway, request_id) for request_id in new]
    choices = {job.id: (await job.row()).choice for job in jobs}
    return sorted(jobs, key=lambda job: choices[job.id])


async def play_hello(jobs: list[Job]) -> None:
    """Each answers with the same three tokens, the last one without text."""
    for job in jobs:
        await job.write("Hel", "lo", "")
        await job.complete("stop")


async def prompt_of(gateway: Gateway, job: Job) -> PromptText:
    """A job's prompt, as a worker opens it."""
    row = await job.row()
    assert row.request_cipher is not None
    return PromptText.from_bytes(gateway.services.vault.decrypt(job.id, row.request_cipher))
