"""Files of other servers over HTTP, read whole: the one place that asks for them, with limits."""

import time

import httpx

SILENCE = 10.0
"""Seconds without a byte."""

TOTAL = 30.0
"""Seconds for the whole file, however its bytes come."""


def read_url(url: str, *, most: int) -> bytes:
    """The file at a URL; redirects are followed. Of one that is longer than ``most`` bytes, a
    beginning that is longer, too.

    Raises:
        httpx.HTTPError: there is no such file, or no answer in time.
    """
    ends_at = time.monotonic() + TOTAL
    content = bytearray()
    with httpx.stream("GET", url, timeout=SILENCE, follow_redirects=True) as answer:
        answer.raise_for_status()
        for piece in answer.iter_bytes():
            content += piece
            if len(content) > most:
                break
            if time.monotonic() > ends_at:
                raise httpx.ReadTimeout("The file takes too long.", request=answer.request)
    return bytes(content)
