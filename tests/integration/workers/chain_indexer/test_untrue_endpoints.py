"""Endpoints that lag, leave out, or lie: no deposit is lost, and none is made by one of them."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from market.chain.client import ChainClient
from market.chain.errors import ChainError, ChainMoved, ChainUnreachable
from market.chain.failover_rpc import FailoverProvider
from market.escrow.event_reader import EscrowEventReader
from market.resources import Resources
from tests.support.chain.escrow import Actions, assert_ledger_agrees, left, stored
from tests.support.chain.rpc_proxy import Call, Loss, Proxy, poa_blocks
from tests.support.some_slow import some_slow
from workers.chain_indexer.event_store import last_indexed
from workers.chain_indexer.indexer import index_events

RECEIPTS = ("eth_getBlockReceipts", "eth_getTransactionReceipt")
FULL_BLOOM = "0x" + "ff" * 256


@pytest.fixture
def proxies(actions: Actions) -> Iterator[list[Proxy]]:
    """Three endpoints of the chain."""
    with ExitStack() as stack:
        yield [stack.enter_context(Proxy(actions.chain.url).serving()) for _ in range(3)]


@asynccontextmanager
async def reader_of(actions: Actions, *proxies: Proxy) -> AsyncIterator[EscrowEventReader]:
    chain = ChainClient(FailoverProvider([proxy.url for proxy in proxies]))
    try:
        yield EscrowEventReader(chain, actions.escrow.address, confirmations=0)
    finally:
        await chain.close()


def lagging(call: Call, result: Any) -> Any:
    """The blocks are there, and their logs are not indexed yet."""
    return [] if call["method"] == "eth_getLogs" else result


def truncated(call: Call, result: Any) -> Any:
    return result[:1] if call["method"] == "eth_getLogs" else result


def without_receipts(call: Call, result: Any) -> Any:
    return None if call["method"] in RECEIPTS else lagging(call, result)


def hiding(call: Call, result: Any) -> Any:
    """Blocks as if nothing had happened in them."""
    if call["method"] == "eth_getBlockByNumber" and result:
        return result | {"logsBloom": "0x0"}
    return lagging(call, result)


def richer_receipt(receipt: Any) -> Any:
    return receipt | {"logs": [richer(log) for log in receipt["logs"]]}


def generous(call: Call, result: Any) -> Any:
    """Every deposit is a thousandfold, wherever one could look."""
    if call["method"] == "eth_getLogs":
        return [richer(log) for log in result]
    if call["method"] == "eth_getTransactionReceipt" and result:
        return richer_receipt(result)
    if call["method"] == "eth_getBlockReceipts" and result:
        return [richer_receipt(receipt) for receipt in result]
    return result


def other_branch(call: Call, result: Any) -> Any:
    """Blocks with hashes that nobody else has."""
    if call["method"] == "eth_getBlockByNumber" and result:
        return result | {"hash": "0x" + "77" * 32}
    return result


def ahead(call: Call, result: Any) -> Any:
    """A newest block, and a final one, that do not exist."""
    if call["method"] == "eth_blockNumber":
        return hex(10**12)
    if call["params"][:1] in (["latest"], ["finalized"]) and isinstance(result, dict):
        return result | {"number": hex(10**12)}
    return result


def nonsense(call: Call, result: Any) -> Any:
    return {"logs": 7} if call["method"] == "eth_getLogs" else result


def richer(log: dict[str, Any]) -> dict[str, Any]:
    words = log["data"].removeprefix("0x")
    if len(words) != 64:
        return log
    return log | {"data": f"0x{1000 * int(words, 16):064x}"}


@pytest.mark.parametrize("alter", [lagging, truncated])
async def test_an_incomplete_answer_loses_nothing(
    chain_resources: Resources,
    actions: Actions,
    proxies: list[Proxy],
    alter: Callable[[Call, Any], Any],
) -> None:
    """The headers' blooms show it, and the receipts have what is missing."""
    proxies[0].alter = alter
    users = [actions.user(far=3), actions.user(far=2)]
    with capture_logs() as logs:
        async with reader_of(actions, proxies[0]) as reader:
            assert await index_events(chain_resources, reader) == 4
            await assert_ledger_agrees(chain_resources, reader)
    assert [await left(chain_resources, user) for user in users] == [(3, 0, 3), (2, 0, 2)]
    assert "rpc_logs_wrong" in {entry["event"] for entry in logs}


async def test_the_cursor_waits_for_what_is_not_shown_at_all(
    chain_resources: Resources, actions: Actions, proxies: list[Proxy]
) -> None:
    proxies[0].alter = without_receipts
    user = actions.user(far=3)
    async with reader_of(actions, proxies[0]) as reader:
        before = await last_indexed(chain_resources, reader)
        with pytest.raises(ChainError):
            await index_events(chain_resources, reader)
        assert await last_indexed(chain_resources, reader) == before
        proxies[0].alter = lagging
        await index_events(chain_resources, reader)
    assert await left(chain_resources, user) == (3, 0, 3)


async def test_a_bloom_filter_that_is_wrong_makes_no_event(
    chain_resources: Resources, actions: Actions, proxies: list[Proxy]
) -> None:
    def full(call: Call, result: Any) -> Any:
        if call["method"] == "eth_getBlockByNumber" and result:
            return result | {"logsBloom": FULL_BLOOM}
        return result

    proxies[0].alter = full
    user = actions.user(far=3)
    actions.pass_by(3)
    async with reader_of(actions, proxies[0]) as reader:
        assert await index_events(chain_resources, reader) == 2
    assert await left(chain_resources, user) == (3, 0, 3)


@pytest.mark.parametrize("alter", [generous, hiding])
@pytest.mark.parametrize("liar", some_slow([0, 1], quick=[0]))
async def test_one_of_two_decides_nothing(
    chain_resources: Resources,
    actions: Actions,
    proxies: list[Proxy],
    alter: Callable[[Call, Any], Any],
    liar: int,
) -> None:
    proxies[liar].alter = alter
    user = actions.user(far=3)
    async with reader_of(actions, *proxies[:2]) as reader:
        with pytest.raises(ChainMoved):
            await index_events(chain_resources, reader)
        assert await left(chain_resources, user) == (0, 0, 0)
        assert await stored(chain_resources, "Deposited") == []
        proxies[liar].alter = lagging
        await index_events(chain_resources, reader)
        assert await left(chain_resources, user) == (3, 0, 3)
        await assert_ledger_agrees(chain_resources, reader)


@pytest.mark.parametrize(
    "alter",
    some_slow(
        [generous, hiding, without_receipts, other_branch, ahead, nonsense],
        quick=[hiding, other_branch],
    ),
)
@pytest.mark.parametrize("liar", some_slow([0, 2], quick=[0]))
async def test_two_of_three_are_enough(
    chain_resources: Resources,
    actions: Actions,
    proxies: list[Proxy],
    alter: Callable[[Call, Any], Any],
    liar: int,
) -> None:
    proxies[liar].alter = alter
    user = actions.user(far=3)
    async with reader_of(actions, *proxies) as reader:
        await index_events(chain_resources, reader)
        assert await left(chain_resources, user) == (3, 0, 3)


async def test_one_that_is_left_of_two_waits_for_the_other(
    chain_resources: Resources, actions: Actions, proxies: list[Proxy]
) -> None:
    proxies[1].rule = lambda _: Loss.REQUEST
    user = actions.user(far=3)
    async with reader_of(actions, *proxies[:2]) as reader:
        with pytest.raises(ChainUnreachable):
            await index_events(chain_resources, reader)
    proxies[1].rule = lambda _: None
    async with reader_of(actions, *proxies[:2]) as reader:
        await index_events(chain_resources, reader)
    assert await left(chain_resources, user) == (3, 0, 3)


async def test_one_endpoint_alone_takes_no_deposit_back(
    chain_resources: Resources, actions: Actions, proxies: list[Proxy]
) -> None:
    user = actions.user(far=3)
    async with reader_of(actions, *proxies[:2]) as reader:
        await index_events(chain_resources, reader)
        proxies[0].alter = other_branch
        actions.pass_by(1)
        with pytest.raises(ChainMoved):
            await index_events(chain_resources, reader)
    assert await left(chain_resources, user) == (3, 0, 3)


async def test_endpoints_that_take_no_batches_are_asked_one_by_one(
    chain_resources: Resources, actions: Actions, proxies: list[Proxy]
) -> None:
    proxies[0].takes_batches = False
    user = actions.user(far=3)
    async with reader_of(actions, proxies[0]) as reader:
        assert await index_events(chain_resources, reader) == 2
    assert await left(chain_resources, user) == (3, 0, 3)


async def test_blocks_of_proof_of_authority_are_indexed(
    chain_resources: Resources, actions: Actions, proxies: list[Proxy]
) -> None:
    proxies[0].alter = poa_blocks
    user = actions.user(far=3)
    async with reader_of(actions, proxies[0]) as reader:
        assert await index_events(chain_resources, reader) == 2
    assert await left(chain_resources, user) == (3, 0, 3)
