"""The node's side of the platform's HTTP API: registration, heartbeats, farewell."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import structlog

from mesh import proof

log = structlog.get_logger()

TIMEOUT = 10.0
RETRY_DELAY = 1.0


class PlatformError(Exception):
    """The platform refused; the message says why."""


class PlatformUnreachable(PlatformError):
    """No answer: worth trying again."""


class NodeForgotten(PlatformError):
    """The platform knows neither this node nor its token any more: register again."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What the node says of itself when it registers."""

    wallet_address: str
    model_id: str
    start_layer: int
    end_layer: int
    edge: bool
    gpu_model: str
    vram_gb: int
    public_addr: str
    location: str
    max_sessions: int | None = None
    """Generations that it takes at once; as many as fit where not given."""
    min_price: str | None = None
    """FAR for a token of the model, for less than which it does not serve."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """One heartbeat's figures: milliseconds a step, tokens/s, generations, and the positions that
    the whole KV cache has room for."""

    latency_ms: float
    throughput_tokens_per_sec: float
    current_requests: int
    kv_positions: int


class Platform:
    """Registers once, then beats until told to stop."""

    def __init__(self, url: str, identity: Identity, credential: bytes | str) -> None:
        """``credential``: the wallet's private key, or the token of a machine that it let in."""
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT)
        self._identity = identity
        self._private_key = credential if isinstance(credential, bytes) else None
        self._token = credential if isinstance(credential, str) else ""
        self.node_id = ""
        self._interval = 30.0
        self._stop = threading.Event()
        self._beating = threading.Lock()  # the farewell is the last that the platform hears
        self._thread: threading.Thread | None = None

    def join(self) -> str:
        """Prove the wallet and get a node id; waits for a platform that does not answer.

        Raises:
            PlatformError: the platform refused.
        """
        while True:
            try:
                return self._register()
            except PlatformUnreachable as error:
                log.warning("platform_unreachable", reason=str(error), retry_in=RETRY_DELAY)
                self._stop.wait(RETRY_DELAY)

    def describe(self) -> dict[str, Any]:
        """What the platform tells of this node, such as why it gets no work; nothing if it does
        not answer, or knows no such question."""
        try:
            found: dict[str, Any] = self._call("GET", f"/api/nodes/{self.node_id}")
        except PlatformError:
            return {}
        return found

    def _register(self) -> str:
        identity = self._identity
        wishes = {"max_sessions": identity.max_sessions, "min_price": identity.min_price}
        answer = self._call(
            "POST",
            "/api/nodes/register-distributed",
            {
                "wallet_address": identity.wallet_address,
                "model_id": identity.model_id,
                "gpu_model": identity.gpu_model,
                "vram_gb": identity.vram_gb,
                "public_addr": identity.public_addr,
                "location": identity.location,
                "start_layer": identity.start_layer,
                "end_layer": identity.end_layer,
                "edge": identity.edge,
                **{name: value for name, value in wishes.items() if value is not None},
                **self._proof(),
            },
        )
        self.node_id = answer["node_id"]
        self._token = answer["node_token"]
        self._interval = answer["heartbeat_interval_sec"]
        return self.node_id

    def _proof(self) -> dict[str, str]:
        """The wallet's signature; nothing where a machine's token stands for it."""
        if self._private_key is None:
            return {}
        nonce = self._call("GET", "/api/auth/nonce")["nonce"]
        identity = self._identity
        message = proof.registration_message(
            wallet_address=identity.wallet_address,
            model_id=identity.model_id,
            start_layer=identity.start_layer,
            end_layer=identity.end_layer,
            edge=identity.edge,
            nonce=nonce,
        )
        return {"nonce": nonce, "signature": proof.sign(message, self._private_key)}

    def start_heartbeats(self, vitals: Callable[[], Vitals], forgotten: Callable[[], None]) -> None:
        """Beat now, and then at the platform's interval, in a thread.

        ``forgotten`` is called, and the beating ends, if the platform no longer knows the node.
        """
        self._beat(vitals(), healthy=True)
        self._thread = threading.Thread(target=self._loop, args=(vitals, forgotten), daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Say that no new work is wanted: the node is off the routes at once."""
        self._stop.set()
        try:
            with self._beating:
                self._beat(Vitals(0, 0, 0, 0), healthy=False)
        except PlatformError as error:
            log.warning("farewell_failed", reason=str(error))

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join(timeout=TIMEOUT)
        self._http.close()

    def _loop(self, vitals: Callable[[], Vitals], forgotten: Callable[[], None]) -> None:
        while not self._stop.wait(self._interval):
            try:
                with self._beating:
                    if not self._stop.is_set():
                        self._beat(vitals(), healthy=True)
            except NodeForgotten as error:
                log.error("node_forgotten", reason=str(error))
                forgotten()
                return
            except PlatformError as error:
                log.warning("heartbeat_failed", reason=str(error))

    def _beat(self, vitals: Vitals, *, healthy: bool) -> None:
        self._call(
            "POST",
            "/api/nodes/heartbeat",
            {
                "node_id": self.node_id,
                "is_healthy": healthy,
                "latency_ms": vitals.latency_ms,
                "throughput_tokens_per_sec": vitals.throughput_tokens_per_sec,
                "current_requests": vitals.current_requests,
                "kv_positions": vitals.kv_positions,
            },
        )

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            answer = self._http.request(method, path, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise PlatformUnreachable(
                f"{self._http.base_url} does not answer ({type(error).__name__})."
            ) from error
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.NOT_FOUND):
            raise NodeForgotten(_reason(answer))
        if answer.is_error:
            raise PlatformError(_reason(answer))
        return answer.json()


def _reason(answer: httpx.Response) -> str:
    try:
        problem = answer.json()
        return f"{problem['detail']} ({problem['code']})"
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"
