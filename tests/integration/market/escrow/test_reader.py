"""The reader of the escrow contract, on a real chain."""

import pytest
from eth_account import Account

from market.chain.errors import ChainError
from market.escrow.reader import EscrowReader
from market.settings.payments import PaymentsSettings
from tests.conftest import Chain

UNKNOWN_BATCH = "0x" + "ab" * 32


def payments(chain: Chain) -> PaymentsSettings:
    return PaymentsSettings(
        escrow_contract=chain.deployment.escrow, rpc_urls=[chain.url], rpc_max_age=0
    )


async def test_a_block_gives_the_contracts_state_at_that_block(chain: Chain) -> None:
    user = Account.create()
    wallet = user.address.lower()
    chain.actor.give(chain.deployment, user.address, 5)
    before = chain.actor.web3.eth.block_number
    chain.actor.deposit(chain.deployment, user, 5)
    after = chain.actor.web3.eth.block_number
    async with EscrowReader.from_settings(payments(chain)) as escrow:
        assert await escrow.deposits([wallet], block=after) == {wallet: 5}
        assert await escrow.deposits([wallet], block=before) == {wallet: 0}
        assert await escrow.total_deposits(block=after) == 5
        assert await escrow.total_deposits(block=before) == 0
        assert await escrow.earnings([wallet], block=after) == {wallet: 0}
        assert await escrow.settled_batches([UNKNOWN_BATCH], block=after) == set()
        recipient = await escrow.fee_recipient(block=after)
        assert recipient == recipient.lower()


async def test_without_a_block_the_state_is_the_newest(chain: Chain) -> None:
    users = [Account.create() for _ in range(2)]
    for user in users:
        chain.actor.give(chain.deployment, user.address, 5)
        chain.actor.deposit(chain.deployment, user, 5)
    rich, poor = (user.address.lower() for user in users)
    async with EscrowReader.from_settings(payments(chain)) as escrow:
        assert await escrow.deposits([rich, poor]) == {rich: 5, poor: 5}
        assert await escrow.shortfalls({rich: 5, poor: 6}) == {poor: "InsufficientDeposit"}
        assert await escrow.usage_root_of(UNKNOWN_BATCH) is None


async def test_a_block_that_is_not_there_is_an_error(chain: Chain) -> None:
    async with EscrowReader.from_settings(payments(chain)) as escrow:
        with pytest.raises(ChainError, match="does not have the data"):
            await escrow.total_deposits(block=10**6)


async def test_an_endpoint_that_does_not_answer_is_an_error(chain: Chain) -> None:
    silent = payments(chain).model_copy(update={"rpc_urls": ["http://127.0.0.1:9"]})
    async with EscrowReader.from_settings(silent) as escrow:
        with pytest.raises(ChainError):
            await escrow.total_deposits(block=1)


async def test_without_a_contract_there_is_no_reader() -> None:
    with pytest.raises(ChainError, match="No escrow contract is set"):
        async with EscrowReader.from_settings(PaymentsSettings()):
            pass
