"""The node's side of the platform's HTTP API: registration, heartbeats, farewell."""

import random
import threading
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any

import httpx
import structlog

from mesh import signed_texts
from mesh.node_api import Heartbeat

log = structlog.get_logger()

TIMEOUT = 10.0
RETRY_DELAY = 1.0
"""Seconds until a platform is asked again that did not answer, by the half more or less: so that
one that comes back does not meet all its nodes at once."""

LONGEST_WAIT = 120.0
"""Seconds; a platform that asks for more patience (`Retry-After`) is taken at so much."""

REGISTERED = ("node_id", "layers_served", "edge", "node_token", "heartbeat_interval_sec")
TOLD = ("start_layer", "end_layer", "should_rebalance")
"""Fields of the platform's answers to a registration and to a heartbeat."""


class PlatformError(Exception):
    """The platform refused; the message says why."""


class PlatformUnreachable(PlatformError):
    """No answer, or none that is the platform's word: worth trying again.

    ``retry_after``: seconds that it asked for, if it did.
    """

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def pause(self) -> float:
        """Seconds until another try."""
        return self.retry_after + RETRY_DELAY * random.uniform(0.5, 1.5)


class NodeForgotten(PlatformError):
    """The platform knows neither this node nor its token any more: register again."""


class NodeSuperseded(PlatformError):
    """The node has registered again: another process is it now, and this one has to end."""


@dataclass(frozen=True, slots=True)
class NodeRegistration:
    """What the node says of itself when it registers. ``device_id`` and ``gpu_index`` are what the
    platform knows it again by; ``memory_bytes`` is room for weights and KV (0: not known);
    ``min_price`` is FAR a token, as text; ``max_sessions`` 0 is no limit."""

    wallet_address: str
    model_id: str
    span: tuple[int, int] | None
    """Layers to serve; none if the platform is to choose them, and the edge with them."""
    edge: bool
    gpu_model: str
    vram_gb: int
    public_addr: str
    location: str
    device_id: str | None
    gpu_index: int
    quantization: str
    memory_bytes: int
    latitude: float | None = None
    longitude: float | None = None
    max_sessions: int = 0
    min_price: str | None = None


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """What a heartbeat was answered: the span that routes count on, or one to load."""

    span: tuple[int, int] | None
    should_rebalance: bool


class Platform:
    """Registers once, then beats until told to stop."""

    def __init__(
        self,
        url: str,
        identity: NodeRegistration,
        credential: bytes | str,
        dht_key: str | None = None,
    ) -> None:
        """
        Args:
            credential: The wallet's private key, or the token of a machine that it let in.
            dht_key: With which the node will sign what it announces in the DHT; in hex.
        """
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT)
        self._identity = identity
        self._private_key = credential if isinstance(credential, bytes) else None
        self._token = credential if isinstance(credential, str) else ""
        self._dht_key = dht_key
        self.node_id = ""
        self.span = identity.span or (0, 0)
        self.edge = identity.edge
        self.dht: dict[str, Any] | None = None
        """What the platform says of the DHT to a node that joins."""
        self._interval = 30.0
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._beating = threading.Lock()  # the farewell is the last that the platform hears
        self._thread: threading.Thread | None = None

    @property
    def token(self) -> str:
        """The node's bearer token, once it has joined."""
        return self._token

    def join(self) -> str:
        """Prove the wallet and get a node id; waits for a platform that does not answer.

        Raises:
            PlatformError: the platform refused.
        """
        while True:
            try:
                return self._register()
            except PlatformUnreachable as error:
                pause = error.pause()
                log.warning("platform_unreachable", reason=str(error), retry_in=round(pause, 1))
                self._stop.wait(pause)

    def describe(self) -> dict[str, Any]:
        """What the platform tells of this node, such as why it gets no work; nothing if it does
        not answer."""
        try:
            found: dict[str, Any] = self._call("GET", f"/api/nodes/{self.node_id}")
        except PlatformError:
            return {}
        return found

    def _register(self) -> str:
        facts = asdict(self._identity)
        span = facts.pop("span")
        start, end = span or (None, None)
        answer = self._call(
            "POST",
            "/api/nodes/register-distributed",
            {
                **facts,
                "start_layer": start or 0,
                "end_layer": end,
                "placeable": span is None,
                "dht_key": self._dht_key,
                **self._proof(start, end),
            },
            needs=REGISTERED,
        )
        self.node_id = answer["node_id"]
        self.span = (answer["layers_served"][0], answer["layers_served"][-1] + 1)
        self.edge = answer["edge"]
        self.dht = answer.get("dht")
        self._token = answer["node_token"]
        self._interval = answer["heartbeat_interval_sec"]
        return self.node_id

    def _proof(self, start: int | None, end: int | None) -> dict[str, str]:
        """The wallet's signature; nothing where a machine's token stands for it."""
        if self._private_key is None:
            return {}
        nonce = self._call("GET", "/api/auth/nonce", needs=["nonce"])["nonce"]
        message = signed_texts.registration_message(
            wallet_address=self._identity.wallet_address,
            model_id=self._identity.model_id,
            start_layer=start,
            end_layer=end,
            edge=self._identity.edge,
            nonce=nonce,
        )
        return {"nonce": nonce, "signature": signed_texts.sign(message, self._private_key)}

    def start_heartbeats(
        self,
        vitals: Callable[[], Heartbeat],
        told: Callable[[HeartbeatReply], None],
        forgotten: Callable[[PlatformError], None],
    ) -> None:
        """Beat now, and then at the platform's interval, in a thread that calls all three:
        ``told`` gets the answers.

        ``forgotten`` is called with the reason, and the beating ends, if the platform no longer
        knows the node, or another process is it. Nothing else ends it.
        """
        how = (vitals, told, forgotten)
        self._thread = threading.Thread(target=self._loop, args=how, daemon=True)
        self._thread.start()

    def beat_soon(self) -> None:
        """Do not wait for the interval: there is news."""
        self._wake.set()

    def leave(self) -> None:
        """Say that no new work is wanted: the node is off the routes at once."""
        self._stop.set()
        self._wake.set()
        try:
            with self._beating:
                self._beat(Heartbeat(is_healthy=False))
        except PlatformError as error:
            log.warning("farewell_failed", reason=str(error))

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join(timeout=TIMEOUT)
        self._http.close()

    def _loop(
        self,
        vitals: Callable[[], Heartbeat],
        told: Callable[[HeartbeatReply], None],
        forgotten: Callable[[PlatformError], None],
    ) -> None:
        wait = 0.0
        while True:
            self._wake.wait(wait)
            self._wake.clear()
            wait = self._interval
            try:
                with self._beating:
                    if self._stop.is_set():
                        return
                    answer = self._beat(vitals())
                told(answer)
            except (NodeForgotten, NodeSuperseded) as error:
                log.error("node_forgotten", reason=str(error))
                forgotten(error)
                return
            except PlatformUnreachable as error:
                wait = min(wait, error.pause())
                log.warning("heartbeat_failed", reason=str(error))
            except Exception as error:  # a thread that ended would take the node off for good
                log.error("heartbeat_failed", reason=f"{type(error).__name__}: {error}")

    def _beat(self, vitals: Heartbeat) -> HeartbeatReply:
        answer = self._call(
            "POST",
            "/api/nodes/heartbeat",
            {"node_id": self.node_id, **asdict(vitals)},
            needs=TOLD,
        )
        start, end = answer["start_layer"], answer["end_layer"]
        span = None if start is None or end is None else (start, end)
        return HeartbeatReply(span, answer["should_rebalance"])

    def _call(
        self, method: str, path: str, body: Any = None, *, needs: Collection[str] = ()
    ) -> dict[str, Any]:
        """The answer, which has the fields ``needs``.

        Raises:
            PlatformUnreachable: no answer, or it cannot answer now, or who answers is somebody
                else: a proxy, a hotel's login page.
            NodeForgotten, NodeSuperseded: it says so.
            PlatformError: it refuses.
        """
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            answer = self._http.request(method, path, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise PlatformUnreachable(
                f"{self._http.base_url} does not answer ({type(error).__name__})."
            ) from error
        document = _document(answer)
        if answer.is_success and document.keys() >= set(needs):
            return document
        if answer.is_success or not document.keys() >= {"code", "detail"}:
            raise PlatformUnreachable(
                f"{self._http.base_url} answers, but not as the platform does "
                f"(HTTP {answer.status_code})."
            )
        reason = f"{document['detail']} ({document['code']})"
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS or answer.is_server_error:
            raise PlatformUnreachable(reason, retry_after=retry_after(answer))
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.NOT_FOUND):
            raise NodeForgotten(reason)
        if answer.status_code == httpx.codes.CONFLICT:
            raise NodeSuperseded(reason)
        raise PlatformError(reason)


def _document(answer: httpx.Response) -> dict[str, Any]:
    """The answer's JSON object; empty where it is none."""
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def retry_after(answer: httpx.Response) -> float:
    """Seconds; 0 where it does not say, or gives a date."""
    text = answer.headers.get("Retry-After", "")
    return min(float(text), LONGEST_WAIT) if text.isdecimal() else 0.0
