"""Sign-in messages (EIP-4361), read line by line: in time that grows with their length alone.

Stricter than wallets need and wider than the EIP in two points: an address may be in lower case,
without its checksum, and a statement may have letters beyond ASCII.
"""

import datetime as dt
from dataclasses import dataclass
from string import ascii_letters, digits, hexdigits

from eth_utils.address import to_checksum_address

from market.identity.errors import LoginMessageInvalid

MAX_MESSAGE = 4096
"""Characters. Wallets show such a message to people: they have some 300."""

MAX_RESOURCES = 100

MAX_DOMAIN = 255
MIN_NONCE, MAX_NONCE = 8, 128
MAX_CHAIN_ID = 78
"""Digits of 2^256."""

MAX_INSTANT = 40

SIGNS_IN = " wants you to sign in with your Ethereum account:"

_ALPHANUMERIC = frozenset(ascii_letters + digits)
_SCHEME = _ALPHANUMERIC | frozenset("+-.")
_PERCENT_ENCODED = _ALPHANUMERIC | frozenset("-._~!$&'()*+,;=:@%")
_AUTHORITY = _PERCENT_ENCODED | frozenset("[]")
_URI = _AUTHORITY | frozenset("/?#")

_DIGITS_AS_ZEROS = str.maketrans(digits, "0" * len(digits))
_ZONES = ("Z", "+00:00", "-00:00")


@dataclass(frozen=True, slots=True)
class LoginMessage:
    """``address``: as written, in lower case or with its checksum. ``resources``: URIs."""

    scheme: str | None
    domain: str
    address: str
    statement: str | None
    uri: str
    chain_id: int
    nonce: str
    issued_at: dt.datetime
    expiration_time: dt.datetime | None
    not_before: dt.datetime | None
    request_id: str | None
    resources: tuple[str, ...]


def parse(text: str) -> LoginMessage:
    """
    Raises:
        LoginMessageInvalid: not such a message; says which line is wrong.
    """
    if len(text) > MAX_MESSAGE:
        raise LoginMessageInvalid(f"The message has over {MAX_MESSAGE} characters.")
    lines = _Lines(text)
    scheme, domain = _origin(lines)
    address = lines.take()
    lines.require(_is_address(address), "an address, in lower case or with its EIP-55 checksum")
    statement = _statement(lines)
    uri = lines.field("URI")
    lines.require(_is_uri(uri), "'URI: ' and a URI (RFC 3986)")
    lines.require(lines.field("Version") == "1", "'Version: 1'")
    chain_id = lines.field("Chain ID")
    lines.require(
        len(chain_id) <= MAX_CHAIN_ID and chain_id.isascii() and chain_id.isdigit(),
        "'Chain ID: ' and a number",
    )
    nonce = lines.field("Nonce")
    lines.require(
        MIN_NONCE <= len(nonce) <= MAX_NONCE and _ALPHANUMERIC.issuperset(nonce),
        f"'Nonce: ' and {MIN_NONCE} to {MAX_NONCE} letters and digits",
    )
    message = LoginMessage(
        scheme=scheme,
        domain=domain,
        address=address,
        statement=statement,
        uri=uri,
        chain_id=int(chain_id),
        nonce=nonce,
        issued_at=_instant(lines, lines.field("Issued At")),
        expiration_time=_optional_instant(lines, "Expiration Time"),
        not_before=_optional_instant(lines, "Not Before"),
        request_id=_request_id(lines),
        resources=_resources(lines),
    )
    lines.end()
    return message


class _Lines:
    """The message's lines, from the first to the last, each looked at once."""

    def __init__(self, text: str) -> None:
        self._lines = text.split("\n")
        self._next = 0

    def take(self) -> str:
        """The next line; empty after the last."""
        self._next += 1
        return self._lines[self._next - 1] if self.left >= 0 else ""

    def field(self, name: str) -> str:
        """The next line's value.

        Raises:
            LoginMessageInvalid: the next line is another field's.
        """
        value = self.optional_field(name)
        if value is None:
            self.take()
            raise self.wrong(f"'{name}: ' and a value")
        return value

    def optional_field(self, name: str) -> str | None:
        """The next line's value if the line is this field's; none, and nothing taken, if not."""
        begin = f"{name}: "
        if not self.left or not self._lines[self._next].startswith(begin):
            return None
        return self.take().removeprefix(begin)

    def has(self, line: str) -> bool:
        """Whether this is the next line, which is then taken."""
        found = self.left > 0 and self._lines[self._next] == line
        self._next += found
        return found

    @property
    def left(self) -> int:
        return len(self._lines) - self._next

    def wrong(self, what: str) -> LoginMessageInvalid:
        """That the line which was taken last is not what it has to be."""
        return LoginMessageInvalid(
            "This is no EIP-4361 (Sign-In with Ethereum) message: its line "
            f"{self._next} has to be {what}."
        )

    def require(self, holds: bool, what: str) -> None:
        """
        Raises:
            LoginMessageInvalid: the line that was taken last is not what it has to be.
        """
        if not holds:
            raise self.wrong(what)

    def end(self) -> None:
        """
        Raises:
            LoginMessageInvalid: lines follow.
        """
        if self.left:
            self.take()
            raise self.wrong("left out: fields have an order, and none comes twice")


def _origin(lines: _Lines) -> tuple[str | None, str]:
    line = lines.take()
    origin = line.removesuffix(SIGNS_IN)
    before, separator, after = origin.partition("://")
    scheme, domain = (before, after) if separator else (None, before)
    lines.require(
        origin != line
        and (scheme is None or _is_scheme(scheme))
        and 0 < len(domain) <= MAX_DOMAIN
        and _AUTHORITY.issuperset(domain),
        f"a domain and '{SIGNS_IN[1:]}'",
    )
    return scheme, domain


def _statement(lines: _Lines) -> str | None:
    lines.require(lines.take() == "", "empty")
    statement = lines.take()
    if not statement:
        return None
    lines.require(statement.isprintable(), "a statement without control characters")
    lines.require(lines.take() == "", "empty")
    return statement


def _request_id(lines: _Lines) -> str | None:
    found = lines.optional_field("Request ID")
    lines.require(
        found is None or _PERCENT_ENCODED.issuperset(found), "'Request ID: ' and a path segment"
    )
    return found


def _resources(lines: _Lines) -> tuple[str, ...]:
    if not lines.has("Resources:"):
        return ()
    lines.require(lines.left <= MAX_RESOURCES, f"followed by {MAX_RESOURCES} resources at most")
    found = []
    while lines.left:
        line = lines.take()
        uri = line.removeprefix("- ")
        lines.require(uri != line and _is_uri(uri), "'- ' and a URI (RFC 3986)")
        found.append(uri)
    return tuple(found)


def _optional_instant(lines: _Lines, name: str) -> dt.datetime | None:
    found = lines.optional_field(name)
    return None if found is None else _instant(lines, found)


def _instant(lines: _Lines, text: str) -> dt.datetime:
    wrong = lines.wrong("a name and a time with its zone, such as 2035-01-31T12:00:00Z")
    if len(text) > MAX_INSTANT or not text.isascii():
        raise wrong
    text = text.upper()
    shape = text.translate(_DIGITS_AS_ZEROS)
    seconds, rest = shape[:19], shape[19:]
    if rest.startswith(".0"):
        rest = rest[1:].lstrip("0")
    if seconds != "0000-00-00T00:00:00" or rest not in _ZONES:
        raise wrong
    try:
        return dt.datetime.fromisoformat(text)
    except ValueError:  # on no day
        raise wrong from None


def _is_address(text: str) -> bool:
    prefix, number = text[:2], text[2:]
    if prefix != "0x" or len(number) != 40 or not frozenset(hexdigits).issuperset(number):
        return False
    return text in (text.lower(), to_checksum_address(text))


def _is_scheme(text: str) -> bool:
    return text[:1].isalpha() and _SCHEME.issuperset(text)


def _is_uri(text: str) -> bool:
    scheme, colon, rest = text.partition(":")
    return bool(colon and rest) and _is_scheme(scheme) and _URI.issuperset(rest)
