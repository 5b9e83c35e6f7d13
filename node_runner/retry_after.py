"""The header Retry-After in seconds, bounded."""

import httpx

LONGEST_WAIT = 120.0
"""Seconds; a server that asks for a longer wait is asked again after this many."""


def retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait; 0 if the response has no Retry-After, or one that is a
    date."""
    text = response.headers.get("Retry-After", "")
    return min(float(text), LONGEST_WAIT) if text.isdecimal() else 0.0
