"""What wallets sign."""

import datetime as dt
from typing import Any

import pytest
from eth_account import Account

from mesh import signed_texts


def test_a_registration_is_signed_by_its_wallet_and_for_its_span() -> None:
    wallet = Account.create()
    facts: dict[str, Any] = {
        "platform": "mesh.example",
        "wallet_address": wallet.address,
        "model_id": "m",
        "edge": False,
        "nonce": "n",
        "expires_at": "2035-01-31T12:00:00Z",
    }
    message = signed_texts.registration_message(start_layer=0, end_layer=4, **facts)
    signature = signed_texts.sign(message, wallet.key)
    assert signed_texts.signed_by(message, signature, wallet.address)
    assert signed_texts.signed_by(message, signature, wallet.address.lower())
    wider = signed_texts.registration_message(start_layer=0, end_layer=5, **facts)
    assert not signed_texts.signed_by(wider, signature, wallet.address)
    for change in ({"platform": "other.example"}, {"expires_at": "2035-01-31T12:00:01Z"}):
        other = signed_texts.registration_message(start_layer=0, end_layer=4, **facts | change)
        assert not signed_texts.signed_by(other, signature, wallet.address)
    assert not signed_texts.signed_by(message, signature, Account.create().address)
    assert not signed_texts.signed_by(message, "0x12", wallet.address)


def test_a_time_is_written_in_one_way() -> None:
    when = dt.datetime(2035, 1, 31, 13, 0, 0, 5, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    assert signed_texts.format_instant(when) == "2035-01-31T12:00:00Z"
    assert signed_texts.instant("2035-01-31T12:00:00Z") == when.replace(microsecond=0)
    for wrong in ("", "2035-13-31T12:00:00Z", "2035-1-31T12:00:00Z", "2035-01-31T12:00:00+00:00"):
        with pytest.raises(ValueError, match=r"instant|does not match|unconverted"):
            signed_texts.instant(wrong)
