"""A client of a development chain: deploys our contracts, and calls them as users would."""

import json
from pathlib import Path
from typing import Any

from eth_account import Account
from eth_account.signers.local import LocalAccount
from web3 import Web3

from market.chain.open_web3 import open_web3
from market.escrow.artifacts import artifact
from market.escrow.cap_message import cap_message, sign_cap
from market.escrow.deploy import Roles, Terms, deploy
from market.settings.deployment import Deployment
from stack.dev_chain import accounts

GAS_BALANCE = Web3.to_wei(1, "ether")
"""Wei that an account is given for its gas."""

CAP_LIFETIME = 3600
"""Seconds within which a signed cap has to be submitted."""


def development_account(index: int) -> LocalAccount:
    """An account that has coins for gas on the development chain.

    0 settles, 1 holds the FAR supply, 2 is the escrow's admin, 3 its pauser.
    """
    return accounts.account(index)


def write_keystore(account: LocalAccount, path: Path, password: str) -> None:
    """An encrypted keystore file, readable by its owner alone."""
    # Few rounds: the password lies beside it, and a demo should not wait for it.
    content = Account.encrypt(account.key, password, kdf="pbkdf2", iterations=1000)
    path.touch(mode=0o600)
    path.write_text(json.dumps(content))


class DevChainClient:
    """Sends transactions and waits until they are mined, for the development stack, the demo and
    tests. Blocks the thread."""

    def __init__(self, rpc_url: str) -> None:
        self.web3 = open_web3(rpc_url)
        self.treasury = development_account(1)

    def deploy(self, operator: str, terms: Terms | None = None) -> Deployment:
        """Create token and escrow; the operator settles, and receives the fees."""
        roles = Roles(
            admin=development_account(2).address,
            settler=operator,
            pauser=development_account(3).address,
            fee_recipient=operator,
        )
        return deploy(self.web3, self.treasury, terms=terms or Terms(), roles=roles)

    def give(self, deployment: Deployment, wallet: str, units: int) -> None:
        """Send FAR, and coins for gas, from the treasury, as a faucet does."""
        self.fund_gas(self.treasury, wallet)
        token = self.contract("FarToken", deployment.token)
        self.call(self.treasury, token.functions.transfer(wallet, units))

    def fund_gas(self, sender: LocalAccount, wallet: str) -> None:
        """Send coins for gas from one account to another."""
        self._send(sender, {"to": wallet, "value": GAS_BALANCE})

    def deposit(self, deployment: Deployment, user: LocalAccount, units: int) -> str:
        """Approve and deposit, as the user's wallet does, and raise the cap by as much, so that
        all of it may be spent. Returns the deposit's transaction hash."""
        token = self.contract("FarToken", deployment.token)
        escrow = self.contract("InferenceEscrow", deployment.escrow)
        self.call(user, token.functions.approve(deployment.escrow, units))
        deposited = self.call(user, escrow.functions.deposit(units))
        maximum, _ = escrow.functions.capOf(user.address).call()
        self.raise_cap(deployment, user, maximum + units)
        return deposited

    def raise_cap(self, deployment: Deployment, user: LocalAccount, maximum: int) -> str:
        """Sign a cap and submit it. ``maximum`` counts from the user's first debit on. Returns the
        transaction's hash."""
        escrow = self.contract("InferenceEscrow", deployment.escrow)
        deadline = self.web3.eth.get_block("latest")["timestamp"] + CAP_LIFETIME
        message = cap_message(
            chain_id=self.web3.eth.chain_id,
            escrow=deployment.escrow,
            user=user.address,
            maximum=maximum,
            deadline=deadline,
            nonce=escrow.functions.nonces(user.address).call(),
        )
        signature = sign_cap(user, message)
        return self.call(
            user, escrow.functions.raiseCap(user.address, maximum, deadline, signature)
        )

    def credit_of(self, deployment: Deployment, wallet: str) -> int:
        """What a provider may claim from the escrow, in base units."""
        escrow = self.contract("InferenceEscrow", deployment.escrow)
        units: int = escrow.functions.creditOf(wallet).call()
        return units

    def contract(self, name: str, address: str) -> Any:
        """One of our contracts, as web3 has it."""
        return self.web3.eth.contract(
            address=Web3.to_checksum_address(address), abi=artifact(name)["abi"]
        )

    def call(self, sender: LocalAccount, function: Any) -> str:
        """Call a contract's function in a transaction; returns the transaction's hash.

        Raises:
            RuntimeError: the transaction was reverted.
        """
        fields = function.build_transaction(self._fields(sender))
        return "0x" + bytes(self._receipt(sender, fields)["transactionHash"]).hex()

    def _send(self, sender: LocalAccount, fields: dict[str, Any]) -> None:
        fields = self._fields(sender) | fields | {"gas": 21_000}
        fields |= {"maxFeePerGas": 2 * self.web3.eth.gas_price, "maxPriorityFeePerGas": 0}
        self._receipt(sender, fields)

    def _fields(self, sender: LocalAccount) -> dict[str, Any]:
        return {
            "from": sender.address,
            "nonce": self.web3.eth.get_transaction_count(sender.address),
            "chainId": self.web3.eth.chain_id,
        }

    def _receipt(self, sender: LocalAccount, fields: dict[str, Any]) -> Any:
        signed = sender.sign_transaction(fields)
        sent = self.web3.eth.send_raw_transaction(signed.raw_transaction)
        receipt = self.web3.eth.wait_for_transaction_receipt(sent, timeout=30, poll_latency=0.05)
        if receipt["status"] != 1:
            raise RuntimeError(f"Transaction {sent.to_0x_hex()} was reverted.")
        return receipt
