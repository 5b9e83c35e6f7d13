"""What `far-mesh up` starts, and with which settings."""

from dataclasses import dataclass, field
from pathlib import Path

from market.catalog.models import Model, load_model
from market.placement.solver import even_split
from market.settings.models import ModelSettings
from mesh.errors import MeshError
from stack.servers import StackError

DATABASE = "far_mesh"


DEMO_MODEL = Path(__file__).parent.parent / "demo" / "model"


DEMO_MODEL_ID = "far/pydoc-llama"

PROMPT = "The return value"

SETTINGS = {
    "FAR_PAYMENTS__RELEASE_DELAY": "1",
    "FAR_PAYMENTS__SETTLE_AMOUNT": "0",
    "FAR_PAYMENTS__SETTLEMENT_INTERVAL": "2",
    "FAR_PAYMENTS__DEPOSIT_INTERVAL": "1",
    "FAR_DISCOVERY__HEALTH_CHECK_INTERVAL": "5",
    "FAR_DISCOVERY__NODE_TTL": "20",
    "FAR_CORS_ORIGINS": "http://localhost:*, http://127.0.0.1:*, http://[::1]:*",
}
"""A development network does not wait an hour for its money, and pages that are developed beside it
may call it."""


@dataclass
class Plan:
    """What to start. Ports are on loopback."""

    folder: Path
    api_port: int = 8000
    redis_port: int = 6399
    chain_port: int = 8549
    model: str = str(DEMO_MODEL)
    model_id: str = DEMO_MODEL_ID
    nodes: int = 3
    workers: int = 1
    price: str = "0.0001"
    placed: bool = False
    """Let the platform choose the nodes' spans."""
    node_threads: int = 1
    dht: bool = False
    """Run the DHT's peer and mirror, and let the nodes announce themselves."""
    node_options: tuple[str, ...] = ()
    """Of `far-node start`, for every node; they outweigh what the supervisor says."""
    environment: dict[str, str] = field(default_factory=dict)
    """Settings of the mesh (``FAR_...``) beside those that the supervisor sets."""

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.redis_port}/0"

    @property
    def rpc_url(self) -> str:
        return f"http://127.0.0.1:{self.chain_port}"


def load(plan: Plan) -> Model:
    try:
        settings = ModelSettings(id=plan.model_id, path=plan.model, payment_per_token=plan.price)
    except ValueError:
        raise StackError(
            f"--price is an amount of FAR such as 0.0001; got {plan.price!r}."
        ) from None
    try:
        return load_model(settings)
    except (OSError, KeyError, ValueError, MeshError) as error:
        raise StackError(
            f"Cannot read the model {plan.model} ({type(error).__name__}: {error}). It has to be "
            "a folder with config.json, tokenizer.json and model.safetensors, or a hub id."
        ) from None


def spans_of(model: Model, nodes: int) -> list[tuple[int, int]]:
    try:
        return even_split(model.layers, nodes)
    except ValueError as error:
        raise StackError(str(error)) from None
