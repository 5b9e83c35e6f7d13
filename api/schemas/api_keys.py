"""API keys: what they may do, and what they have spent."""

import datetime as dt
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, StringConstraints

from api.schemas.base import ModelId, Price, RequestBody, as_float
from market.identity.api_keys import KeyTerms
from market.identity.principal import KEY_SCOPES, Scope
from market.identity.tables import ApiKey
from market.ledger.key_spending import Limits, Spent
from market.money import format_exact

KeyName = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")
]
"""One line of text for people."""

KeyScope = Literal["generate", "read_jobs", "billing"]

MAX_MODELS = 50
MAX_LIFETIME = 10 * 366 * 24 * 3600
"""Seconds."""
MAX_RATE = 1_000_000
"""Generations a minute that a key may be given; more than any limit would let through."""


class ChangeKeyBody(RequestBody):
    """What is given is changed; null takes a limit away. Limits are FAR as decimal text: by UTC
    day, by UTC month, and in all."""

    name: KeyName = "key"
    limit_day_far: Price | None = None
    limit_month_far: Price | None = None
    limit_total_far: Price | None = None
    generations_per_minute: Annotated[int, Field(ge=1, le=MAX_RATE)] | None = None

    def values(self) -> dict[str, Any]:
        """What was given, by the names that a key's row has."""
        given = self.model_dump(include=set(ChangeKeyBody.model_fields), exclude_unset=True)
        return {
            name: Decimal(value) if name.endswith("_far") and value is not None else value
            for name, value in given.items()
        }


class NewKeyBody(ChangeKeyBody):
    """Without ``models`` the key may use all of them. ``expires_in``: seconds from now; without it,
    the key does not expire."""

    name: KeyName
    scopes: Annotated[list[KeyScope], Field(min_length=1, max_length=len(KEY_SCOPES))] = Field(
        default=["generate", "read_jobs"]
    )
    models: Annotated[list[ModelId], Field(min_length=1, max_length=MAX_MODELS)] | None = None
    expires_in: Annotated[int, Field(ge=1, le=MAX_LIFETIME)] | None = None

    def terms(self) -> KeyTerms:
        """As the domain has them."""
        lifetime = None if self.expires_in is None else dt.timedelta(seconds=self.expires_in)
        return KeyTerms(
            **self.values(),
            scopes=sorted({Scope(scope) for scope in self.scopes}),
            models=None if self.models is None else sorted(set(self.models)),
            expires_at=None if lifetime is None else dt.datetime.now(dt.UTC) + lifetime,
        )


class KeyView(BaseModel):
    """An API key, which is not in it. ``hint``: its first and last characters. ``spent_...``: what
    its jobs have cost this UTC day, this month and ever, and may cost as long as they run.
    ``last_used_at``: to a minute."""

    key_id: str
    name: str
    hint: str
    scopes: list[KeyScope]
    models: list[str] | None
    limit_day_far_exact: str | None
    limit_month_far_exact: str | None
    limit_total_far_exact: str | None
    spent_day_far_exact: str
    spent_month_far_exact: str
    spent_total_far_exact: str
    generations_per_minute: int | None
    created_at: dt.datetime
    expires_at: dt.datetime | None
    last_used_at: dt.datetime | None

    @classmethod
    def of(cls, key: ApiKey, spent: Spent) -> Self:
        return cls(**_fields(key, spent))


class NewKey(KeyView):
    """``key``: shown here, and never again."""

    key: str

    @classmethod
    def made(cls, key: ApiKey, text: str) -> Self:
        """A key that was made now."""
        return cls(**_fields(key, Spent()), key=text)


class Keys(BaseModel):
    keys: list[KeyView]


class OwnRate(BaseModel):
    """How many generations the key may ask for within an interval."""

    requests: int
    interval: str


class OwnKey(BaseModel):
    """What is left of a key, by the names that OpenRouter gives it: FAR ever, and beside that this
    UTC day and this month. Numbers are for display, and the strings exact."""

    label: str
    hint: str
    scopes: list[KeyScope]
    models: list[str] | None
    usage: float
    usage_exact: str
    usage_daily: float
    usage_daily_exact: str
    usage_monthly: float
    usage_monthly_exact: str
    limit: float | None
    limit_exact: str | None
    limit_remaining: float | None
    limit_remaining_exact: str | None
    limit_daily: float | None
    limit_daily_exact: str | None
    limit_daily_remaining: float | None
    limit_daily_remaining_exact: str | None
    limit_monthly: float | None
    limit_monthly_exact: str | None
    limit_monthly_remaining: float | None
    limit_monthly_remaining_exact: str | None
    is_free_tier: bool
    rate_limit: OwnRate
    expires_at: dt.datetime | None


class OwnKeyAnswer(BaseModel):
    data: OwnKey

    @classmethod
    def of(cls, key: ApiKey, spent: Spent, rate: tuple[int, int]) -> Self:
        """``rate``: generations, and the seconds within which it may ask for them."""
        limits = Limits.of(key)
        left = limits.left(spent)
        amounts = {
            "usage": spent.total,
            "usage_daily": spent.day,
            "usage_monthly": spent.month,
            "limit": limits.total,
            "limit_remaining": left.total,
            "limit_daily": limits.day,
            "limit_daily_remaining": left.day,
            "limit_monthly": limits.month,
            "limit_monthly_remaining": left.month,
        }
        requests, seconds = rate
        return cls(
            data=OwnKey(
                label=key.name,
                hint=key.hint,
                scopes=key.scopes,
                models=key.models,
                **{name: None if far is None else as_float(far) for name, far in amounts.items()},
                **{f"{name}_exact": _exact(far) for name, far in amounts.items()},
                is_free_tier=False,
                rate_limit=OwnRate(requests=requests, interval=f"{seconds}s"),
                expires_at=key.expires_at,
            )
        )


def _fields(key: ApiKey, spent: Spent) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "name": key.name,
        "hint": key.hint,
        "scopes": key.scopes,
        "models": key.models,
        "limit_day_far_exact": _exact(key.limit_day_far),
        "limit_month_far_exact": _exact(key.limit_month_far),
        "limit_total_far_exact": _exact(key.limit_total_far),
        "spent_day_far_exact": format_exact(spent.day),
        "spent_month_far_exact": format_exact(spent.month),
        "spent_total_far_exact": format_exact(spent.total),
        "generations_per_minute": key.generations_per_minute,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "last_used_at": key.last_used_at,
    }


def _exact(amount: Decimal | None) -> str | None:
    return None if amount is None else format_exact(amount)
