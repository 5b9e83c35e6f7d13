"""A chain that changes its mind, users who act on it, and what the ledger has to say at the end."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eth_account.signers.local import LocalAccount
from web3 import Web3

from market.escrow.artifacts import artifact
from market.escrow.cap_message import cap_message, sign_cap
from market.escrow.deploy import Terms
from market.settings.deployment import Deployment
from stack.dev_chain_client import DevChainClient, development_account
from stack.servers import free_port, port_in_use

ANVIL = Path(__file__).parents[3] / "contracts" / "node_modules" / ".bin" / "anvil"
START_LIMIT = 30.0

Transaction = dict[str, Any]
"""A request that can be sent again: its hash stays the same."""

SEEDED = 10**24
"""Base units of FAR that each user holds at first."""


def anvil() -> str | None:
    """The program, where `npm ci` was run in contracts/, or on the PATH."""
    return str(ANVIL) if ANVIL.exists() else shutil.which("anvil")


@contextmanager
def running_anvil(program: str) -> Iterator[str]:
    """The URL of a chain that mines only when it is told to."""
    port = free_port()
    command = [program, "--port", str(port), "--silent", "--no-mining"]
    # The program from npm is a script that starts the real one: both go with their session.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        give_up = time.monotonic() + START_LIMIT
        while not port_in_use(port):
            assert time.monotonic() < give_up, "anvil does not start"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Branching:
    """A development chain of which the last blocks can be left, for another branch.

    Works on anvil, where a block holds what it is given, and on eth-tester, where it holds one
    transaction.
    """

    def __init__(self, web3: Web3) -> None:
        self.web3 = web3
        self._mines_itself = "anvil" not in web3.client_version.lower()
        self._marks: list[str] = [self._ask("evm_snapshot")]
        self._contents: list[list[Transaction]] = [[]]
        self._branches = 0

    @property
    def height(self) -> int:
        """Blocks that can be left."""
        return len(self._marks) - 1

    def mine(self, *transactions: Transaction) -> None:
        """One block with these, as far as their senders' nonces let them in; on eth-tester, one
        for each."""
        if self._mines_itself:
            for transaction in transactions:
                if self._ask("eth_sendTransaction", transaction) is not None:
                    self._mark([transaction])
            if not transactions:
                self._ask("evm_mine")
                self._mark([])
        else:
            for transaction in transactions:
                self._ask("eth_sendTransaction", transaction)
            self._ask("evm_mine")
            self._mark(list(transactions))

    def _mark(self, content: list[Transaction]) -> None:
        self._contents.append(content)
        self._marks.append(self._ask("evm_snapshot"))

    def leave(self, depth: int) -> list[Transaction]:
        """Go back by so many blocks and begin another branch; returns what they held."""
        left = [each for block in self._contents[-depth:] for each in block]
        del self._marks[-depth:], self._contents[-depth:]
        assert self._ask("evm_revert", self._marks[-1]) is not False
        self._marks[-1] = self._ask("evm_snapshot")
        self._branches += 1
        # Something that no other branch has, so that no block is the same.
        payer = development_account(9).address
        self.mine(self.transaction(payer, payer, b"", value=self._branches))
        return left

    def transaction(
        self, sender: str, to: str, data: bytes, *, value: int = 0, before: int = 0
    ) -> Transaction:
        """``before``: how many others of the sender go into the same block first."""
        nonce = self.web3.eth.get_transaction_count(Web3.to_checksum_address(sender)) + before
        return {
            "from": sender,
            "to": to,
            "data": "0x" + data.hex(),
            "value": hex(value),
            "nonce": hex(nonce),
            "gas": hex(400_000),
            "maxFeePerGas": hex(100 * 10**9),
            "maxPriorityFeePerGas": hex(10**9),
        }

    def _ask(self, method: str, *params: Any) -> Any:
        answer = self.web3.provider.make_request(method, list(params))  # type: ignore[arg-type]
        if "error" in answer:
            # Void on this branch, or known already: what matters is what gets into a block.
            refusal = str(answer["error"]).lower()
            assert any(each in refusal for each in ("nonce", "already", "underpriced")), answer
            return None
        return answer["result"]


class Users:
    """Wallets that do at random what users do with the escrow."""

    def __init__(self, chain: Branching, deployment: Deployment, dice: random.Random) -> None:
        self._chain = chain
        self._dice = dice
        self._deployment = deployment
        self.accounts: list[LocalAccount] = [development_account(index) for index in range(4, 9)]
        self.escrow = chain.web3.eth.contract(
            address=Web3.to_checksum_address(deployment.escrow),
            abi=artifact("InferenceEscrow")["abi"],
        )

    def act(self, count: int) -> list[Transaction]:
        """Transactions for one block, of different users. Some may revert, as some do."""
        users = self._dice.sample(self.accounts, count)
        return [self._action(user) for user in users]

    def _action(self, user: LocalAccount) -> Transaction:
        acts = [
            self._deposit,
            self._deposit,
            self._deposit_for,
            self._raise_cap,
            self._lower_cap,
            self._end_lowering,
            self._request_withdrawal,
            self._request_withdrawal,
            self._end_withdrawal,
            self._end_withdrawal,
        ]
        name, arguments = self._dice.choice(acts)(user)
        data = bytes.fromhex(self.escrow.encode_abi(name, args=arguments).removeprefix("0x"))
        return self._chain.transaction(user.address, self.escrow.address, data)

    def _amount(self) -> int:
        return self._dice.randrange(1, 10**18)

    def _deposit(self, user: LocalAccount) -> tuple[str, list[Any]]:
        return "deposit", [self._amount()]

    def _deposit_for(self, user: LocalAccount) -> tuple[str, list[Any]]:
        return "depositFor", [self._dice.choice(self.accounts).address, self._amount()]

    def _raise_cap(self, user: LocalAccount) -> tuple[str, list[Any]]:
        maximum, _ = self.escrow.functions.capOf(user.address).call()
        maximum += self._amount()
        message = cap_message(
            chain_id=self._deployment.chain_id,
            escrow=self._deployment.escrow,
            user=user.address,
            maximum=maximum,
            deadline=2**40,
            nonce=self.escrow.functions.nonces(user.address).call(),
        )
        return "raiseCap", [user.address, maximum, 2**40, sign_cap(user, message)]

    def _lower_cap(self, user: LocalAccount) -> tuple[str, list[Any]]:
        maximum, _ = self.escrow.functions.capOf(user.address).call()
        return "requestCapLowering", [self._dice.randrange(maximum or 1)]

    def _end_lowering(self, user: LocalAccount) -> tuple[str, list[Any]]:
        return self._dice.choice(["cancelCapLowering", "lowerCap"]), []

    def _request_withdrawal(self, user: LocalAccount) -> tuple[str, list[Any]]:
        deposit = self.escrow.functions.depositOf(user.address).call()
        return "requestWithdrawal", [self._dice.randrange(1, max(deposit, 1) + 1)]

    def _end_withdrawal(self, user: LocalAccount) -> tuple[str, list[Any]]:
        if self._dice.random() < 0.3:
            return "cancelWithdrawal", []
        return "withdraw", [user.address]


def open_branching(url: str) -> tuple[Branching, Deployment]:
    """A chain with contracts of short delays, and users who hold FAR and have approved it."""
    actor = DevChainClient(url)
    manual = "anvil" in actor.web3.client_version.lower()
    if manual:
        actor.web3.provider.make_request("evm_setAutomine", [True])  # type: ignore[arg-type]
    deployment = actor.deploy(
        development_account(0).address, Terms(withdrawal_delay=1, dormancy=14 * 24 * 3600)
    )
    token = actor.web3.eth.contract(
        address=Web3.to_checksum_address(deployment.token), abi=artifact("FarToken")["abi"]
    )
    for index in range(4, 9):
        user = development_account(index).address
        for sender, call in (
            (actor.treasury.address, token.functions.transfer(user, SEEDED)),
            (user, token.functions.approve(deployment.escrow, SEEDED)),
        ):
            sent = call.transact({"from": sender})
            assert actor.web3.eth.wait_for_transaction_receipt(sent)["status"] == 1
    if manual:
        actor.web3.provider.make_request("evm_setAutomine", [False])  # type: ignore[arg-type]
    return Branching(actor.web3), deployment


def scattered(
    dice: random.Random, transactions: Sequence[Transaction], blocks: int
) -> list[list[Transaction]]:
    """The transactions in their order, over so many blocks."""
    places = sorted(dice.randrange(blocks) for _ in transactions)
    contents: list[list[Transaction]] = [[] for _ in range(blocks)]
    for place, transaction in zip(places, transactions, strict=True):
        contents[place].append(transaction)
    return contents
