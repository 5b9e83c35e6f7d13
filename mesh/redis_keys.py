"""Every Redis key and stream name, in one place.

The part in braces is the Redis Cluster hash tag: all keys of one generation, or of one node, lie
in one slot, so that a script may touch them together.
"""


def live_record(request_id: str) -> str:
    """Hash: the epoch that may write a generation's tokens now and its route
    (:mod:`mesh.route_record`), and when the first token was written."""
    return f"inference_session:{{{request_id}}}"


def tokens(request_id: str) -> str:
    """Stream: token *i* has the ID ``i+1-0``; the end entry after *n* tokens, ``n-1``."""
    return f"inference_session:{{{request_id}}}:tokens"


def events(request_id: str) -> str:
    """Stream: messages of a generation's nodes and user to its supervisor."""
    return f"inference_session:{{{request_id}}}:events"


def sole_reader(request_id: str) -> str:
    """Text that expires: the name of the one reader that a running generation's tokens have, or
    that they have several."""
    return f"inference_session:{{{request_id}}}:reader"


def attempt(request_id: str) -> str:
    """Number that expires: the newest attempt of a client that retries which waits for the job."""
    return f"inference_session:{{{request_id}}}:attempt"


def inbox(node_id: str) -> str:
    """Stream: messages to one node, of all its generations."""
    return f"node:{{{node_id}}}:inbox"


def node(node_id: str) -> str:
    """Hash that expires: a node's last heartbeat."""
    return f"node:{{{node_id}}}"


def keepalive(node_id: str) -> str:
    """Number that expires within a second: free positions in the KV cache of a node whose process
    runs."""
    return f"node:{{{node_id}}}:pulse"


def loading(node_id: str) -> str:
    """Number that expires: bytes of weights that the node's process had fetched when it last made
    progress."""
    return f"node:{{{node_id}}}:loading"


def assignment(node_id: str) -> str:
    """Hash that expires: the span that a rebalance has for the node, and when the node last asked
    for one."""
    return f"node:{{{node_id}}}:orders"


def unsaved_uptime(node_id: str) -> str:
    """Number that outlives the node's record: milliseconds of uptime that are not in Postgres
    yet."""
    return f"node:{{{node_id}}}:uptime"


INBOX_SIZES = "far_mesh:{inboxes}:sizes"
"""Sorted set: bytes of the inboxes that were measured, by node."""

INBOX_EXPIRIES = "far_mesh:{inboxes}:expiries"
"""Sorted set: until when (Unix time) each of these sizes counts, by node."""

INBOXES_TOTAL = "far_mesh:{inboxes}:total"
"""Number that expires: the sum of these sizes."""


def relay_connection(node_id: str) -> str:
    """Hash: the node's newest connection to the relay, and the last push that was forwarded."""
    return f"node:{{{node_id}}}:link"


def skip_counts(node_id: str, hour: int) -> str:
    """Hash that expires: how often the node was not on a route within an hour, by reason. ``hour``:
    hours since 1970."""
    return f"node:{{{node_id}}}:skipped:{hour}"


def cooldown(node_id: str) -> str:
    """Flag that expires: the node failed a generation a moment ago."""
    return f"node:{{{node_id}}}:cooldown"


def disputes(node_id: str) -> str:
    """Sorted set that expires: wallets that the node is in dispute with, by the time of the newest
    dispute."""
    return f"node:{{{node_id}}}:disputes"


def refusals(node_id: str) -> str:
    """Number that expires: how often the node has refused what it offered since it last served a
    generation to its end."""
    return f"node:{{{node_id}}}:refusals"


def failed_users(node_id: str) -> str:
    """Sorted set that expires: wallets of users whose generations failed at the node by its own
    word since it last served one to its end, by the time of the newest failure."""
    return f"node:{{{node_id}}}:failed_users"


def refusal_pause(node_id: str) -> str:
    """Flag that expires: what the node says of its free KV does not count now."""
    return f"node:{{{node_id}}}:paused"


def model_nodes(model_id: str) -> str:
    """Set: the nodes that have announced a span of the model; the expired are dropped on read."""
    return f"model_nodes:{{{model_id}}}"


def node_speeds(model_id: str) -> str:
    """Hash: layers a second of each node of the model, exponentially weighted averages."""
    return f"node_speeds:{{{model_id}}}"


def throughput(model_id: str, slot: int) -> str:
    """Number that expires: positions of the model that all nodes together computed within a slot
    of time. ``slot``: slots since 1970."""
    return f"throughput:{{{model_id}}}:{slot}"


def dht_directory(model_id: str) -> str:
    """Hash that expires: announcements of a model's nodes in the DHT, each as JSON under its id."""
    return f"phonebook:{{{model_id}}}"


def nonce(value: str) -> str:
    """Flag that expires: a nonce that was issued and not consumed yet."""
    return f"nonce:{{{value}}}"


DHT_PEERS = "far_mesh:dht_peers"
"""Hash that expires: multiaddresses of our own DHT peers, and until when (Unix time) each
counts."""


def device_code(digest: str) -> str:
    """Hash that expires: a machine that waits for a wallet to let it in."""
    return f"device_code:{{{digest}}}"


def user_code(digest: str) -> str:
    """Text that expires: the device code's digest, by the digest of the user code that a machine
    shows its owner."""
    return f"user_code:{{{digest}}}"


WORKER_QUEUE = "far_mesh:queue"
"""arq's queue: tasks for the workers, each of which Postgres could repeat."""

CRON_QUEUE = "far_mesh:crons"
"""arq's queue of what the workers do at times: no generation can take its slots."""

WORKER_WAKEUPS = "far_mesh:bell"
"""List: an entry for each enqueued task, on which idle workers block instead of polling the
queue."""


def readers_wakeup(process: str) -> str:
    """Stream that expires: an entry whenever a gateway process has a further job to follow, so that
    its blocking read of all followed token streams ends and begins again with that job."""
    return f"far_mesh:readers:{process}"
