"""An app with an API key, through real processes: what its jobs cost counts, however they end."""

from collections.abc import Iterator
from decimal import Decimal

import httpx
import pytest

from stack.development_stack import DevelopmentStack
from tests.e2e.conftest import PATIENCE, User, at_once, tokens_so_far, wait_until

LIMIT = Decimal("0.01")
"""FAR a day."""


@pytest.fixture
def app(stack: DevelopmentStack, user: User) -> Iterator[User]:
    """Somebody who has a key of the user's, and no wallet."""
    terms = {"name": "app", "limit_day_far": str(LIMIT)}
    key = user.http.post("/api/keys", json=terms).raise_for_status().json()["key"]
    headers = {"Authorization": f"Bearer {key}"}
    url = stack.plan.api_url
    with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE) as http:
        yield User(user.account, http)


def used(app: User) -> Decimal:
    """What the key's jobs have cost today."""
    data = app.http.get("/v1/key").raise_for_status().json()["data"]
    usage = Decimal(data["usage_daily_exact"])
    assert Decimal(data["limit_daily_remaining_exact"]) == LIMIT - usage
    return usage


def test_what_jobs_cost_counts_to_the_last_unit(app: User) -> None:
    completed = app.generate("The for statement", max_tokens=8)
    cost = Decimal(completed["cost_far_exact"])
    assert used(app) == cost
    job = app.submit("The while statement", max_tokens=64)
    wait_until(lambda: tokens_so_far(app, job), "a token")
    app.http.delete(f"/api/inference/jobs/{job}").raise_for_status()
    ended = app.ended(job)
    assert used(app) == cost + Decimal(ended["cost_far_exact"])


def test_many_at_once_stay_within_the_limit(app: User) -> None:
    """Sixteen, each of which may cost more than a tenth of it."""

    def ask(_: int) -> httpx.Response:
        body = app.body("The number", max_tokens=14)
        path = "/api/inference/distributed/generate"
        return app.http.post(path, json=body, headers={"Prefer": "respond-async"})

    answers = at_once(16, ask)
    refused = [answer for answer in answers if answer.is_error]
    assert {answer.json()["code"] for answer in refused} == {"key_limit_reached"}
    accepted = [answer.json()["request_id"] for answer in answers if not answer.is_error]
    cost = sum(Decimal(app.ended(job)["cost_far_exact"]) for job in accepted)
    assert 0 < used(app) == cost <= LIMIT
