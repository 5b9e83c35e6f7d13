"""Clients disconnect while workers die and Redis loses all it has: whoever dies, the money is
exact."""

import threading
from collections.abc import Callable

import pytest
import redis

from benchmarks.running.disconnecting_clients import Disconnect
from stack.development_stack import DevelopmentStack
from tests.e2e.conftest import User, balance, kv_used, query, wait_until
from tests.e2e.test_hangups import CLIENTS, describe, run

EVERY = 100
"""Clients between two failures."""


@pytest.mark.long
@pytest.mark.parametrize("failure", ["worker", "redis"])
def test_the_money_is_exact_whoever_fails(
    stack: DevelopmentStack,
    make_user: Callable[..., User],
    redis_client: redis.Redis,
    failure: str,
) -> None:
    user = make_user("100")
    gone, failures = 0, 0

    def fail() -> None:
        if failure == "redis":
            redis_client.flushall()
            return
        name = failures % 2
        stack.processes.kill(f"worker-{name}")
        stack.start_worker(name)

    def note(_: Disconnect) -> None:
        nonlocal gone, failures
        gone += 1
        if gone % EVERY == EVERY // 2:
            threading.Thread(target=fail).start()
            failures += 1

    found = run(stack, user, 7, note)
    wait_until(lambda: kv_used(stack) == 0, "every node's KV cache")
    print(failures, "failures;", describe(found))
    assert failures == CLIENTS // EVERY
    assert balance(stack, user.account, "held") == 0
    assert balance(stack, user.account, "available") == 100 - sum(each.cost for each in found)
    wallet = user.account.address.lower()
    ended = query(
        stack,
        "SELECT request_id FROM inference_sessions WHERE user_wallet = "
        f"'{wallet}' AND status IN ('completed', 'failed')",
    )
    assert len(ended) == len(found)
    # What is billed was stored in the transaction that charged for it, and can be read.
    unread = query(
        stack,
        "SELECT request_id FROM inference_sessions AS job WHERE user_wallet = "
        f"'{wallet}' AND token_count > 0 AND NOT EXISTS "
        "(SELECT FROM job_tokens AS page WHERE page.session_id = job.id)",
    )
    assert unread == []
