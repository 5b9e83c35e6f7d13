"""Where the platform is: at the URL that was given, or where the operator says in the DHT."""

import httpx
import structlog

from mesh.dht.signing_keys import public_from_hex
from node_runner.dht.peer_client import DhtEndpoint, DhtUnavailable, find_urls
from node_runner.http_client import open_client

PROBE_TIMEOUT = 10.0
"""Seconds that a URL gets to answer."""

log = structlog.get_logger()


class PlatformNotFound(Exception):
    """No URL was given, and the DHT tells none; the message says what to change."""


class PlatformLookupFailed(PlatformNotFound):
    """The DHT does not answer, or none of the URLs that it holds does: worth trying again."""


def dht_endpoint(peers: tuple[str, ...], operator_key: str | None) -> DhtEndpoint | None:
    """Where the DHT is, by the node's options; none if they name no peers.

    Raises:
        PlatformNotFound: peers without the operator's key, or it is none.
    """
    if not peers:
        return None
    if operator_key is None:
        raise PlatformNotFound(
            "--dht-peers goes with --operator-key: strangers write to the DHT, and that key "
            "tells the operator's word from theirs."
        )
    try:
        public_from_hex(operator_key)
    except ValueError:
        raise PlatformNotFound(
            f"--operator-key is 64 hexadecimal digits; got {operator_key!r}."
        ) from None
    return DhtEndpoint(peers, operator_key.strip().lower())


def platform_url(given: str | None, endpoint: DhtEndpoint | None) -> str:
    """The given URL if it answers, else the first of the DHT's that does, else the given one, which
    the node then waits for.

    Raises:
        PlatformNotFound: neither a URL is given, nor where the DHT is.
        PlatformLookupFailed: no URL is given, and none of the DHT's answers.
    """
    if given is not None and (endpoint is None or _answers(given)):
        return given
    reason = "Give --discovery, or --dht-peers and --operator-key."
    if endpoint is not None:
        try:
            urls = find_urls(endpoint)
            reason = f"The DHT says {', '.join(urls) or 'nothing'}; nothing there answers."
        except DhtUnavailable as error:
            urls, reason = [], f"The DHT cannot be asked: {error}"
        for url in urls:
            if _answers(url):
                log.info("platform_found", url=url, instead_of=given)
                return url
        log.warning("platform_not_found", reason=reason)
    if given is None:
        kind = PlatformNotFound if endpoint is None else PlatformLookupFailed
        raise kind(f"The platform's URL is not known. {reason}")
    return given


def _answers(url: str) -> bool:
    try:
        with open_client(silence=PROBE_TIMEOUT, total=PROBE_TIMEOUT) as http:
            answer = http.get(f"{url.rstrip('/')}/healthz")
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    return answer.is_success
