"""Addresses as proxies and networks write them."""

import pytest
from fastapi import Request
from starlette.datastructures import Headers

from api.http.caller_address import address_of, forwarded_for, network_of, parse
from market.settings.limits import LimitSettings

SPELLINGS = {
    "192.0.2.7": [
        "192.0.2.7",
        " 192.0.2.7 ",
        '"192.0.2.7"',
        "192.0.2.7:4711",
        "[192.0.2.7]:4711",
        "192.0.2.7:_port",
        "::ffff:192.0.2.7",
        "::FFFF:c000:207",
        "[::ffff:192.0.2.7]",
        "[::ffff:192.0.2.7]:4711",
        "::ffff:192.0.2.7%eth0",
    ],
    "2001:db8::1": [
        "2001:db8::1",
        "2001:DB8::1",
        "2001:0db8:0:0:0000:0:0:0001",
        "[2001:db8::1]",
        "[2001:db8::1]:4711",
        '"[2001:db8::1]:4711"',
        "[2001:db8::1%25eth0]:4711",
        "2001:db8::0.0.0.1",
    ],
    "fe80::1": ["fe80::1%eth0", "[fe80::1%en1]:80"],
}

NONE = [
    "",
    " ",
    "unknown",
    "_hidden",
    "_SEVKISEK",
    "example.org",
    "192.0.2",
    "192.0.2.256",
    "0192.0.2.7",
    "3221225991",
    "0xc0000207",
    "192.0.2.7/24",
    "192.0.2.7%eth0",
    "192.0.2.7:",
    "192.0.2.7:x!",
    "1.2.3.4:5:6",
    "[2001:db8::1",
    "[2001:db8::1]4711",
    "2001:db8::1::",
    "2001:db8::g",
    "[]",
    "[unknown]:80",
    "\u0661.2.3.4",
    "1" * 5000,
    ":" * 5000,
]


@pytest.mark.parametrize(
    ("text", "address"),
    [(text, address) for address, texts in SPELLINGS.items() for text in texts],
)
def test_every_spelling_is_one_address(text: str, address: str) -> None:
    assert str(parse(text)) == address


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_address(text: str) -> None:
    assert parse(text) is None


def headers(*pairs: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.encode(), value.encode("latin-1")) for name, value in pairs])


XFF, FORWARDED = "x-forwarded-for", "forwarded"

NAMED: dict[str, tuple[int, list[tuple[str, str]], str | None]] = {
    "one": (1, [(XFF, "192.0.2.7")], "192.0.2.7"),
    "the last of one header": (1, [(XFF, "6.6.6.6, 192.0.2.7")], "192.0.2.7"),
    "the last of two headers": (1, [(XFF, "6.6.6.6"), (XFF, "192.0.2.7:80")], "192.0.2.7"),
    "a quote that a caller left open": (1, [(XFF, '"6.6.6.6, 192.0.2.7')], "192.0.2.7"),
    "two proxies": (2, [(XFF, "6.6.6.6, 192.0.2.7, 10.0.0.1")], "192.0.2.7"),
    "two proxies, one entry": (2, [(XFF, "192.0.2.7")], None),
    "an empty entry": (1, [(XFF, "192.0.2.7,")], None),
    "an unknown caller": (1, [(XFF, "6.6.6.6, unknown")], None),
    "nothing": (1, [], None),
    "RFC 7239": (1, [(FORWARDED, "for=192.0.2.7;proto=http;by=203.0.113.43")], "192.0.2.7"),
    "RFC 7239, IPv6": (
        1,
        [(FORWARDED, 'proto=https; For="[2001:db8::1]:4711"')],
        "2001:db8::1",
    ),
    "RFC 7239, the last": (1, [(FORWARDED, "for=6.6.6.6, for=192.0.2.7")], "192.0.2.7"),
    "RFC 7239, two proxies": (
        2,
        [(FORWARDED, "for=6.6.6.6"), (FORWARDED, 'for="192.0.2.7:1", for=10.0.0.1')],
        "192.0.2.7",
    ),
    "RFC 7239, escaped": (1, [(FORWARDED, r'for="\[2001:db8::1\]"')], "2001:db8::1"),
    "RFC 7239, obfuscated": (1, [(FORWARDED, 'for="_gazonk"')], None),
    "RFC 7239, without for": (1, [(FORWARDED, "for=6.6.6.6, by=10.0.0.1")], None),
    "RFC 7239, for twice": (1, [(FORWARDED, "for=6.6.6.6;for=192.0.2.7")], None),
    "a quote left open in Forwarded": (
        1,
        [(FORWARDED, 'for="6.6.6.6'), (FORWARDED, "for=192.0.2.7")],
        "192.0.2.7",
    ),
    "a host that looks like an element": (
        1,
        [(FORWARDED, r'for=192.0.2.7;host="a\",for=6.6.6.6,for=7.7.7.7;"')],
        "192.0.2.7",
    ),
    "both kinds, which agree": (
        1,
        [(XFF, "6.6.6.6, 2001:db8::1"), (FORWARDED, 'for="[2001:DB8::1]"')],
        "2001:db8::1",
    ),
    "both kinds, which do not": (1, [(XFF, "192.0.2.7"), (FORWARDED, "for=6.6.6.6")], None),
    "both kinds, one of them garbage": (1, [(XFF, "192.0.2.7"), (FORWARDED, "x")], None),
    "beyond ASCII": (1, [(XFF, "\xe9, 192.0.2.7")], "192.0.2.7"),
}


@pytest.mark.parametrize(("proxies", "given", "caller"), NAMED.values(), ids=NAMED)
def test_whom_the_proxies_name(
    proxies: int, given: list[tuple[str, str]], caller: str | None
) -> None:
    found = forwarded_for(headers(*given), proxies)
    assert (None if found is None else str(found)) == caller


def request(peer: str | None, *given: tuple[str, str]) -> Request:
    return Request(
        {
            "type": "http",
            "client": None if peer is None else (peer, 80),
            "headers": headers(*given).raw,
        }
    )


def test_whose_word_counts_is_a_setting() -> None:
    given = (XFF, "6.6.6.6, 192.0.2.7, 10.0.0.1")
    found = {
        number: str(address_of(request("::ffff:10.0.0.2", given), limits))
        for number, limits in enumerate(
            [
                LimitSettings(),
                LimitSettings(trust_forwarded_for=True),
                LimitSettings(trusted_proxies=2),
                LimitSettings(trusted_proxies=4),
            ]
        )
    }
    assert found == {0: "10.0.0.2", 1: "10.0.0.1", 2: "192.0.2.7", 3: "10.0.0.2"}


@pytest.mark.parametrize("peer", [None, "", "unknown", "testclient", "/run/socket"])
def test_a_peer_without_an_address(peer: str | None) -> None:
    assert address_of(request(peer), LimitSettings()) is None


def test_networks() -> None:
    six, four = parse("2001:db8:1:2:3::4"), parse("192.0.2.7")
    assert six is not None
    assert four is not None
    assert network_of(six, 64) == "2001:db8:1:2::/64"
    assert network_of(six, 48) == "2001:db8:1::/48"
    assert network_of(four, 64) == "192.0.2.7"
