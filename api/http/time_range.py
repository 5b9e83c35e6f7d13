"""What users paid and providers earned: receipts with proofs, and tables."""

import datetime as dt
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from api.http.authentication import LoggedIn
from api.http.rate_limits import limit
from api.http.services import WithServices
from api.schemas.receipts import Receipt
from market.errors import InvalidRequest
from market.receipts import receipt as receipts_receipt
from market.receipts import statements

router = APIRouter()

CSV: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/csv": {"schema": {"type": "string"}}}}
}

From = Annotated[
    dt.datetime | None, Query(alias="from", description="Not before; UTC if no offset.")
]
To = Annotated[dt.datetime | None, Query(description="Before this; UTC if no offset.")]

EARLIEST = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
LATEST = dt.datetime(9000, 1, 1, tzinfo=dt.UTC)
"""Times beyond either cannot be moved between zones by every library on the way."""


@router.get("/api/inference/jobs/{request_id}/receipt", tags=["inference"])
async def receipt(request_id: str, caller: LoggedIn, services: WithServices) -> Receipt:
    """What an ended job cost, who served which layers and tokens, and how the cost was split.

    Once it is in a batch, also each line of the batch that is about it, with a Merkle proof: the
    contract's `verifyUsage(batch_id, line, proof)` says whether the chain agrees. The job's user
    sees all of it; a provider that took part sees his own.
    """
    await limit(services, services.settings.limits.receipts_per_wallet, "receipt", caller.wallet)
    return await receipts_receipt.receipt(services, caller.wallet, request_id)


@router.get("/api/billing/usage.csv", tags=["billing"], response_class=Response, responses=CSV)
async def usage(
    caller: LoggedIn, services: WithServices, since: From = None, to: To = None
) -> Response:
    """Your jobs that ended in a span of time, as CSV, the oldest first."""
    await limit(services, services.settings.limits.tables_per_wallet, "table", caller.wallet)
    pages = statements.usage(services.sessions, caller.wallet, *_span(since, to))
    return await statements.as_csv("usage.csv", statements.USAGE, pages)


@router.get("/api/provider/earnings.csv", tags=["nodes"], response_class=Response, responses=CSV)
async def earnings(
    caller: LoggedIn, services: WithServices, since: From = None, to: To = None
) -> Response:
    """What your wallet's nodes earned with jobs that ended in a span of time, as CSV."""
    await limit(services, services.settings.limits.tables_per_wallet, "table", caller.wallet)
    pages = statements.earnings(services.sessions, caller.wallet, *_span(since, to))
    return await statements.as_csv("earnings.csv", statements.EARNINGS, pages)


def _span(since: dt.datetime | None, to: dt.datetime | None) -> tuple[dt.datetime, dt.datetime]:
    first = EARLIEST if since is None else _instant(since, "from")
    end = LATEST if to is None else _instant(to, "to")
    if first > end:
        raise InvalidRequest("to: it is before from.", code="to_out_of_range")
    return first, end


def _instant(given: dt.datetime, field: str) -> dt.datetime:
    instant = given if given.tzinfo is not None else given.replace(tzinfo=dt.UTC)
    if not EARLIEST <= instant <= LATEST:
        raise InvalidRequest(
            f"{field}: a time between 2000 and 9000.", code=f"{field}_out_of_range"
        )
    return instant.astimezone(dt.UTC)
