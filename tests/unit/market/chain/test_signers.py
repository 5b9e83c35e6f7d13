"""Signers: what they sign recovers to their address, and the chain would take it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from eth_account import Account
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from eth_utils.crypto import keccak
from hexbytes import HexBytes
from moto.kms.utils import ECDSAPrivateKey

from market.chain.errors import ChainError
from market.chain.keystore_signer import KeystoreSigner
from market.chain.kms_signer import CURVE_ORDER, KmsSigner
from market.chain.open_signer import open_signer
from market.chain.signer import Signer
from market.chain.transactions import Fees, sign_transaction
from market.settings.payments import PaymentsSettings
from tests.support.chain.kms import REGION, new_key, running_kms

TO = "0x" + "cc" * 20
ALIAS = "alias/settler"


@pytest.fixture
def kms() -> Iterator[Any]:
    with running_kms() as client:
        yield client


async def signed(signer: Signer, fees: Fees) -> bytes:
    transaction = await sign_transaction(
        signer, chain_id=56, to=TO, data=b"\x01\x02", nonce=7, gas=21_000, fees=fees
    )
    assert transaction.nonce == 7
    assert transaction.hash == "0x" + keccak(transaction.raw).hex()
    return transaction.raw


@pytest.mark.parametrize("fees", [Fees(30, 2), Fees(30, None)])
async def test_a_keystore_signer_signs_as_eth_account_does(fees: Fees) -> None:
    account = Account.create()
    raw = await signed(KeystoreSigner(account), fees)
    fields = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
    unsigned = {name: value for name, value in fields.items() if name not in "vrs"}
    assert raw == bytes(account.sign_transaction(unsigned).raw_transaction)


async def test_kms_signatures_recover_to_its_address(kms: Any) -> None:
    """Whatever parity and half of the curve they fall on: forty are enough to see all four."""
    signer = await KmsSigner.open(new_key(kms), region=REGION)
    parities = set()
    for number in range(40):
        digest = keccak(number.to_bytes(32, "big"))
        signature = await signer.sign(digest)
        assert signature.s <= CURVE_ORDER // 2
        parities.add(signature.v)
        assert Account._recover_hash(digest, vrs=signature) == signer.address
    assert parities == {0, 1}


async def test_a_transaction_signed_by_kms_is_from_its_address(kms: Any) -> None:
    signer = await KmsSigner.open(new_key(kms), region=REGION)
    raw = await signed(signer, Fees(30, 2))
    assert Account.recover_transaction(raw) == signer.address


async def test_high_s_is_made_low(kms: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    signer = await KmsSigner.open(new_key(kms), region=REGION)
    sign = ECDSAPrivateKey.sign

    def high(self: ECDSAPrivateKey, message: bytes, algorithm: str) -> bytes:
        r, s = decode_dss_signature(sign(self, message, algorithm))
        return encode_dss_signature(r, max(s, CURVE_ORDER - s))

    monkeypatch.setattr(ECDSAPrivateKey, "sign", high)
    digest = keccak(b"high")
    signature = await signer.sign(digest)
    assert signature.s <= CURVE_ORDER // 2
    assert Account._recover_hash(digest, vrs=signature) == signer.address


async def test_a_key_of_another_curve_is_refused(kms: Any) -> None:
    with pytest.raises(ChainError, match="ECC_SECG_P256K1"):
        await KmsSigner.open(new_key(kms, "ECC_NIST_P256"), region=REGION)


async def test_a_key_that_kms_does_not_have_is_refused(kms: Any) -> None:
    with pytest.raises(ChainError, match="does not give the public key"):
        await KmsSigner.open("alias/none", region=REGION)


async def test_a_signature_by_another_key_is_refused(kms: Any) -> None:
    kms.create_alias(AliasName=ALIAS, TargetKeyId=new_key(kms))
    signer = await KmsSigner.open(ALIAS, region=REGION)
    kms.update_alias(AliasName=ALIAS, TargetKeyId=new_key(kms))
    with pytest.raises(ChainError, match="another key"):
        await signer.sign(keccak(b"x"))


async def test_a_key_that_was_taken_away_does_not_sign(kms: Any) -> None:
    kms.create_alias(AliasName=ALIAS, TargetKeyId=new_key(kms))
    signer = await KmsSigner.open(ALIAS, region=REGION)
    kms.delete_alias(AliasName=ALIAS)
    with pytest.raises(ChainError, match="does not sign"):
        await signer.sign(keccak(b"x"))


async def test_settings_choose_the_signer(kms: Any, tmp_path: Path) -> None:
    account = Account.create()
    keyfile = tmp_path / "key.json"
    keyfile.write_text(json.dumps(account.encrypt("secret", kdf="pbkdf2", iterations=1000)))
    local = PaymentsSettings(operator_keyfile=keyfile, operator_password="secret")
    assert (await open_signer(local)).address == account.address
    key_id = new_key(kms)
    remote = PaymentsSettings(signer="kms", kms_key_id=key_id, kms_region=REGION)
    there = await KmsSigner.open(key_id, region=REGION)
    assert (await open_signer(remote)).address == there.address


@pytest.mark.parametrize("signer", ["keystore", "kms"])
async def test_settings_that_name_no_key_have_no_signer(signer: Any) -> None:
    with pytest.raises(ChainError, match="No account to settle with"):
        await open_signer(PaymentsSettings(signer=signer))


async def test_a_wrong_password_is_refused_without_showing_it(tmp_path: Path) -> None:
    keyfile = tmp_path / "key.json"
    content = Account.create().encrypt("right", kdf="pbkdf2", iterations=1000)
    keyfile.write_text(json.dumps(content))
    with pytest.raises(ChainError, match="Cannot unlock") as refused:
        await KeystoreSigner.open(keyfile, "wrong one")
    assert "wrong one" not in str(refused.value)
