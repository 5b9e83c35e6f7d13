"""A key in an encrypted file."""

import asyncio
import json
from pathlib import Path

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_keys.datatypes import PrivateKey
from eth_typing import ChecksumAddress

from market.chain.errors import ChainError
from market.chain.signer import Signature


class LocalSigner:
    """An account whose key is in this process's memory, from an encrypted keystore file."""

    def __init__(self, account: LocalAccount) -> None:
        self._key = PrivateKey(bytes(account.key))
        self._address: ChecksumAddress = account.address

    @classmethod
    async def open(cls, keyfile: Path, password: str) -> "LocalSigner":
        """Decrypt a keystore file (Web3 Secret Storage).

        Raises:
            ChainError: no such file, not a keystore, or the wrong password.
        """
        # It hashes for a second on purpose: not in the event loop.
        return cls(await asyncio.to_thread(unlock_keystore, keyfile, password))

    @property
    def address(self) -> ChecksumAddress:
        return self._address

    async def sign(self, digest: bytes) -> Signature:
        """Sign 32 bytes that are a hash already."""
        signature = self._key.sign_msg_hash(digest)
        return Signature(signature.v, signature.r, signature.s)


def unlock_keystore(keyfile: Path, password: str) -> LocalAccount:
    """The account of an encrypted keystore file (Web3 Secret Storage).

    Raises:
        ChainError: no such file, not a keystore, or the wrong password.
    """
    try:
        key = Account.decrypt(json.loads(keyfile.read_text()), password)
    except (OSError, ValueError) as error:
        raise ChainError(f"Cannot unlock the operator's keystore {keyfile}: {error}") from None
    account: LocalAccount = Account.from_key(key)
    return account
