"""AWS KMS as moto has it: real keys of the real curve."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from moto import mock_aws
from moto.kms.utils import ECDSAPrivateKey

REGION = "eu-central-1"


@contextmanager
def running_kms() -> Iterator[Any]:
    """A client of an empty KMS; boto3 knows no other meanwhile."""

    def sign_digest(self: ECDSAPrivateKey, message: bytes, _: str) -> bytes:
        # moto 5.2 hashes once more what it is told is a digest; KMS does not.
        return self.private_key.sign(message, ec.ECDSA(Prehashed(hashes.SHA256())))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ECDSAPrivateKey, "sign", sign_digest)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        with mock_aws():
            yield boto3.client("kms", region_name=REGION)


def new_key(kms: Any, spec: str = "ECC_SECG_P256K1") -> str:
    """The id of a new key that signs."""
    made = kms.create_key(KeyUsage="SIGN_VERIFY", KeySpec=spec)
    return str(made["KeyMetadata"]["KeyId"])
