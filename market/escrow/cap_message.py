"""The cap that a user signs: how much may be debited from the deposit, all together and ever.

Anybody may submit the signature to the escrow's ``raiseCap``; the contract refuses it twice.
"""

from typing import Any

from eth_account.signers.local import LocalAccount

CAP_TYPES = {
    "Cap": [
        {"name": "user", "type": "address"},
        {"name": "maximum", "type": "uint256"},
        {"name": "deadline", "type": "uint256"},
        {"name": "nonce", "type": "uint256"},
    ]
}


def cap_message(
    *, chain_id: int, escrow: str, user: str, maximum: int, deadline: int, nonce: int
) -> dict[str, Any]:
    """What a wallet is asked to sign (``eth_signTypedData_v4``).

    ``maximum`` is in base units and counts from the user's first debit on, ``deadline`` in Unix
    seconds; ``nonce`` is the escrow's ``nonces(user)``.
    """
    return {
        "domain": {
            "name": "InferenceEscrow",
            "version": "1",
            "chainId": chain_id,
            "verifyingContract": escrow,
        },
        "primaryType": "Cap",
        "types": CAP_TYPES,
        "message": {"user": user, "maximum": maximum, "deadline": deadline, "nonce": nonce},
    }


def sign_cap(account: LocalAccount, message: dict[str, Any]) -> bytes:
    """The account's signature of a `cap_message`: 65 bytes, as the contract takes them."""
    signed = account.sign_typed_data(message["domain"], message["types"], message["message"])
    return bytes(signed.signature)
