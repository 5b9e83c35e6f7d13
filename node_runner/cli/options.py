"""The options of a node, each once: as a flag, in the environment, and in the settings' file."""

from pathlib import Path
from typing import Annotated, Any

import typer

SPAN_PANEL, LIMITS_PANEL, SCHEDULE_PANEL, ADVANCED_PANEL = (
    "Which layers, and where",
    "Limits",
    "When",
    "For operators and experts",
)


CACHE = Path.home() / ".cache" / "far-mesh" / "spans"


def option(text: str, *flags: str, env: str, panel: str | None = None) -> Any:
    """An option that the environment may give, too, as FAR_NODE_<env>."""
    return typer.Option(
        *flags, envvar=f"FAR_NODE_{env}", help=text, rich_help_panel=panel, show_envvar=False
    )


Model = Annotated[str, option("Model to serve, by the platform's id.", env="MODEL")]
Wallet = Annotated[
    str | None,
    option("Wallet that is paid: 0x...; the one that logged in, if not given.", env="WALLET"),
]
Discovery = Annotated[
    str | None,
    option(
        "URL of the platform; the one of the login, if not given.",
        "--discovery",
        "--discovery-url",
        env="DISCOVERY",
    ),
]
DhtPeers = Annotated[
    str | None,
    option(
        "Peers to join the DHT by, separated by commas: there the platform is looked up where its "
        "URL does not answer. With --operator-key.",
        "--dht-peers",
        env="DHT_PEERS",
        panel=ADVANCED_PANEL,
    ),
]
OperatorKey = Annotated[
    str | None,
    option(
        "Key of the platform's operator, in hex, whose word counts in the DHT.",
        "--operator-key",
        env="OPERATOR_KEY",
        panel=ADVANCED_PANEL,
    ),
]
Announce = Annotated[
    bool, option("Announce the span in the DHT.", env="ANNOUNCE", panel=ADVANCED_PANEL)
]
Keyfile = Annotated[
    Path | None,
    option(
        "Encrypted keystore of the wallet, where there is no browser. Its password is in "
        "FAR_NODE_PASSWORD, or is asked for.",
        env="KEYFILE",
    ),
]
Gpu = Annotated[
    list[int] | None,
    option("Index of a GPU; again for each: every one gets a node.", env="GPU", panel=SPAN_PANEL),
]
Device = Annotated[
    list[str] | None,
    option(
        "cpu, cuda, cuda:1, ...; auto takes a GPU if there is one. Again for each.",
        env="DEVICE",
        panel=SPAN_PANEL,
    ),
]
Layers = Annotated[
    str | None,
    option(
        "Layers to serve, as START:END (end not included). Without it the platform chooses, and "
        "may choose anew.",
        env="SPAN",
        panel=SPAN_PANEL,
    ),
]
Quantization = Annotated[
    str,
    option(
        "What the layers' weights are kept in: none (as --dtype), int8, nf4.",
        env="QUANTIZATION",
        panel=SPAN_PANEL,
    ),
]
MemoryGb = Annotated[
    float | None,
    option(
        "Memory for weights and KV caches, in GB, of each node; most of a GPU's or half of the "
        "machine's that is free, if not given.",
        env="MEMORY_GB",
        panel=LIMITS_PANEL,
    ),
]
KvGb = Annotated[
    float, option("Memory for KV caches, in GB, of each node.", env="KV_GB", panel=LIMITS_PANEL)
]
MaxSessions = Annotated[
    int | None,
    option("Generations that a node takes at once.", env="MAX_SESSIONS", panel=LIMITS_PANEL),
]
MinPrice = Annotated[
    str | None,
    option(
        "FAR for a token of the model, below which not to serve.",
        env="MIN_PRICE",
        panel=LIMITS_PANEL,
    ),
]
Threads = Annotated[
    int, option("CPU threads for the computing, of each node.", env="THREADS", panel=LIMITS_PANEL)
]
Schedule = Annotated[
    str | None,
    option(
        "Local times to serve in, such as 22:00-08:00 or 12:00-13:30,20:00-24:00. Outside, the "
        "nodes drain and give the GPU back.",
        "--schedule",
        env="SCHEDULE",
        panel=SCHEDULE_PANEL,
    ),
]
AutoUpdate = Annotated[
    bool,
    option(
        "Install newer versions of far-mesh while nothing is served, and start again.",
        env="AUTO_UPDATE",
        panel=SCHEDULE_PANEL,
    ),
]
UpdateIndex = Annotated[
    str,
    option("Package index that --auto-update queries.", env="UPDATE_INDEX", panel=SCHEDULE_PANEL),
]
Redis = Annotated[
    str | None,
    option(
        "Redis of the platform, for nodes that run beside it; all others use the relay of "
        "--discovery.",
        env="REDIS",
        panel=ADVANCED_PANEL,
    ),
]
CheckpointPath = Annotated[
    str | None,
    option(
        "Checkpoint folder, URL or hub id. Without it the platform says where it lies.",
        env="PATH",
        panel=ADVANCED_PANEL,
    ),
]
Edge = Annotated[
    bool,
    option(
        "Hold embedding, head and sampler (operator's nodes only).",
        env="EDGE",
        panel=ADVANCED_PANEL,
    ),
]
Dtype = Annotated[
    str,
    option(
        "float32, bfloat16, float16; auto: float32 on CPU, bfloat16 on a GPU, float16 on one that "
        "lacks it (compute capability below 8.0).",
        env="DTYPE",
        panel=ADVANCED_PANEL,
    ),
]
BatchInvariant = Annotated[
    bool,
    option(
        "In bfloat16 and float16: the same tokens whoever runs beside; off is faster.",
        "--batch-invariant/--no-batch-invariant",
        env="BATCH_INVARIANT",
        panel=ADVANCED_PANEL,
    ),
]
Wire = Annotated[
    str,
    option(
        "What hidden states are sent as: float32, bfloat16, float16, int8; auto: as computed.",
        env="WIRE",
        panel=ADVANCED_PANEL,
    ),
]
Speculate = Annotated[
    bool,
    option(
        "Speculative decoding where that pays (edge; same tokens).",
        env="SPECULATE",
        panel=ADVANCED_PANEL,
    ),
]
Draft = Annotated[
    str | None,
    option(
        "Small checkpoint of the same vocabulary that drafts (edge only).",
        env="DRAFT",
        panel=ADVANCED_PANEL,
    ),
]
Paged = Annotated[
    bool,
    option(
        "On a GPU: attend in place, replay graphs, if a trial at start goes right.",
        env="PAGED",
        panel=ADVANCED_PANEL,
    ),
]
PublicAddr = Annotated[
    str, option("HOST:PORT to be listed under.", env="PUBLIC_ADDR", panel=ADVANCED_PANEL)
]
Location = Annotated[
    str, option("Where this machine is, such as EU-West.", env="LOCATION", panel=ADVANCED_PANEL)
]
Cache = Annotated[Path, option("Folder for span checkpoints.", env="CACHE", panel=ADVANCED_PANEL)]
CacheGb = Annotated[
    float | None,
    option(
        "What span checkpoints may take, in GB; half of the disk if not given.",
        "--cache-gb",
        env="CACHE_GB",
        panel=LIMITS_PANEL,
    ),
]
Verify = Annotated[
    bool,
    option(
        "Read a checkpoint that is there and check its hash.",
        "--verify/--no-verify",
        env="VERIFY",
        panel=ADVANCED_PANEL,
    ),
]
MetricsPort = Annotated[
    int,
    option(
        "Prometheus port, one more for each node; 0: none.",
        env="METRICS_PORT",
        panel=ADVANCED_PANEL,
    ),
]
