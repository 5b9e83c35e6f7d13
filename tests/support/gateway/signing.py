"""What a wallet needs from the platform before it signs a request."""

import datetime as dt

import httpx

from mesh import signed_texts


async def challenge(client: httpx.AsyncClient, *, seconds: float = 60) -> dict[str, str]:
    """The platform's name, a fresh nonce, and an expiry so many seconds from now: what signed texts
    take by these names."""
    answer = (await client.get("/api/auth/nonce")).raise_for_status().json()
    expires_at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    return {
        "platform": answer["domain"],
        "nonce": answer["nonce"],
        "expires_at": signed_texts.format_instant(expires_at),
    }
