"""A span of time, as query parameters."""

import datetime as dt
from typing import Annotated

from fastapi import Query

from api.schemas.base import EARLIEST, LATEST, Timestamp, instant

From = Annotated[Timestamp | None, Query(alias="from", description="Not before; UTC if no offset.")]
To = Annotated[Timestamp | None, Query(description="Before this; UTC if no offset.")]


def time_range(
    since: dt.datetime | None, to: dt.datetime | None
) -> tuple[dt.datetime, dt.datetime]:
    """From when to when, in UTC; as wide as can be where a side is not given. Empty if the end is
    before the beginning."""
    return instant(since or EARLIEST), instant(to or LATEST)
