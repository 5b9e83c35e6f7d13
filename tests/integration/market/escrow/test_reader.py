"""What the contract said at a block, read from a real chain."""

import pytest
from eth_account import Account

from market.chain.errors import ChainError
from market.escrow.escrow_view import EscrowView
from market.settings.payments import PaymentsSettings
from tests.conftest import Chain

NEVER = "0x" + "ab" * 32


def payments(chain: Chain) -> PaymentsSettings:
    return PaymentsSettings(
        escrow_contract=chain.deployment.escrow, rpc_urls=[chain.url], rpc_max_age=0
    )


async def test_it_says_what_the_contract_said_then(chain: Chain) -> None:
    user = Account.create()
    wallet = user.address.lower()
    chain.actor.give(chain.deployment, user.address, 5)
    before = chain.actor.web3.eth.block_number
    chain.actor.deposit(chain.deployment, user, 5)
    after = chain.actor.web3.eth.block_number
    async with EscrowView.of(payments(chain)) as view:
        assert view is not None
        assert await view.deposits([wallet], block=after) == {wallet: 5}
        assert await view.deposits([wallet], block=before) == {wallet: 0}
        assert await view.total_deposits(block=after) == 5
        assert await view.total_deposits(block=before) == 0
        assert await view.earned([wallet], block=after) == {wallet: 0}
        assert await view.settled([NEVER], block=after) == set()
        recipient = await view.fee_recipient(block=after)
        assert recipient == recipient.lower()


async def test_a_block_that_is_not_there_is_an_error(chain: Chain) -> None:
    async with EscrowView.of(payments(chain)) as view:
        assert view is not None
        with pytest.raises(ChainError, match="cannot be read at block"):
            await view.total_deposits(block=10**6)


async def test_an_endpoint_that_does_not_answer_is_an_error(chain: Chain) -> None:
    silent = payments(chain).model_copy(update={"rpc_urls": ["http://127.0.0.1:9"]})
    async with EscrowView.of(silent) as view:
        assert view is not None
        with pytest.raises(ChainError):
            await view.total_deposits(block=1)


async def test_without_a_contract_there_is_no_view() -> None:
    async with EscrowView.of(PaymentsSettings()) as view:
        assert view is None
