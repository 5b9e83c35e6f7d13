"""Where there are several endpoints, one alone neither confirms a batch nor takes one back."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
from eth_utils.crypto import keccak

from market.chain.client import ChainClient
from market.chain.errors import ChainMoved
from market.chain.failover_rpc import FailoverProvider
from market.escrow.reader import EscrowReader
from market.resources import Resources
from tests.conftest import Chain
from tests.support.chain.rpc_proxy import Call, Proxy, poa_blocks, unaltered
from tests.support.chain.settled_money import (
    SIGNER,
    assert_ledger_equals_chain,
    only_batch,
    rich_user,
    served,
    statuses,
)
from workers.settlement import settle_due

ZERO = "0x" + "00" * 32
USAGE_ROOT_OF = keccak(text="usageRootOf(bytes32)")[:4].hex()


@pytest.fixture
def proxies(chain: Chain) -> Iterator[list[Proxy]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Proxy(chain.url).serving()) for _ in range(2)]


@asynccontextmanager
async def escrow_at(chain: Chain, proxies: list[Proxy]) -> AsyncIterator[EscrowReader]:
    client = ChainClient(FailoverProvider([proxy.url for proxy in proxies]))
    reader = EscrowReader(client, chain.deployment.escrow)
    try:
        yield reader
    finally:
        await reader.close()


def denying(call: Call, result: Any) -> Any:
    """An endpoint for which no batch is settled."""
    asked = call["method"] == "eth_call" and USAGE_ROOT_OF in str(call["params"])
    return ZERO if asked else result


@pytest.fixture(autouse=True)
def quick(chain_resources: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.settlement.task.POLL_SECONDS", 0.01)
    chain_resources.settings.payments.confirmation_wait = 0.5


async def settle_until(resources: Resources, escrow: EscrowReader, status: str) -> None:
    """Run by run, however few phases a slow machine manages in one."""
    async with asyncio.timeout(60):
        while await statuses(resources) != [status]:
            await settle_due(resources, escrow, SIGNER)


async def test_one_endpoint_alone_confirms_no_batch(
    chain_resources: Resources, chain: Chain, proxies: list[Proxy]
) -> None:
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5)
    async with escrow_at(chain, proxies) as escrow:
        proxies[1].alter = denying
        await settle_until(chain_resources, escrow, "mined")
        assert await settle_due(chain_resources, escrow, SIGNER) is None
        assert await statuses(chain_resources) == ["mined"]
        proxies[1].alter = unaltered
        await settle_until(chain_resources, escrow, "confirmed")
        await assert_ledger_equals_chain(chain_resources, escrow, user.address)


async def test_one_endpoint_alone_takes_no_batch_back(
    chain_resources: Resources, chain: Chain, proxies: list[Proxy]
) -> None:
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5)
    async with escrow_at(chain, proxies) as escrow:
        await settle_until(chain_resources, escrow, "confirmed")
        for proxy in proxies:
            proxy.alter = denying
            with pytest.raises(ChainMoved):
                await settle_due(chain_resources, escrow, SIGNER)
            proxy.alter = unaltered
        settled = await only_batch(chain_resources)
        assert (settled.status, settled.undone_at) == ("confirmed", None)


async def test_a_batch_is_settled_on_a_chain_of_proof_of_authority(
    chain_resources: Resources, chain: Chain, proxies: list[Proxy]
) -> None:
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5)
    for proxy in proxies:
        proxy.alter = poa_blocks
    async with escrow_at(chain, proxies) as escrow:
        await settle_until(chain_resources, escrow, "confirmed")
        await assert_ledger_equals_chain(chain_resources, escrow, user.address)
