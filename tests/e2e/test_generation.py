"""From a prompt to tokens, through real processes."""

import re
from collections.abc import Callable
from decimal import Decimal

import httpx
import pytest
import redis

from mesh import redis_keys
from stack.development_stack import DevelopmentStack
from tests.e2e.conftest import Reference, User, at_once, balance, cost_of, query, wait_until


def test_the_answer_is_what_transformers_gives(user: User, reference: Reference) -> None:
    prompt = "The for statement"
    result = user.generate(prompt)
    assert result["text"] == reference.text(prompt)
    assert result["tokens_generated"] <= 64
    assert result["latency_ms"] >= result["time_to_first_token_ms"] > 0
    layers = [part["layers"] for part in result["nodes_used"]]
    assert layers == [[0, 1], [2, 3], [4, 5]]


def test_a_prompt_that_begins_as_the_last_one_goes_on_from_there(
    user: User, reference: Reference
) -> None:
    """The first one is computed whole; the second one copies what they share. Same tokens."""
    system = "The return value is the string itself. An exception is raised if it is not. " * 8
    cached = []
    for question in ("When", "The for statement", "When"):
        prompt = system + question
        result = user.generate(prompt)
        assert result["text"] == reference.text(prompt)
        assert Decimal(result["cost_far_exact"]) == cost_of(result)
        cached.append(result["cached_prompt_tokens"])
    assert cached[0] == 0 < cached[1] <= cached[2]


def test_sixteen_at_once_are_each_exact_and_share_forwards(
    stack: DevelopmentStack, make_user: Callable[..., User], reference: Reference
) -> None:
    user = make_user()
    prompts = [f"The number {number} is" for number in range(16)]
    texts = at_once(16, lambda index: user.generate(prompts[index], max_tokens=32)["text"])
    assert texts == [reference.text(prompt, 32) for prompt in prompts]
    for index in range(3):
        assert largest_batch(stack, index) > 1


def largest_batch(stack: DevelopmentStack, index: int) -> float:
    """Lower bound of a node's largest batch, from its own metrics."""
    port = stack.metrics_ports[f"node-{index}"]
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    counts = {
        float(bound): float(count)
        for bound, count in re.findall(r'far_node_batch_size_bucket\{le="([\d.]+)"\} (\S+)', text)
    }
    total = float(re.search(r"far_node_batch_size_count (\S+)", text).group(1))  # type: ignore[union-attr]
    return max((bound + 1 for bound, count in counts.items() if count < total), default=1)


@pytest.mark.parametrize("read_before", [0, 1, 7, 30])
def test_a_reader_that_comes_back_sees_each_token_once(
    user: User, reference: Reference, read_before: int
) -> None:
    prompt = "When an exception is raised"
    request_id = user.submit(prompt)
    first = user.events(request_id, stop_after=read_before) if read_before else []
    after = first[-1][0] if first else None
    rest = user.events(request_id, after=after)
    tokens = [*first, *rest[:-1]]
    assert [event_id for event_id, _ in tokens] == [str(n + 1) for n in range(len(tokens))]
    text = "".join(data["token"] for _, data in tokens)
    done = rest[-1][1]
    assert done["done"] is True
    assert done["total_tokens"] == len(tokens)
    assert text == reference.text(prompt) == user.job(request_id)["text"]
    assert user.events(request_id, after=rest[-1][0]) == []


def test_polling_and_events_agree(user: User) -> None:
    request_id = user.submit("A list is")
    seen = ""
    while (job := user.job(request_id))["status"] not in ("completed", "failed"):
        assert job["text"].startswith(seen)
        seen = job["text"]
    job = user.job(request_id)
    events = user.events(request_id)
    assert job["text"] == "".join(data["token"] for _, data in events[:-1])
    assert job["tokens_generated"] == events[-1][1]["total_tokens"] == len(events) - 1
    assert job["cost_far"] == events[-1][1]["cost_far"]


def test_a_seed_gives_the_same_text_again(user: User) -> None:
    how = {"temperature": 0.9, "top_p": 0.95, "max_tokens": 32}
    texts = [user.generate("Python is", seed=seed, **how)["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_stop_string_ends_the_text(user: User, reference: Reference) -> None:
    prompt = "The with statement"
    whole = reference.text(prompt)
    stop = whole[12:15]
    result = user.generate(prompt, stop=[stop])
    assert result["text"] == whole[: whole.index(stop)]
    assert result["finish_reason"] == "stop"


def test_a_job_is_readable_for_an_hour_and_then_gone(
    stack: DevelopmentStack, user: User, redis_client: redis.Redis
) -> None:
    result = user.generate("A module")
    request_id = result["request_id"]
    keys = redis_client.keys(f"*{request_id}*")
    assert redis_keys.tokens(request_id).encode() in keys
    for key in keys:
        assert 0 < redis_client.ttl(key) <= 3600, key
    redis_client.delete(redis_keys.tokens(request_id))
    assert user.job(request_id)["text"] == result["text"]  # from Postgres
    query(stack, f"UPDATE job_tokens SET readable_until = now() {of_job(request_id)}")
    job = user.job(request_id)
    assert job["text"] is None
    assert job["cost_far_exact"] == result["cost_far_exact"]
    answer = user.http.get(f"/api/inference/jobs/{request_id}/events")
    assert (answer.status_code, answer.json()["code"]) == (410, "stream_expired")
    wait_until(
        lambda: query(stack, f"SELECT page FROM job_tokens {of_job(request_id)}") == [],
        "the text's erasure",
    )


def of_job(request_id: str) -> str:
    return (
        f"WHERE session_id = (SELECT id FROM inference_sessions WHERE request_id = '{request_id}')"
    )


def test_the_user_pays_for_what_was_generated(stack: DevelopmentStack, user: User) -> None:
    result = user.generate("In Python")
    cost = cost_of(result)
    assert Decimal(result["cost_far_exact"]) == cost
    assert balance(stack, user.account, "available") == 1 - cost
    assert balance(stack, user.account, "held") == 0
    shares = [Decimal(part["payment_far_exact"]) for part in result["nodes_used"]]
    assert sum(shares) + Decimal(result["platform_fee_far_exact"]) == cost


def test_32_requests_at_once_never_overdraw_a_wallet(
    stack: DevelopmentStack, make_user: Callable[..., User]
) -> None:
    """Money for ten."""
    user = make_user(far="0.0104")  # the prompt has four tokens
    body = user.body("Numbers", max_tokens=10)

    def ask(_: int) -> int:
        return user.http.post(
            "/api/inference/distributed/generate", json=body, headers={"Prefer": "respond-async"}
        ).status_code

    answers = at_once(32, ask)
    assert set(answers) == {202, 402}
    assert answers.count(202) >= 10
    wait_until(lambda: balance(stack, user.account, "held") == 0, "the end of all")
    assert balance(stack, user.account, "available") >= 0
