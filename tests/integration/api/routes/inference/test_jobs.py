"""Reading a generation: JSON, server-sent events, polling, and coming back."""

import datetime as dt
from collections.abc import Awaitable, Callable

import pytest
from redis.exceptions import ConnectionError

from market.jobs.reading import token_hub
from market.jobs.reading.token_hub import TokenHub
from tests.conftest import MODEL_ID
from tests.support.gateway.api import (
    GENERATE,
    OTHER_WALLET,
    Event,
    Gateway,
    Job,
    parse_events,
    problem,
    request_body,
    texts,
)
from tests.support.gateway.api_served import serve

TOKENS = ("The", " benefits", "", " of", " caf", "é\n\n\u2028", "data: x")
"""With an empty one (half a character), and with what would break a stream if not escaped."""

TEXT = "".join(TOKENS)

COST = "0.00082"
"""Seven tokens, and the prompt's twelve at a tenth of their price."""


@pytest.fixture(autouse=True)
def short_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers look more often whether a silent job has ended."""
    monkeypatch.setattr(token_hub, "POLL_SECONDS", 0.05)


async def finished(gateway: Gateway) -> Job:
    """A job that has ended, and can be read."""
    job = await gateway.submit()
    await job.write(*TOKENS)
    await job.complete("stop")
    return job


def token_events(job: Job, tokens: tuple[str, ...] = TOKENS) -> list[Event]:
    """The specification's events (§7.1), each with its id."""
    return [
        Event(str(number), {"token": token, "request_id": job.id})
        for number, token in enumerate(tokens, 1)
    ]


def check_done(event: Event, job: Job) -> None:
    assert event.id == f"{len(TOKENS)}-done"
    assert event.data["done"] is True
    assert event.data["request_id"] == job.id
    assert event.data["total_tokens"] == len(TOKENS)
    assert event.data["prompt_tokens"] == 12
    assert event.data["cost_far"] == pytest.approx(float(COST))
    assert event.data["cost_far_exact"] == COST
    assert event.data["latency_ms"] >= 0
    assert event.data["finish_reason"] == "stop"


async def test_a_stream_has_the_specifications_events(gateway: Gateway) -> None:
    asking, job = await gateway.begin(stream=True)
    await job.write(*TOKENS)
    await job.complete("stop")
    answer = await asking
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"
    *tokens, done = parse_events(answer.text)
    assert tokens == token_events(job)
    check_done(done, job)


async def test_tokens_arrive_as_they_are_written(gateway: Gateway) -> None:
    async with (
        serve(gateway) as server,
        server.client.stream("POST", GENERATE, json=request_body(stream=True)) as answer,
    ):
        job = await gateway.new_job()
        lines = answer.aiter_lines()
        for number, token in enumerate(TOKENS, 1):
            await job.write(token)
            assert await anext(lines) == f"id: {number}"
            assert (await anext(lines)).startswith('data: {"token": ')
            assert await anext(lines) == ""
        await job.complete()
        assert await anext(lines) == f"id: {len(TOKENS)}-done"


async def test_a_json_answer_has_the_specifications_fields(gateway: Gateway) -> None:
    asking, job = await gateway.begin()
    await job.write(*TOKENS)
    await job.complete("stop")
    answer = await asking
    assert answer.status_code == 200
    result = answer.json()
    assert result["request_id"] == job.id
    assert result["text"] == TEXT
    assert result["tokens_generated"] == len(TOKENS)
    assert result["cost_far"] == pytest.approx(float(COST))
    assert result["latency_ms"] >= 0
    nodes = [(used["node_id"], used["layers"]) for used in result["nodes_used"]]
    assert nodes == [("node_0", [0, 1]), ("node_1", [2, 3]), ("node_2", [4, 5])]


async def test_polling_follows_the_job(gateway: Gateway) -> None:
    job = await gateway.submit()
    states = [await job.poll()]
    await job.write(*TOKENS[:2])
    states.append(await job.poll())
    await job.write(*TOKENS[2:])
    await job.complete("stop")
    states.append(await job.poll())
    assert [state["status"] for state in states] == ["pending", "active", "completed"]
    assert [state["text"] for state in states] == ["", "The benefits", TEXT]
    assert [state["tokens_generated"] for state in states] == [0, 2, len(TOKENS)]
    assert [state["finish_reason"] for state in states] == [None, None, "stop"]
    assert [state["model_id"] for state in states] == [MODEL_ID] * 3


async def test_polling_and_events_agree(gateway: Gateway) -> None:
    job = await finished(gateway)
    *tokens, done = await job.events()
    polled = await job.poll()
    assert texts(tokens) == polled["text"] == TEXT
    same = {"total_tokens": "tokens_generated"} | {
        name: name
        for name in ("status", "cost_far", "cost_far_exact", "latency_ms", "finish_reason")
    }
    assert {event: done.data[event] for event in same} == {
        event: polled[name] for event, name in same.items()
    }
    assert done.data["nodes_used"] == [
        {"node_id": used["node_id"], "layers": used["layers"]} for used in polled["nodes_used"]
    ]


async def test_a_reader_resumes_after_any_token(gateway: Gateway) -> None:
    job = await finished(gateway)
    whole = token_events(job)
    for seen in range(len(TOKENS) + 1):
        *rest, done = await job.events(after=str(seen))
        assert rest == whole[seen:]
        check_done(done, job)


async def test_a_reader_that_saw_the_end_is_told_that_nothing_follows(gateway: Gateway) -> None:
    job = await finished(gateway)
    seen = {"Last-Event-ID": f"{len(TOKENS)}-done"}
    for _ in range(2):  # also once the text has been forgotten
        answer = await gateway.client.get(job.url + "/events", headers=seen)
        assert (answer.status_code, answer.content) == (204, b"")
        await job.forget()


async def test_a_reader_that_hangs_up_in_the_middle_misses_nothing(gateway: Gateway) -> None:
    job = await gateway.submit()
    await job.write(*TOKENS[:3])
    async with serve(gateway) as server:
        async with server.client.stream("GET", job.url + "/events") as answer:
            lines = answer.aiter_lines()
            seen = [await anext(lines) for _ in range(3 * 2)]
        await job.write(*TOKENS[3:])
        await job.complete("stop")
        last = [line.removeprefix("id: ") for line in seen if line.startswith("id: ")][-1]
        again = await server.client.get(job.url + "/events", headers={"Last-Event-ID": last})
    *rest, done = parse_events(again.text)
    assert parse_events("\n".join(seen)) + rest == token_events(job)
    check_done(done, job)


@pytest.mark.parametrize(
    "value",
    ["x", "-1", "1.5", "\xb2", "9" * 30, "9" * 5000, "9", "-done", "done", "1-done-done", "1-0"],
)
async def test_a_malformed_last_event_id(gateway: Gateway, value: str) -> None:
    job = await gateway.submit(max_tokens=8)
    answer = await gateway.client.get(
        job.url + "/events", headers=[(b"Last-Event-ID", value.encode("latin-1"))]
    )
    problem(answer, 422, "last_event_id_malformed")


async def test_after_an_hour_the_text_is_forgotten(gateway: Gateway) -> None:
    job = await finished(gateway)
    await job.forget()
    polled = await job.poll()
    assert polled["text"] is None
    assert polled["tokens_generated"] == len(TOKENS)
    for after in ({}, {"Last-Event-ID": "3"}):
        problem(await gateway.client.get(job.url + "/events", headers=after), 410, "stream_expired")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("summarized", [False, True])
async def test_a_key_of_a_forgotten_job(
    gateway: Gateway, *, stream: bool, summarized: bool
) -> None:
    """The same job, whose text nobody has any more; no new one, and no endless wait."""
    key = {"Idempotency-Key": "key"}
    asking, job = await gateway.begin(headers=key, stream=stream)
    await job.write(*TOKENS)
    await job.complete()
    await asking
    await job.forget()
    if summarized:  # Redis was emptied before the last entry of the stream
        await job.summarize()
    again = await gateway.client.post(GENERATE, json=request_body(stream=stream), headers=key)
    assert again.status_code == 200
    if stream:
        [event] = parse_events(again.text)
        assert event.data["error"]["code"] == "stream_expired"
    else:
        assert (again.json()["request_id"], again.json()["text"]) == (job.id, None)


@pytest.mark.parametrize("code", ["no_route", "deadline_exceeded", "stalled", "prompt_lost"])
async def test_a_failed_job(gateway: Gateway, code: str) -> None:
    job = await gateway.submit()
    await job.write("The")
    await job.fail(code)
    token, done = await job.events()
    assert token.data["token"] == "The"
    assert done.id == "1-done"
    assert done.data["error"]["code"] == code
    assert "You pay 0.00022 FAR for the prompt and the 1 tokens" in done.data["error"]["detail"]
    assert (done.data["done"], done.data["status"]) == (True, "failed")
    assert (done.data["total_tokens"], done.data["cost_far_exact"]) == (1, "0.00022")
    polled = await job.poll()
    assert (polled["status"], polled["error"]) == ("failed", code)
    assert (polled["text"], polled["cost_far_exact"]) == ("The", "0.00022")


async def test_a_job_that_fails_before_its_first_token_says_that_it_is_free(
    gateway: Gateway,
) -> None:
    job = await gateway.submit()
    await job.fail("no_route")
    [done] = await job.events()
    assert done.data["error"]["detail"].endswith("Nothing was charged.")
    assert done.data["cost_far_exact"] == "0"


async def test_a_failed_job_is_forgotten_as_any_other(gateway: Gateway) -> None:
    job = await gateway.submit()
    await job.write("The")
    await job.fail()
    await job.forget()
    assert (await job.poll())["text"] is None
    problem(await gateway.client.get(job.url + "/events"), 410, "stream_expired")


async def test_a_failed_job_as_json_is_a_problem(gateway: Gateway) -> None:
    asking, job = await gateway.begin()
    await job.write("The")
    await job.fail("stalled")
    said = problem(await asking, 502, "stalled")
    assert (said["request_id"], said["tokens_generated"]) == (job.id, 1)
    assert said["cost_far_exact"] == "0.00022"


async def test_a_failed_job_as_a_stream_ends_with_the_error(gateway: Gateway) -> None:
    asking, job = await gateway.begin(stream=True)
    await job.fail("stalled")
    [done] = parse_events((await asking).text)
    assert done.data["error"]["code"] == "stalled"


async def completed(job: Job) -> None:
    await job.complete(summary=False)


async def failed(job: Job) -> None:
    await job.fail(summary=False)


@pytest.mark.parametrize(("end", "status"), [(completed, "completed"), (failed, "failed")])
async def test_a_reader_ends_although_the_summary_was_lost(
    gateway: Gateway, end: Callable[[Job], Awaitable[None]], status: str
) -> None:
    """The worker died between its last transaction and the last entry of the stream."""
    asking, job = await gateway.begin(stream=True)
    await job.write("a", "b")
    await end(job)
    *tokens, done = parse_events((await asking).text)
    assert texts(tokens) == "ab"
    assert done.id == "2-done"
    assert (done.data["status"], done.data["total_tokens"]) == (status, 2)


@pytest.mark.parametrize("summarized", [False, True], ids=["after the summary", "before it"])
@pytest.mark.parametrize("after", [None, "1", "130", "300", "300-done"])
async def test_a_text_that_redis_has_lost_is_read_from_postgres(
    gateway: Gateway, after: str | None, *, summarized: bool
) -> None:
    """Redis was emptied after the job's end: the readers see no difference."""
    words = [f" {number}" for number in range(300)]
    job = await gateway.submit(max_tokens=300)
    await job.write(*words)
    await job.complete(summary=False)
    before, polled = await job.events(after), await job.poll()
    await job.lose()
    if summarized:
        await job.summarize()
    assert await job.events(after) == before
    assert await job.poll() == polled
    assert polled["text"] == "".join(words)


async def test_a_reader_who_follows_while_redis_loses_the_rest(gateway: Gateway) -> None:
    asking, job = await gateway.begin(stream=True, max_tokens=8)
    await job.write("a", "b")
    await job.write("c")
    await job.complete(summary=False)
    await job.lose()
    *tokens, done = parse_events((await asking).text)
    assert texts(tokens) == "abc"
    assert (done.id, done.data["total_tokens"]) == ("3-done", 3)


async def test_part_of_a_text_that_redis_has_kept(gateway: Gateway) -> None:
    """As after a start from a snapshot."""
    job = await gateway.submit()
    await job.write("a", "b", "c")
    await job.complete(summary=False)
    await job.lose()
    await job.restore("a")
    *tokens, done = await job.events()
    assert (texts(tokens), done.id) == ("abc", "3-done")
    assert (await job.poll())["text"] == "abc"


async def test_a_stream_that_loses_redis_can_be_resumed(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with an error that is not the job's, and cancels nothing."""

    async def lose_redis(hub: TokenHub, jobs: object) -> None:
        raise ConnectionError

    job = await gateway.submit()
    await job.write("a")
    with monkeypatch.context() as broken:
        broken.setattr(TokenHub, "_read_once", lose_redis)
        token, error = await job.events()
        waiting = await gateway.client.post(GENERATE, json=request_body())
    assert (token.data["token"], error.id) == ("a", None)
    assert error.data["error"]["code"] == "unavailable"
    assert "done" not in error.data
    problem(waiting, 503, "unavailable")
    await job.write("b")
    await job.complete()
    assert texts(await job.events(after="1")) == "b"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reader_of_a_job_that_nobody_ends_is_sent_away(
    gateway: Gateway, stream: bool
) -> None:
    asking, job = await gateway.begin(stream=stream)
    async with gateway.sessions.begin() as db:
        row = await db.merge(await job.row())
        row.deadline_at -= dt.timedelta(hours=1)
    if stream:
        [event] = parse_events((await asking).text)
        assert event.data["error"]["code"] == "unavailable"
        assert "done" not in event.data
    else:
        problem(await asking, 503, "unavailable")
    assert not (await job.row()).cancel_requested


@pytest.mark.parametrize("request_id", ["req_0", "%00", "%F0%9F%92%A9", "x" * 3000])
@pytest.mark.parametrize(("method", "end"), [("GET", ""), ("GET", "/events"), ("DELETE", "")])
async def test_an_unknown_job(
    empty_gateway: Gateway, method: str, end: str, request_id: str
) -> None:
    answer = await empty_gateway.client.request(method, f"/api/inference/jobs/{request_id}{end}")
    problem(answer, 404, "job_not_found")


async def test_another_users_job_does_not_exist(gateway: Gateway) -> None:
    job = await finished(gateway)
    gateway.client.headers.update(gateway.login(OTHER_WALLET))
    for url in (job.url, job.url + "/events"):
        problem(await gateway.client.get(url), 404, "job_not_found")
