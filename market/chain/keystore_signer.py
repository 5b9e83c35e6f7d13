"""A signer whose key is in an encrypted keystore file (Web3 Secret Storage)."""

import asyncio
import json
from pathlib import Path

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_keys.datatypes import PrivateKey
from eth_typing import ChecksumAddress

from market.chain.errors import ChainError
from market.chain.signer import Signature


class KeystoreSigner:
    """Signs with a key in this process's memory."""

    def __init__(self, account: LocalAccount) -> None:
        self._key = PrivateKey(bytes(account.key))
        self._address: ChecksumAddress = account.address

    @classmethod
    async def open(cls, keyfile: Path, password: str) -> "KeystoreSigner":
        """The signer of a keystore file.

        Raises:
            ChainError: there is no such file, it is no keystore, or the password is wrong.
        """
        # Keystores are slow to decrypt on purpose, about a second: not in the event loop.
        return cls(await asyncio.to_thread(unlock_keystore, keyfile, password))

    @property
    def address(self) -> ChecksumAddress:
        return self._address

    async def sign(self, digest: bytes) -> Signature:
        """Sign a digest of 32 bytes, which is not hashed again."""
        signature = self._key.sign_msg_hash(digest)
        return Signature(signature.v, signature.r, signature.s)


def unlock_keystore(keyfile: Path, password: str) -> LocalAccount:
    """Decrypt a keystore file.

    Raises:
        ChainError: there is no such file, it is no keystore, or the password is wrong.
    """
    try:
        key = Account.decrypt(json.loads(keyfile.read_text()), password)
    except (OSError, ValueError) as error:
        raise ChainError(f"Cannot unlock the operator's keystore {keyfile}: {error}") from None
    account: LocalAccount = Account.from_key(key)
    return account
