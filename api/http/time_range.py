"""A span of time, as query parameters."""

import datetime as dt
from typing import Annotated

from fastapi import Query

from api.schemas.base import Timestamp

From = Annotated[Timestamp | None, Query(alias="from", description="Not before; UTC if no offset.")]
To = Annotated[Timestamp | None, Query(description="Before this; UTC if no offset.")]

EARLIEST = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
LATEST = dt.datetime(9000, 1, 1, tzinfo=dt.UTC)
"""Times beyond either cannot be moved between zones by every library on the way, and nothing
happened then."""


def time_range(
    since: dt.datetime | None, to: dt.datetime | None
) -> tuple[dt.datetime, dt.datetime]:
    """From when to when, in UTC; as wide as can be where a side is not given. Empty if the end is
    before the beginning."""
    return _instant(since or EARLIEST), _instant(to or LATEST)


def _instant(given: dt.datetime) -> dt.datetime:
    instant = given if given.tzinfo is not None else given.replace(tzinfo=dt.UTC)
    return min(max(instant, EARLIEST), LATEST).astimezone(dt.UTC)
