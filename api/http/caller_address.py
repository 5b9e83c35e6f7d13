"""A caller's address: the peer's, or the one that the proxies before us name; each in one spelling.

`X-Forwarded-For` and `Forwarded` (RFC 7239) are read from the right, since each proxy adds at the
right, and what a caller made up stands at the left.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import islice

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from market.settings.limits import LimitSettings

Address = IPv4Address | IPv6Address

UNKNOWN = "unknown"
"""The name of all callers without an IP address, such as those of a Unix socket."""

MAX_ENTRY = 100
"""Characters of one proxy's word for a caller, with port, zone and quotes."""

MAX_FORWARDED = 4096
"""Characters of `Forwarded`, from the right, that are looked at: sixteen proxies' words."""

NETWORK_BITS = 64
"""What a provider gives one household at least: all of its addresses are one caller."""

SITE_BITS = 48
"""What a site may get, or anybody who asks a tunnel broker: 65,536 households."""


OF_PROXIES = ("x-forwarded-for", "forwarded", "x-real-ip", "x-forwarded-host", "via")
"""Headers that tell of a proxy, whether it is one that is trusted or not."""


def address_of(connection: HTTPConnection, limits: LimitSettings) -> Address | None:
    """The caller's address; none if it has none."""
    peer = None if connection.client is None else parse(connection.client.host)
    proxies = limits.proxies
    return (forwarded_for(connection.headers, proxies) if proxies else None) or peer


def certain_address(connection: HTTPConnection, limits: LimitSettings) -> Address | None:
    """The caller's address, where that is certain: never a proxy's in place of the caller's."""
    if any(name in connection.headers for name in OF_PROXIES):
        return forwarded_for(connection.headers, limits.proxies) if limits.proxies else None
    return None if connection.client is None else parse(connection.client.host)


def forwarded_for(headers: Headers, proxies: int) -> Address | None:
    """The caller that the outermost of so many trusted proxies saw; none if the headers do not
    tell, or if both kinds are there and name different callers: a caller can send the kind that
    the proxies do not write."""
    named = {
        parse(entry(",".join(headers.getlist(name)), proxies))
        for name, entry in _ENTRY_OF.items()
        if name in headers
    }
    return named.pop() if len(named) == 1 else None


def parse(text: str) -> Address | None:
    """An address as proxies and networks write it: with a port, brackets, quotes or a zone, or an
    IPv4 address within an IPv6 one. None if it is something else."""
    text = text.strip().strip('"').strip()
    if len(text) > MAX_ENTRY:
        return None
    if text.startswith("["):
        text, bracket, port = text[1:].partition("]")
        if not bracket or (port and not _is_port(port)):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(f":{port}"):
            return None
    if ":" in text:
        text = text.partition("%")[0]  # a zone, which is the proxy's own word for its interface
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    return address


def network_of(address: Address, bits: int) -> str:
    """The network of so many bits that an IPv6 address is in; an IPv4 address is its own."""
    if isinstance(address, IPv4Address):
        return str(address)
    return str(ip_network((address, bits), strict=False))


def _is_port(text: str) -> bool:
    digits = text.removeprefix(":")
    # A proxy may write an obfuscated port (RFC 7239, 6): the address beside it counts all the same.
    return text.startswith(":") and digits.isascii() and digits.replace("_", "").isalnum()


def _x_forwarded_for(header: str, number: int) -> str:
    """The entry of that number from the right, from 1; empty if there are fewer."""
    entries = header.rsplit(",", number)[-number:]
    return entries[0] if len(entries) == number else ""


def _forwarded(header: str, number: int) -> str:
    """The ``for`` of the element of that number from the right; empty if there is not one."""
    elements = _split_from_right(header[-MAX_FORWARDED:], ",")
    element = next(islice(elements, number - 1, None), "")
    pairs = (pair.strip().partition("=") for pair in _split_from_right(element, ";"))
    named = [value for name, _, value in pairs if name.lower() == "for"]
    return named[0].replace("\\", "") if len(named) == 1 else ""


_ENTRY_OF = {"x-forwarded-for": _x_forwarded_for, "forwarded": _forwarded}


def _split_from_right(text: str, separator: str) -> Iterator[str]:
    """The parts between separators that stand in no quotes, the last first: quotes that a caller
    left open at the left do not reach what a proxy added at the right."""
    end, quoted = len(text), False
    for place in range(len(text) - 1, -1, -1):
        if text[place] == '"' and not _is_escaped(text, place):
            quoted = not quoted
        elif text[place] == separator and not quoted:
            yield text[place + 1 : end]
            end = place
    yield text[:end]


def _is_escaped(text: str, place: int) -> bool:
    first = place
    while first and text[first - 1] == "\\":
        first -= 1
    return (place - first) % 2 == 1
