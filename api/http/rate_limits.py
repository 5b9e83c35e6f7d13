"""Rate limits: moving windows in Redis, shared by all replicas."""

import math
import time

from fastapi import Request
from limits import parse

from api.http.services import Services
from market.errors import RateLimited


def address_of(request: Request, services: Services) -> str:
    """The caller's IP address; behind a trusted proxy, the one that the proxy saw."""
    if services.settings.limits.trust_forwarded_for:
        # A proxy may add a header of its own after one that the client made up: the last counts.
        forwarded = ",".join(request.headers.getlist("x-forwarded-for"))
        nearest = forwarded.rpartition(",")[2].strip()
        if nearest:
            return nearest
    return request.client.host if request.client else "unknown"


async def limit(services: Services, rule: str, *who: str) -> None:
    """Count one request of ``who`` against a rule such as ``100/hour``.

    Raises:
        RateLimited: the rule is exhausted; says when to come back.
    """
    item = parse(rule)
    if await services.limiter.hit(item, *who):
        return
    window = await services.limiter.get_window_stats(item, *who)
    wait = max(1, math.ceil(window.reset_time - time.time()))
    raise RateLimited(f"At most {rule}. Try again in {wait} seconds.", retry_after=wait)
