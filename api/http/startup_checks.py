"""Settings that would fail later, checked before the first request."""

from limits import parse

from market.dht.operator_key import operator_key
from market.settings import Settings
from market.settings.limits import LimitSettings

MIN_SECRET_BYTES = 32
"""What RFC 7518 asks of a key for HS256."""


def check(settings: Settings) -> None:
    """
    Raises:
        ValueError: a secret is missing or too short, a key is none, or a rule is none.
    """
    _check_secret(settings.auth.jwt_secret.get_secret_value())
    _check_rules(settings.limits)
    operator_key(settings.discovery)


def _check_secret(secret: str) -> None:
    if len(secret.encode()) < MIN_SECRET_BYTES:
        raise ValueError(
            f"FAR_AUTH__JWT_SECRET must have at least {MIN_SECRET_BYTES} bytes. "
            "Make one: openssl rand -base64 32"
        )


def _check_rules(limits: LimitSettings) -> None:
    for name, rule in limits:
        if isinstance(rule, str):
            try:
                parse(rule)
            except ValueError:
                raise ValueError(
                    f"FAR_LIMITS__{name.upper()} is like 100/hour; got {rule!r}."
                ) from None
