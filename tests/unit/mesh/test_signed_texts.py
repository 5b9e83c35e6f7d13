"""What wallets sign."""

from eth_account import Account

from mesh import signed_texts


def test_a_registration_is_signed_by_its_wallet_and_for_its_span() -> None:
    wallet = Account.create()
    facts = {"wallet_address": wallet.address, "model_id": "m", "edge": False, "nonce": "n"}
    message = signed_texts.registration_message(start_layer=0, end_layer=4, **facts)
    signature = signed_texts.sign(message, wallet.key)
    assert signed_texts.signed_by(message, signature, wallet.address)
    assert signed_texts.signed_by(message, signature, wallet.address.lower())
    wider = signed_texts.registration_message(start_layer=0, end_layer=5, **facts)
    assert not signed_texts.signed_by(wider, signature, wallet.address)
    assert not signed_texts.signed_by(message, signature, Account.create().address)
    assert not signed_texts.signed_by(message, "0x12", wallet.address)
