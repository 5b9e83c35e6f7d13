"""A contract that makes thousands of the escrow's events in one transaction."""

from typing import Any

from eth_account.signers.local import LocalAccount
from web3 import Web3

from tests.support.chain.escrow import FAR, Actions


class Flood:
    """A contract of ``owner``'s that has a deposit, and calls ``requestWithdrawal(1)`` so many
    times whenever it is called."""

    def __init__(self, actions: Actions, owner: LocalAccount, events: int) -> None:
        self._actions, self._owner = actions, owner
        code = _loop(actions.escrow.address, events)
        # PUSH2 length, DUP1, PUSH1 12, PUSH1 0, CODECOPY, PUSH1 0, RETURN
        init = bytes.fromhex("61") + len(code).to_bytes(2, "big")
        init += bytes.fromhex("80600c6000396000f3")
        self.address: str = self._send(data=init + code, gas=1_000_000)["contractAddress"]
        chain = actions.chain
        chain.actor.give(chain.deployment, owner.address, FAR)
        token = chain.actor.contract("FarToken", chain.deployment.token)
        chain.actor.call(owner, token.functions.approve(actions.escrow.address, FAR))
        actions.call(owner, "depositFor", self.address, FAR)

    def run(self) -> int:
        """One transaction, and so one block; returns how many events it has."""
        return len(self._send(to=self.address, gas=25_000_000)["logs"])

    def _send(self, **fields: Any) -> Any:
        web3 = self._actions.web3
        transaction = {
            "nonce": web3.eth.get_transaction_count(self._owner.address),
            "chainId": web3.eth.chain_id,
            "gasPrice": 2 * web3.eth.gas_price,
            "value": 0,
            **fields,
        }
        sent = web3.eth.send_raw_transaction(
            self._owner.sign_transaction(transaction).raw_transaction
        )
        receipt = web3.eth.wait_for_transaction_receipt(sent)
        assert receipt["status"] == 1
        return receipt


def _loop(escrow: str, times: int) -> bytes:
    """EVM code that calls ``requestWithdrawal(1)`` so many times."""
    selector = bytes(Web3.keccak(text="requestWithdrawal(uint256)")[:4])
    code = b"\x7f" + selector + bytes(28) + bytes.fromhex("6000526001600452")
    code += b"\x61" + times.to_bytes(2, "big")
    start = len(code)
    code += bytes.fromhex("5b6000600060246000600073") + bytes.fromhex(escrow[2:])
    code += bytes.fromhex("5af1506001900380")
    return code + b"\x61" + start.to_bytes(2, "big") + bytes.fromhex("5700")
