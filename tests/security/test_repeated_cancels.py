"""A user cancels the same job again and again, and each request writes another event for its
supervisor to read."""

import asyncio

import pytest

from market.jobs import cancellation, messaging
from mesh import token_stream
from mesh.wire import Cancel
from tests.support.gateway.api import Gateway


@pytest.mark.parametrize("at_once", [False, True], ids=["one after another", "at once"])
async def test_only_the_first_cancel_of_a_job_writes_an_event(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, *, at_once: bool
) -> None:
    monkeypatch.setattr(cancellation, "CANCEL_WAIT", 0.01)
    job = await gateway.submit()
    if at_once:
        answers = await asyncio.gather(*(gateway.client.delete(job.url) for _ in range(10)))
    else:
        answers = [await gateway.client.delete(job.url) for _ in range(10)]
    assert {answer.status_code for answer in answers} == {200}
    _, events = await messaging.read_events(gateway.redis, job.id, token_stream.START, wait=0)
    assert [event.message for event in events] == [Cancel(job.id, 0)]
