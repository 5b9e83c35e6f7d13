"""A span of time, as query parameters."""

import datetime as dt
from typing import Annotated

from fastapi import Query

from market.errors import InvalidRequest

From = Annotated[
    dt.datetime | None, Query(alias="from", description="Not before; UTC if no offset.")
]
To = Annotated[dt.datetime | None, Query(description="Before this; UTC if no offset.")]

EARLIEST = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
LATEST = dt.datetime(9000, 1, 1, tzinfo=dt.UTC)
"""Times beyond either cannot be moved between zones by every library on the way."""


def time_range(
    since: dt.datetime | None, to: dt.datetime | None
) -> tuple[dt.datetime, dt.datetime]:
    """From when to when, in UTC; as wide as can be where a side is not given.

    Raises:
        InvalidRequest: the end is before the beginning, or a time is out of bounds.
    """
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
