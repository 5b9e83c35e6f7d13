"""Makes things for tests; each argument has a default that does not matter to the test."""

import datetime as dt
import itertools
import uuid
from decimal import Decimal

from sqlalchemy.ext.asyncio import AsyncSession

from market import ledger
from market.jobs.live_session import TokenEntry
from market.jobs.tables import Job, RouteHop

_numbers = itertools.count()

USER = "0x" + "aa" * 20

AMPLE = Decimal(1_000_000)
"""A spending cap, in FAR, that no test reaches by chance."""


async def fund(
    db: AsyncSession,
    *,
    wallet: str = USER,
    amount: Decimal | str = "1",
    maximum: Decimal = AMPLE,
) -> None:
    """Give a wallet a deposit of so many FAR, and a spending cap."""
    reference = f"deposit {next(_numbers)}"
    await ledger.deposit(db, reference=reference, wallet=wallet, amount=Decimal(amount))
    await ledger.raise_cap(db, wallet=wallet, maximum=maximum)


def hop(
    *,
    epoch: int = 1,
    stage: int = 0,
    node: str | None = None,
    wallet: str | None = None,
    start: int = 0,
    end: int = 1,
    first_token: int = 0,
) -> RouteHop:
    """One node of a route; its wallet is its own unless given."""
    node = node or f"node-{stage}"
    return RouteHop(
        session_id=uuid.UUID(int=0),
        epoch=epoch,
        stage=stage,
        node_id=node,
        wallet_address=wallet or f"wallet of {node}",
        start_layer=start,
        end_layer=end,
        first_token=first_token,
    )


def token_entries(count: int, text: str = "x", *, logprobs: bytes = b"") -> list[TokenEntry]:
    """So many tokens, as a stream has them."""
    return [TokenEntry(f"{number}-0", 7, text, logprobs) for number in range(1, count + 1)]


def session(
    *,
    user: str = USER,
    price: Decimal = Decimal("0.0001"),
    prompt_price: Decimal = Decimal(0),
    max_tokens: int = 100,
    status: str = "active",
    lease_counter: int = 1,
) -> Job:
    """A generation that a supervisor holds. Its money is not posted."""
    now = dt.datetime.now(dt.UTC)
    return Job(
        id=uuid.uuid4(),
        request_id=f"req_{next(_numbers):024x}",
        user_wallet=user,
        model_id="far/pydoc-llama",
        tier="standard",
        started_at=now,
        deadline_at=now + dt.timedelta(minutes=5),
        status=status,
        prompt_tokens=3,
        max_tokens=max_tokens,
        temperature=0,
        top_p=1,
        seed=0,
        request_cipher=b"sealed",
        request_digest=b"digest",
        price_per_token_far=price,
        price_per_prompt_token_far=prompt_price,
        price_per_cached_prompt_token_far=prompt_price / 10,
        hold_far=price * max_tokens + prompt_price * 3,
        epoch=1,
        lease_counter=lease_counter,
        lease_expires_at=now + dt.timedelta(minutes=1),
    )
