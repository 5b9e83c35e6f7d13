"""What wallets sign to log in, to register a node or to get weights: every fact that matters.

Among them are the platform that it is for, when it expires, and a nonce.
"""

import datetime as dt

from eth_account import Account
from eth_account.messages import encode_defunct
from eth_utils.address import to_checksum_address

CHAIN_ID = 56
"""EIP-4361 wants one: BSC's. Nothing here happens on a chain."""

MAX_LIFETIME = 300
"""Seconds for which what a node signs is good: it is sent at once."""

_INSTANT = "%Y-%m-%dT%H:%M:%SZ"

PLACED = "as the platform places"


def registration_message(
    *,
    platform: str,
    wallet_address: str,
    model_id: str,
    start_layer: int | None,
    end_layer: int | None,
    edge: bool,
    nonce: str,
    expires_at: str,
) -> str:
    """The text to sign (EIP-191, as wallets show it to people). Without layers, the platform
    chooses them, and whether they come with the edge.

    Args:
        platform: The domain by which the platform knows itself: no other takes the signature.
        expires_at: As :func:`format_instant` writes it.
    """
    if start_layer is None or end_layer is None:
        layers, holds = PLACED, PLACED
    else:
        layers = f"{start_layer} to {end_layer} (end not included)"
        holds = "yes" if edge else "no"
    return (
        "Far Mesh node registration\n"
        f"Platform: {platform}\n"
        f"Wallet: {wallet_address.lower()}\n"
        f"Model: {model_id}\n"
        f"Layers: {layers}\n"
        f"Edge: {holds}\n"
        f"Nonce: {nonce}\n"
        f"Expiration Time: {expires_at}"
    )


def machine_message(
    *,
    domain: str,
    uri: str,
    wallet_address: str,
    machine: str,
    user_code: str,
    nonce: str,
    issued_at: str,
    expires_at: str,
) -> str:
    """The text (EIP-4361) by which a wallet lets a machine register nodes for it.

    Args:
        domain: Of the platform, as wallets compare it with the page that asks.
        machine: The machine's name, in letters that EIP-4361 allows.
        user_code: What the machine shows.
        issued_at: RFC 3339, as is ``expires_at``.
    """
    return sign_in_message(
        domain=domain,
        uri=uri,
        wallet_address=wallet_address,
        statement=(
            f"Let the machine {machine}, which shows {user_code}, register nodes that earn for me."
        ),
        nonce=nonce,
        issued_at=issued_at,
        expires_at=expires_at,
    )


def sign_in_message(
    *,
    domain: str,
    uri: str,
    wallet_address: str,
    statement: str,
    nonce: str,
    issued_at: str,
    expires_at: str,
) -> str:
    """A text of EIP-4361, which wallets compare with the page that asks.

    Args:
        issued_at: RFC 3339, as is ``expires_at``.
    """
    return (
        f"{domain} wants you to sign in with your Ethereum account:\n"
        f"{to_checksum_address(wallet_address)}\n"
        "\n"
        f"{statement}\n"
        "\n"
        f"URI: {uri}\n"
        "Version: 1\n"
        f"Chain ID: {CHAIN_ID}\n"
        f"Nonce: {nonce}\n"
        f"Issued At: {issued_at}\n"
        f"Expiration Time: {expires_at}"
    )


def weights_message(
    *, platform: str, wallet_address: str, model_id: str, nonce: str, expires_at: str
) -> str:
    """The text that a wallet signs to be told where a model's weights are. ``platform`` and
    ``expires_at`` as in :func:`registration_message`."""
    return (
        "Far Mesh weights\n"
        f"Platform: {platform}\n"
        f"Wallet: {wallet_address.lower()}\n"
        f"Model: {model_id}\n"
        f"Nonce: {nonce}\n"
        f"Expiration Time: {expires_at}"
    )


def format_instant(when: dt.datetime) -> str:
    """A time as signed texts have it (RFC 3339), in whole seconds of UTC."""
    return when.astimezone(dt.UTC).strftime(_INSTANT)


def instant(text: str) -> dt.datetime:
    """
    Raises:
        ValueError: not as :func:`format_instant` writes it.
    """
    when = dt.datetime.strptime(text, _INSTANT).replace(tzinfo=dt.UTC)
    if format_instant(when) != text:
        raise ValueError("instant")
    return when


def sign(message: str, private_key: bytes) -> str:
    """The signature as 0x-prefixed hex."""
    signed = Account.sign_message(encode_defunct(text=message), private_key=private_key)
    return "0x" + bytes(signed.signature).hex()


def signed_by(message: str, signature: str, wallet_address: str) -> bool:
    """Whether the wallet signed exactly this text."""
    try:
        signer = Account.recover_message(encode_defunct(text=message), signature=signature)
    except Exception:  # eth-account raises whatever its parsers raise on a stranger's bytes
        return False
    return str(signer).lower() == wallet_address.lower()
