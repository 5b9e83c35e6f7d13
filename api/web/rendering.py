"""Rendering of pages, with the headers that keep other people's code out of them."""

from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from starlette.templating import Jinja2Templates

TEMPLATES = Jinja2Templates(directory=Path(__file__).parent / "templates")

HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""A page that asks a wallet to sign must be nobody's frame and run nobody's script."""


def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A rendered page."""
    return TEMPLATES.TemplateResponse(
        request, template, values, status_code=status, headers=HEADERS
    )
