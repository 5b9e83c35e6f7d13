"""Tables as CSV (RFC 4180), a page at a time."""

import csv
import io
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi.responses import StreamingResponse

from market.receipts.statements import Page

CSV: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/csv": {"schema": {"type": "string"}}}}
}
"""A route's ``responses``."""


async def as_csv(name: str, header: Sequence[str], pages: AsyncIterator[Page]) -> StreamingResponse:
    """The pages as one document (RFC 4180). The first is read before the answer begins, so that
    an outage has its own status."""
    first: Page = await anext(pages, [])

    async def lines() -> AsyncIterator[str]:
        yield _written([header, *first])
        async for page in pages:
            yield _written(page)

    return StreamingResponse(
        lines(),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


def _written(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
