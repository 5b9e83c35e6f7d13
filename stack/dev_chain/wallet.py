"""What an unlocked node signs for its accounts: transactions, texts and typed data."""

from typing import Any

from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount
from eth_typing import Address
from eth_utils.hexadecimal import encode_hex

from stack.dev_chain import accounts
from stack.dev_chain.errors import InvalidParams, RpcError
from stack.dev_chain.evm.chain import CHAIN_ID, DevelopmentChain, base_fee
from stack.dev_chain.evm.execution import estimate_gas
from stack.dev_chain.params import LATEST, TransactionRequest

TIP = 10**9
"""Wei for a unit of gas that a transaction pays to the validator where nothing else is said."""


def addresses() -> list[str]:
    return [accounts.account(index).address.lower() for index in range(accounts.COUNT)]


def sign_transaction(chain: DevelopmentChain, request: TransactionRequest) -> bytes:
    """The signed bytes of a transaction, with what its caller left open.

    Raises:
        RpcError: the sender is no account of this node, or the transaction would fail.
    """
    if request.sender is None:
        raise InvalidParams("missing from")
    owner = _owner(request.sender)
    if request.chain_id not in (None, CHAIN_ID):
        raise InvalidParams(
            f"chainId does not match node's (have={request.chain_id}, want={CHAIN_ID})"
        )
    state = chain.state(LATEST)
    nonce = request.nonce
    gas = request.gas
    fields: dict[str, Any] = {
        "chainId": CHAIN_ID,
        "nonce": state.get_nonce(request.sender) if nonce is None else nonce,
        "gas": estimate_gas(state, request) if gas is None else gas,
        "value": request.value,
        "data": request.data,
        **_fees(chain, request),
    }
    if request.to:
        fields["to"] = request.to
    if request.access_list:
        fields["accessList"] = [
            {"address": address, "storageKeys": [key.to_bytes(32, "big") for key in keys]}
            for address, keys in request.access_list
        ]
    return bytes(owner.sign_transaction(fields).raw_transaction)


def sign_text(address: Address, text: bytes) -> str:
    """A text's signature (EIP-191).

    Raises:
        RpcError: no account of this node.
    """
    return encode_hex(bytes(_owner(address).sign_message(encode_defunct(text)).signature))


def sign_typed_data(address: Address, message: Any) -> str:
    """Typed data's signature (EIP-712).

    Raises:
        RpcError: no account of this node.
        InvalidParams: not such data.
    """
    owner = _owner(address)
    try:
        return encode_hex(bytes(owner.sign_typed_data(full_message=message).signature))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidParams(f"invalid typed data: {error}") from error


def suggested_fee(chain: DevelopmentChain) -> int:
    """Wei for a unit of gas with which a transaction gets into the next block."""
    return base_fee(chain.next_header()) + TIP


def _fees(chain: DevelopmentChain, request: TransactionRequest) -> dict[str, int]:
    if request.gas_price is not None:
        return {"gasPrice": request.gas_price}
    tip = request.max_priority_fee
    fee = request.max_fee
    if tip is None:
        tip = TIP if fee is None else min(TIP, fee)
    if fee is None:
        fee = 2 * base_fee(chain.next_header()) + tip
    return {"maxFeePerGas": fee, "maxPriorityFeePerGas": tip}


def _owner(address: Address) -> LocalAccount:
    for index in range(accounts.COUNT):
        owner = accounts.account(index)
        if bytes.fromhex(owner.address[2:]) == address:
            return owner
    raise RpcError("unknown account")
