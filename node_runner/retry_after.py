"""Retry-After in seconds, bounded."""

import httpx

LONGEST_WAIT = 120.0
"""Seconds; a server that asks for more patience (`Retry-After`) is taken at so much."""


def retry_after(answer: httpx.Response) -> float:
    """Seconds; 0 if it says nothing, or says it as a date."""
    told = answer.headers.get("Retry-After", "")
    return min(float(told), LONGEST_WAIT) if told.isdigit() else 0.0
