"""One request to the platform: what counts as its answer, and what does not."""

import httpx
import pytest

from node_runner.platform_client import http as module
from node_runner.platform_client.errors import PlatformError, PlatformRefused, PlatformUnreachable
from node_runner.platform_client.http import client, request
from node_runner.retry_after import LONGEST_WAIT
from tests.support.gateway.platform_server import TEMPORARY, Answer, PlatformServer, problem

PATH = "/api/some"


def test_the_answers_object_is_given(server: PlatformServer, http: httpx.Client) -> None:
    server.answers[PATH] = [Answer(200, {"a": 1}), Answer(204, "")]
    assert request(http, "POST", PATH, {"b": 2}, token="t", required=["a"]) == {"a": 1}
    assert request(http, "DELETE", PATH) == {}
    first, second = server.requests
    assert (first.method, first.token, first.body) == ("POST", "t", {"b": 2})
    assert (second.method, second.token, second.body) == ("DELETE", None, None)


@pytest.mark.parametrize("answer", TEMPORARY.values(), ids=TEMPORARY)
def test_what_may_pass_is_worth_another_try(
    server: PlatformServer, http: httpx.Client, answer: Answer
) -> None:
    server.answers[PATH] = [answer]
    with pytest.raises(PlatformUnreachable):
        request(http, "GET", PATH, required=["a"])


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7), ("100000", LONGEST_WAIT), ("²", 0), ("Wed, 21 Oct", 0)]
)
def test_the_platforms_wait_is_told(
    server: PlatformServer, http: httpx.Client, header: str, seconds: float
) -> None:
    server.answers[PATH] = [Answer(503, problem("unavailable"), {"Retry-After": header})]
    with pytest.raises(PlatformUnreachable) as raised:
        request(http, "GET", PATH)
    assert raised.value.retry_after == seconds


def test_a_refusal_has_its_code(server: PlatformServer, http: httpx.Client) -> None:
    server.answers[PATH] = [Answer(403, problem("forbidden"))]
    with pytest.raises(PlatformRefused, match=r"What it says\. \(forbidden\)") as raised:
        request(http, "GET", PATH)
    assert (raised.value.code, raised.value.status) == ("forbidden", 403)


@pytest.mark.parametrize("status", [200, 403])
def test_an_answer_larger_than_any_of_the_platforms_is_not_read(
    server: PlatformServer,
    http: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER", 1000)
    server.answers[PATH] = [Answer(status, problem("x" * 1000))]
    with pytest.raises(PlatformUnreachable, match="not as the platform does"):
        request(http, "GET", PATH)


def test_nobody_answers(server: PlatformServer, http: httpx.Client) -> None:
    with (
        client("http://127.0.0.1:9") as nobody,
        pytest.raises(PlatformUnreachable, match=r"127\.0\.0\.1:9 does not answer"),
    ):
        request(nobody, "GET", PATH)


def test_a_url_has_a_scheme() -> None:
    with pytest.raises(PlatformError, match="begins with https://"):
        client("mesh.example")
