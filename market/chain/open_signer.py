"""Who signs for the account that settles. The key itself is in no setting."""

import asyncio
import json
from pathlib import Path
from typing import NamedTuple, Protocol

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_keys.datatypes import PrivateKey
from eth_typing import ChecksumAddress

from market.settings import PaymentsSettings
from mesh.errors import ChainError


class Signature(NamedTuple):
    """ECDSA on secp256k1. ``v`` is the parity of y, 0 or 1; ``s`` is in the lower half (EIP-2)."""

    v: int
    r: int
    s: int


class Signer(Protocol):
    """An account that can sign. The same digest may give another signature each time."""

    @property
    def address(self) -> ChecksumAddress: ...

    async def sign(self, digest: bytes) -> Signature:
        """Sign 32 bytes that are a hash already.

        Raises:
            ChainError: it cannot.
        """
        ...


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
        return cls(await asyncio.to_thread(unlock, keyfile, password))

    @property
    def address(self) -> ChecksumAddress:
        return self._address

    async def sign(self, digest: bytes) -> Signature:
        """Sign 32 bytes that are a hash already."""
        signature = self._key.sign_msg_hash(digest)
        return Signature(signature.v, signature.r, signature.s)


def unlock(keyfile: Path, password: str) -> LocalAccount:
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


def configured(payments: PaymentsSettings) -> bool:
    """Whether the settings name a signer."""
    named = payments.kms_key_id if payments.signer == "kms" else payments.operator_keyfile
    return named is not None


async def open_signer(payments: PaymentsSettings) -> Signer:
    """The signer that the settings name.

    Raises:
        ChainError: they name none, or it cannot be opened.
    """
    if payments.signer == "kms" and payments.kms_key_id is not None:
        # Here, so that only those who use it need boto3.
        from market.chain.kms_signer import KmsSigner  # noqa: PLC0415

        return await KmsSigner.open(payments.kms_key_id, region=payments.kms_region)
    if payments.signer == "keystore" and payments.operator_keyfile is not None:
        password = payments.operator_password.get_secret_value()
        return await LocalSigner.open(payments.operator_keyfile, password)
    raise ChainError(
        "No account to settle with is set (FAR_PAYMENTS__OPERATOR_KEYFILE, or "
        "FAR_PAYMENTS__SIGNER=kms and FAR_PAYMENTS__KMS_KEY_ID)."
    )
