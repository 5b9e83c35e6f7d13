"""Deploys FarToken and InferenceEscrow on a development chain, and acts on them as a user would."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eth_account import Account
from eth_account.signers.local import LocalAccount
from web3 import Web3

from mesh.chain import artifact
from stack.devchain import MNEMONIC

GAS_MONEY = Web3.to_wei(1, "ether")


@dataclass(frozen=True, slots=True)
class Deployment:
    """Addresses of the contracts."""

    token: str
    escrow: str


def development_account(index: int) -> LocalAccount:
    """An account that the development chain has made rich. 0 settles, 1 holds the FAR supply."""
    Account.enable_unaudited_hdwallet_features()
    account: LocalAccount = Account.from_mnemonic(MNEMONIC, account_path=f"m/44'/60'/0'/0/{index}")
    return account


def write_keystore(account: LocalAccount, path: Path, password: str) -> None:
    """An encrypted keystore file, readable by its owner alone."""
    # Few rounds: the password lies beside it, and a demo should not wait for it.
    content = Account.encrypt(account.key, password, kdf="pbkdf2", iterations=1000)
    path.touch(mode=0o600)
    path.write_text(json.dumps(content))


class DevelopmentChain:
    """Sends transactions and waits for them. Blocking: for the supervisor, demo and tests."""

    def __init__(self, rpc_url: str) -> None:
        self.web3 = Web3(Web3.HTTPProvider(rpc_url))
        self.treasury = development_account(1)

    def deploy(self, operator: str) -> Deployment:
        """Token and escrow; the operator settles, and its fees go to it."""
        token = self._create("FarToken", self.treasury.address)
        escrow = self._create("InferenceEscrow", token, operator, operator)
        return Deployment(token=token, escrow=escrow)

    def give(self, deployment: Deployment, wallet: str, units: int) -> None:
        """FAR and some gas money from the treasury: what a faucet does."""
        self.give_from(self.treasury, wallet)
        token = self._contract("FarToken", deployment.token)
        self._call(self.treasury, token.functions.transfer(wallet, units))

    def give_from(self, sender: LocalAccount, wallet: str) -> None:
        """Gas money from one account to another."""
        self._send(sender, {"to": wallet, "value": GAS_MONEY})

    def deposit(self, deployment: Deployment, user: LocalAccount, units: int) -> str:
        """Approve and deposit, as the user's wallet does. Returns the transaction's hash."""
        token = self._contract("FarToken", deployment.token)
        escrow = self._contract("InferenceEscrow", deployment.escrow)
        self._call(user, token.functions.approve(deployment.escrow, units))
        return self._call(user, escrow.functions.deposit(units))

    def credit_of(self, deployment: Deployment, wallet: str) -> int:
        """What a provider may claim from the escrow, in base units."""
        escrow = self._contract("InferenceEscrow", deployment.escrow)
        units: int = escrow.functions.creditOf(wallet).call()
        return units

    def _contract(self, name: str, address: str) -> Any:
        return self.web3.eth.contract(
            address=Web3.to_checksum_address(address), abi=artifact(name)["abi"]
        )

    def _create(self, name: str, *arguments: str) -> str:
        compiled = artifact(name)
        factory = self.web3.eth.contract(abi=compiled["abi"], bytecode=compiled["bytecode"])
        fields = factory.constructor(*arguments).build_transaction(self._fields(self.treasury))
        return str(self._receipt(self.treasury, fields)["contractAddress"])

    def _call(self, sender: LocalAccount, function: Any) -> str:
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
