"""Tables as CSV (RFC 4180), a page at a time."""

import csv
import io
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi.responses import StreamingResponse

from market.receipts.statements import Page

CSV_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/csv": {"schema": {"type": "string"}}}}
}
"""A route's ``responses``."""


async def csv_response(
    name: str, header: Sequence[str], pages: AsyncIterator[Page]
) -> StreamingResponse:
    """The pages as one document (RFC 4180). The first is read before the answer begins, so that
    an outage has its own status."""
    first: Page = await anext(pages, [])

    async def lines() -> AsyncIterator[str]:
        yield _csv_text([header, *first])
        async for page in pages:
            yield _csv_text(page)

    return StreamingResponse(
        lines(),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


def _csv_text(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
