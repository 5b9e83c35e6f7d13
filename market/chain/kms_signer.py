"""A signer whose key stays in AWS KMS (key spec ``ECC_SECG_P256K1``)."""

import asyncio
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from cryptography.hazmat.primitives.asymmetric.ec import SECP256K1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key
from eth_keys.datatypes import PublicKey
from eth_keys.datatypes import Signature as EthSignature
from eth_keys.exceptions import BadSignature
from eth_typing import ChecksumAddress

from market.chain.errors import ChainError
from market.chain.signer import Signature
from market.clients.aws import open_kms

CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""Order of secp256k1 (SEC 2). To ECDSA, s and CURVE_ORDER - s are the same signature."""


class KmsSigner:
    """Signs by asking KMS, which may sign one digest differently each time.

    Args:
        client: boto3's client of KMS.
        key_id: Id, ARN or alias of the key.
        public_key: That key's public part.
    """

    def __init__(self, client: Any, key_id: str, public_key: PublicKey) -> None:
        self._client = client
        self._key_id = key_id
        self._public_key = public_key

    @classmethod
    async def open(cls, key_id: str, *, region: str | None = None) -> "KmsSigner":
        """Read the key's public part from KMS. Credentials are those that boto3 finds: the
        machine's role, or AWS_ACCESS_KEY_ID and the like.

        Args:
            key_id: Id, ARN or alias of the key.
            region: None for the one that boto3 is configured with.

        Raises:
            ChainError: KMS does not give the public key, or it is of another curve.
        """
        return await asyncio.to_thread(cls._open, key_id, region)

    @classmethod
    def _open(cls, key_id: str, region: str | None) -> "KmsSigner":
        try:
            client = open_kms(region)
            der = client.get_public_key(KeyId=key_id)["PublicKey"]
        except (BotoCoreError, ClientError) as error:
            raise ChainError(f"KMS does not give the public key of {key_id}: {error}") from None
        return cls(client, key_id, _public_key(der))

    @property
    def address(self) -> ChecksumAddress:
        return self._public_key.to_checksum_address()

    async def sign(self, digest: bytes) -> Signature:
        """Sign a digest of 32 bytes, which is not hashed again.

        Raises:
            ChainError: KMS does not sign, or signs with another key than was read at first.
        """
        try:
            answer = await asyncio.to_thread(
                self._client.sign,
                KeyId=self._key_id,
                Message=digest,
                MessageType="DIGEST",
                SigningAlgorithm="ECDSA_SHA_256",
            )
        except (BotoCoreError, ClientError) as error:
            raise ChainError(f"KMS does not sign with {self._key_id}: {error}") from None
        r, s = decode_dss_signature(answer["Signature"])
        # The chain takes only the s in the lower half (EIP-2).
        return self._recoverable(digest, r, min(s, CURVE_ORDER - s))

    def _recoverable(self, digest: bytes, r: int, s: int) -> Signature:
        """Add the parity of y, which ECDSA leaves out: the one that recovers our public key."""
        for v in (0, 1):
            try:
                recovered = EthSignature(vrs=(v, r, s)).recover_public_key_from_msg_hash(digest)
            except BadSignature:
                continue
            if recovered == self._public_key:
                return Signature(v, r, s)
        raise ChainError(f"KMS signed with another key than {self._key_id}.")


def _public_key(der: bytes) -> PublicKey:
    key = load_der_public_key(der)
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256K1):
        raise ChainError(
            "The KMS key cannot sign transactions: its spec has to be ECC_SECG_P256K1."
        )
    point = key.public_numbers()
    return PublicKey(point.x.to_bytes(32, "big") + point.y.to_bytes(32, "big"))
