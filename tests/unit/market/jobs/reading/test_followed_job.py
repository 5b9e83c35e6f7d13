"""What a followed job keeps in memory of its tokens."""

import asyncio
from contextlib import suppress

import pytest

from market.jobs.reading import followed_job
from market.jobs.reading.followed_job import FollowedJob


def test_every_position_gets_what_follows_it() -> None:
    job = FollowedJob("req")
    job.oldest = job.newest = 3
    for token in (b"d", b"e", b"f"):
        job.append(token)
    assert [job.after(position) for position in (3, 4, 5)] == [b"def", b"ef", b"f"]


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed_job, "KEPT_BYTES", 10)
    job = FollowedJob("req")
    for _ in range(100):
        job.append(b"abc")
    assert (job.oldest, job.newest) == (97, 100)
    assert job.after(97) == 3 * b"abc"
    job.append(b"x" * 100)  # the newest is kept, however long
    assert (job.oldest, job.after(100)) == (100, b"x" * 100)


async def test_who_waits_and_leaves_is_forgotten() -> None:
    job = FollowedJob("req")
    waiting = [asyncio.create_task(job.change()) for _ in range(10)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert not job.take_waiting()
