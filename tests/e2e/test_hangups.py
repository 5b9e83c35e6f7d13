"""500 clients that disconnect at random tokens, half of them not streaming: nobody pays for what he
was not sent, and nothing stays on a node."""

import asyncio
from collections import Counter
from collections.abc import Callable
from statistics import quantiles

import pytest
import redis

from benchmarks.running.disconnecting_clients import Disconnect, DisconnectingClients, Mesh
from mesh import redis_keys
from mesh.token_stream import token_count_at
from stack.development_stack import DevelopmentStack
from tests.conftest import MODEL_ID
from tests.e2e.conftest import User, balance, kv_used, wait_until

PROMPTS = ("The lambda statement", "Sets are", "Modules may", "The while statement")
CLIENTS = 500
AT_ONCE = 20
MOST_TOKENS = 60


def run(
    stack: DevelopmentStack,
    user: User,
    seed: int,
    note: Callable[[Disconnect], None] = lambda _: None,
) -> list[Disconnect]:
    mesh = Mesh(stack.plan.api_url, stack.plan.redis_url, stack.database_url, MODEL_ID)
    clients = DisconnectingClients(mesh, user.http.headers["authorization"], PROMPTS, seed=seed)
    return asyncio.run(clients.run(CLIENTS, at_once=AT_ONCE, most_tokens=MOST_TOKENS, note=note))


def assert_paid_exactly(
    stack: DevelopmentStack, user: User, redis_client: redis.Redis, found: list[Disconnect]
) -> None:
    """The wallet began with 100 FAR. What each client is billed is what can be read."""
    assert balance(stack, user.account, "held") == 0
    assert balance(stack, user.account, "available") == 100 - sum(each.cost for each in found)
    for each in found:
        newest = redis_client.xrevrange(redis_keys.tokens(each.request_id), count=1)
        assert token_count_at(newest[0][0].decode()) == each.tokens


def describe(found: list[Disconnect]) -> str:
    """For whoever runs the test: times depend on what else the machine does."""
    freed = quantiles([max(each.kv_freed) for each in found if each.kv_freed], n=100)
    waiting = Counter(each.beyond for each in found if not each.streams)
    return (
        f"KV free within {1000 * freed[49]:.0f} ms (p50), {1000 * freed[98]:.0f} ms (p99); "
        f"billed beyond what there was when clients that do not stream hung up, tokens: clients: "
        f"{dict(sorted(waiting.items()))}"
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_nobody_pays_for_what_he_was_not_sent(
    stack: DevelopmentStack,
    make_user: Callable[..., User],
    redis_client: redis.Redis,
    seed: int,
) -> None:
    user = make_user("100")
    found = run(stack, user, seed)
    wait_until(lambda: kv_used(stack) == 0, "every node's KV cache", seconds=5)
    print(describe(found))
    assert_paid_exactly(stack, user, redis_client, found)
    streams = [each for each in found if each.streams and each.cancelled]
    assert len(streams) > CLIENTS / 4
    for each in streams:
        assert each.beyond == (1 if each.tokens == 1 and not each.sent else 0)
    assert sum(not each.streams and each.cancelled for each in found) > CLIENTS / 4
