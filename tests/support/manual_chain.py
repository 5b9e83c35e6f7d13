"""A chain that mines only when it is told to, and forgets blocks when it is told to: anvil.

A test module that imports the fixtures `chain` and `short_runs` runs its tests on it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from web3.types import RPCEndpoint

from market.resources import Resources
from stack.dev_chain_client import DevChainClient, development_account, write_keystore
from tests.conftest import OPERATOR_PASSWORD, Chain
from tests.support.branching import anvil, running_anvil
from tests.support.settled_money import OPERATOR, rich_user, served

DEPTH = 3
"""Blocks on top of one that is final, as `short_runs` sets it."""

needs_anvil = pytest.mark.skipif(
    anvil() is None, reason="anvil is not installed: npm ci in contracts/ brings it"
)


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    """Such a chain, with both contracts."""
    program = anvil()
    assert program is not None
    with running_anvil(program) as url:
        actor = DevChainClient(url)
        keyfile = tmp_path / "operator.json"
        write_keystore(development_account(0), keyfile, OPERATOR_PASSWORD)
        with mining(actor):
            deployment = actor.deploy(OPERATOR.address)
        yield Chain(url, actor, deployment, keyfile)


@pytest.fixture(autouse=True)
def short_runs(chain_resources: Resources) -> None:
    """A run that has to wait for a block ends soon; a block is final below `DEPTH` others."""
    payments = chain_resources.settings.payments
    payments.confirmation_wait = 0.5
    payments.finalized_tag, payments.confirmations = False, DEPTH


def ask(actor: DevChainClient, method: str, *params: Any) -> Any:
    """The answer to one call."""
    answer = actor.web3.provider.make_request(RPCEndpoint(method), list(params))
    assert "error" not in answer, answer
    return answer["result"]


@contextmanager
def mining(actor: DevChainClient) -> Iterator[None]:
    """Users' transactions are mined at once meanwhile."""
    ask(actor, "evm_setAutomine", True)
    yield
    ask(actor, "evm_setAutomine", False)


def mine(chain: Chain, blocks: int = 1) -> None:
    """Blocks with what is waiting."""
    for _ in range(blocks):
        ask(chain.actor, "evm_mine")


def snapshot(chain: Chain) -> str:
    """The chain's present block, from which `reorganize` can begin another branch."""
    taken: str = ask(chain.actor, "evm_snapshot")
    return taken


def reorganize(chain: Chain, fork: str, blocks: int = 0) -> None:
    """Begin another branch at a snapshot, with so many empty blocks. The endpoint forgets all
    transactions of the branch that is left."""
    assert ask(chain.actor, "evm_revert", fork)
    ask(chain.actor, "anvil_dropAllTransactions")
    mine(chain, blocks)


async def something_due(resources: Resources, chain: Chain) -> str:
    """The user who will pay."""
    with mining(chain.actor):
        user = await rich_user(resources, chain)
    await served(resources, user, 5)
    return user.address
