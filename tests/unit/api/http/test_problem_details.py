"""What an error's answer tells clients that retry by themselves."""

import json

import pytest

from api.http.problem_details import render
from market.errors import InvalidRequest, RateLimited, Unavailable
from market.identity.errors import TooManyApiKeys
from market.jobs.errors import IdempotencyConflict, JobNotFound, TooManyInFlight
from market.ledger.errors import KeyLimitReached
from market.nodes.errors import NodeIdTaken, NodeSuperseded
from market.receipts.errors import ReceiptNotReady
from mesh.errors import MeshError

USELESS: list[MeshError] = [
    IdempotencyConflict("Used."),
    KeyLimitReached("Reached.", period="day"),
    TooManyApiKeys("Many."),
    NodeIdTaken("Taken."),
    NodeSuperseded("Superseded."),
    RateLimited("An hour.", retry_after=121),
    Unavailable("Overloaded.", retry_after=300),
]

USEFUL: list[MeshError] = [
    RateLimited("A moment.", retry_after=120),
    TooManyInFlight("Some.", retry_after=5),
    Unavailable("Away.", retry_after=30),
    Unavailable("Away."),
    ReceiptNotReady("Not yet."),
    JobNotFound("None."),
    MeshError("A bug."),
]


@pytest.mark.parametrize("error", USELESS, ids=lambda error: error.code)
def test_clients_are_told_where_coming_back_is_useless(error: MeshError) -> None:
    headers = render(error, "/api/path").headers
    assert headers["x-should-retry"] == "false"
    assert int(headers.get("retry-after", 0)) <= 120


@pytest.mark.parametrize("error", USEFUL, ids=lambda error: error.code)
def test_elsewhere_clients_decide_by_status_and_time(error: MeshError) -> None:
    headers = render(error, "/api/path").headers
    assert "x-should-retry" not in headers
    wait = None if error.retry_after is None else str(error.retry_after)
    assert headers.get("retry-after") == wait


def test_where_paths_are_openais_the_document_is_one_of_theirs_too() -> None:
    error = InvalidRequest("temperature: Too hot.", code="temperature_hot", param="temperature")
    answer = render(error, "/v1/completions")
    document = json.loads(bytes(answer.body))
    assert (answer.status_code, document["status"], document["code"]) == (400, 400, error.code)
    assert document["error"] == {
        "message": "temperature: Too hot.",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": "temperature_hot",
    }
    elsewhere = render(error, "/api/path")
    assert elsewhere.status_code == 422
    assert "error" not in json.loads(bytes(elsewhere.body))
