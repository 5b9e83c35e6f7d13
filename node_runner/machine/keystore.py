"""A wallet's key in an encrypted file (Web3 Secret Storage), for machines without a browser."""

import json
from pathlib import Path

from eth_account import Account


class KeystoreError(Exception):
    """The file or its password is wrong; the message says which."""


def unlock(keyfile: Path, password: str) -> bytes:
    """The private key.

    Raises:
        KeystoreError: no such file, no keystore, or another password.
    """
    try:
        return bytes(Account.decrypt(json.loads(keyfile.read_text()), password))
    except OSError as error:
        raise KeystoreError(f"Cannot read the keystore {keyfile}: {error.strerror}.") from None
    except (ValueError, TypeError, KeyError) as error:
        raise KeystoreError(
            f"Cannot unlock {keyfile} ({error}). Is FAR_NODE_PASSWORD its password?"
        ) from None


def wallet_address(private_key: bytes) -> str:
    """The wallet that the key belongs to."""
    return str(Account.from_key(private_key).address)
