"""Sign-in messages as wallets' libraries write them, and those that are none."""

import datetime as dt

import pytest
from eth_account import Account

from market.identity import login_message
from market.identity.errors import LoginMessageInvalid
from market.identity.login_message import parse
from mesh import signed_texts

ADDRESS = Account.from_key(b"\x01" * 32).address

MADE_BY = {
    "siwe": (
        "https://app.example:8443 wants you to sign in with your Ethereum account:\n"
        f"{ADDRESS}\n"
        "\n"
        "I accept the terms: https://app.example/tos\n"
        "\n"
        "URI: https://app.example/login?next=%2F#top\n"
        "Version: 1\n"
        "Chain ID: 56\n"
        "Nonce: 32891756abc\n"
        "Issued At: 2026-01-31T12:00:00.123Z\n"
        "Expiration Time: 2026-01-31T12:05:00.123Z\n"
        "Not Before: 2026-01-31T11:59:00.123Z\n"
        "Request ID: some-id~1\n"
        "Resources:\n"
        "- ipfs://bafybeiemxf5abjwjbikoz4mc3a3dla6ual3jsgpdr4cjr3oz3evfyavhwq/\n"
        "- urn:recap:eyJhdHQiOnt9fQ=="
    ),
    "viem, without a statement": (
        "app.example:8443 wants you to sign in with your Ethereum account:\n"
        f"{ADDRESS}\n"
        "\n"
        "\n"
        "URI: https://app.example\n"
        "Version: 1\n"
        "Chain ID: 1\n"
        "Nonce: foobarbaz\n"
        "Issued At: 2026-01-31T12:00:00.000Z"
    ),
    "siwe for Python": (
        "app.example:8443 wants you to sign in with your Ethereum account:\n"
        f"{ADDRESS}\n"
        "\n"
        "Log in.\n"
        "\n"
        "URI: https://app.example\n"
        "Version: 1\n"
        "Chain ID: 1\n"
        "Nonce: 0123456789abcdef\n"
        "Issued At: 2026-01-31T12:00:00+00:00\n"
        "Expiration Time: 2026-01-31T13:05:00+01:00"
    ),
}


@pytest.mark.parametrize("text", MADE_BY.values(), ids=MADE_BY)
def test_what_libraries_write_is_read(text: str) -> None:
    message = parse(text)
    assert (message.domain, message.address) == ("app.example:8443", ADDRESS)
    assert f"Nonce: {message.nonce}\n" in text
    assert dt.timedelta(0) < dt.datetime(2027, 1, 1, tzinfo=dt.UTC) - message.issued_at


def test_all_that_a_message_says() -> None:
    noon = dt.datetime(2026, 1, 31, 12, 0, 0, 123000, tzinfo=dt.UTC)
    minute = dt.timedelta(minutes=1)
    assert parse(MADE_BY["siwe"]) == login_message.LoginMessage(
        scheme="https",
        domain="app.example:8443",
        address=ADDRESS,
        statement="I accept the terms: https://app.example/tos",
        uri="https://app.example/login?next=%2F#top",
        chain_id=56,
        nonce="32891756abc",
        issued_at=noon,
        expiration_time=noon + 5 * minute,
        not_before=noon - minute,
        request_id="some-id~1",
        resources=(
            "ipfs://bafybeiemxf5abjwjbikoz4mc3a3dla6ual3jsgpdr4cjr3oz3evfyavhwq/",
            "urn:recap:eyJhdHQiOnt9fQ==",
        ),
    )


def test_our_own_message_is_one() -> None:
    text = signed_texts.sign_in_message(
        domain="far.example",
        uri="https://far.example",
        wallet_address=ADDRESS.lower(),
        statement="Log in to Far Mesh.",
        nonce="0" * 32,
        issued_at="2026-01-31T12:00:00Z",
        expires_at="2026-01-31T12:05:00Z",
    )
    assert parse(text).statement == "Log in to Far Mesh."


FULL = MADE_BY["siwe"]

ACCEPTED = {
    "a lower-case address": (ADDRESS, ADDRESS.lower()),
    "lower-case letters in a time": ("2026-01-31T12:00:00.123Z", "2026-01-31t12:00:00z"),
    "the longest zone": ("12:00:00.123Z", "12:00:00.123-00:00"),
    "an empty request id": ("some-id~1", ""),
    "a statement beyond ASCII": ("I accept the terms", "Anmelden für Näheres"),
    "a domain with user and port": ("https://app.example:8443", "me@[::1]:8443"),
    "no resource": (FULL[FULL.index("\n- ipfs") :], ""),
}


@pytest.mark.parametrize(("old", "new"), ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(old: str, new: str) -> None:
    assert old in FULL
    parse(FULL.replace(old, new))


REFUSED = {
    "empty": (FULL, ""),
    "no domain": ("https://app.example:8443", ""),
    "a domain with a path": ("app.example:8443 ", "app.example/x "),
    "a domain with a space": ("app.example:8443 ", "app.example x "),
    "two schemes": ("https://app", "https://http://app"),
    "no scheme before ://": ("https://app.example:8443", "://app.example"),
    "another sentence": ("wants you to", "wants you not to"),
    "checksum in capitals": (ADDRESS, "0x" + ADDRESS[2:].upper()),
    "checksum turned round": (ADDRESS, "0x" + ADDRESS[2:].swapcase()),
    "0X": (ADDRESS, "0X" + ADDRESS[2:].lower()),
    "an address without 0x": (ADDRESS, ADDRESS[2:].lower()),
    "no hex": (ADDRESS, "0x" + "g" * 40),
    "a statement of two lines": ("terms: ", "terms:\n"),
    "an empty line too many": ("\n\nI accept", "\n\n\nI accept"),
    "no empty line after the statement": ("/tos\n\n", "/tos\n"),
    "a control character": ("I accept", "I\x1baccept"),
    "no URI": ("URI: https://app.example/login?next=%2F#top\n", ""),
    "an empty URI": ("https://app.example/login?next=%2F#top", ""),
    "a URI without a scheme": ("https://app.example/login?next=%2F#top", "//app.example"),
    "a URI with a space": ("login?next", "login next"),
    "version 2": ("Version: 1", "Version: 2"),
    "version 01": ("Version: 1", "Version: 01"),
    "no chain": ("Chain ID: 56", "Chain ID: "),
    "a chain in another script": ("Chain ID: 56", "Chain ID: ٥٦"),
    "a negative chain": ("Chain ID: 56", "Chain ID: -56"),
    "a long chain": ("Chain ID: 56", "Chain ID: " + "9" * 79),
    "a short nonce": ("32891756abc", "3289175"),
    "a nonce with a sign": ("32891756abc", "32891756-abc"),
    "a nonce beyond ASCII": ("32891756abc", "32891756äbc"),
    "a long nonce": ("32891756abc", "a" * 129),
    "fields out of order": ("Version: 1\nChain ID: 56", "Chain ID: 56\nVersion: 1"),
    "a field twice": ("Version: 1\n", "Version: 1\nVersion: 1\n"),
    "a field in lower case": ("Nonce: ", "nonce: "),
    "a field without a space": ("Nonce: ", "Nonce:"),
    "no zone": ("12:00:00.123Z", "12:00:00.123"),
    "half a zone": ("12:00:00.123Z", "12:00:00.123+01"),
    "an odd zone": ("12:00:00.123Z", "12:00:00.123|01:00"),
    "no seconds": ("12:00:00.123Z", "12:00Z"),
    "a point without digits": ("12:00:00.123Z", "12:00:00.Z"),
    "a comma": ("12:00:00.123Z", "12:00:00,123Z"),
    "a week": ("2026-01-31T12:00:00.123Z", "2026-W05-6T12:00:00Z"),
    "no day": ("2026-01-31T12:05:00.123Z", "2026-02-31T12:05:00Z"),
    "the year 0": ("2026-01-31T12:05:00.123Z", "0000-01-31T12:05:00Z"),
    "a long fraction": ("00.123Z", "00." + "1" * 40 + "Z"),
    "digits of another script": ("2026-01-31T12:00", "٢٠٢٦-01-31T12:00"),
    "words for a time": ("2026-01-31T12:00:00.123Z", "Wed Oct 05 2011 16:48:00 GMT+0200 (CEST)"),
    "expiry after not before": ("Expiration Time", "Not After"),
    "a request id with a space": ("some-id~1", "some id"),
    "resources without a dash": ("- ipfs", "ipfs"),
    "a resource that is none": ("ipfs://bafy", "bafy"),
    "text after resources": ("fQ==", "fQ==\nmore"),
    "an empty line at the end": ("fQ==", "fQ==\n"),
    "Windows' ends of lines": ("\n", "\r\n"),
    "too many resources": ("\n- urn", "\n- a:b" * 100 + "\n- urn"),
    "too long": ("I accept", "I accept" + "." * login_message.MAX_MESSAGE),
}


@pytest.mark.parametrize(("old", "new"), REFUSED.values(), ids=REFUSED)
def test_refused(old: str, new: str) -> None:
    assert old in FULL
    with pytest.raises(LoginMessageInvalid):
        parse(FULL.replace(old, new))


def test_the_error_says_which_line() -> None:
    with pytest.raises(LoginMessageInvalid, match=r"its line 7 has to be 'Version: 1'\."):
        parse(FULL.replace("Version: 1", "Version: 3"))
    with pytest.raises(LoginMessageInvalid, match="its line 9 has to be 'Nonce: ' and a value"):
        parse(FULL.replace("Nonce: 32891756abc\n", ""))
