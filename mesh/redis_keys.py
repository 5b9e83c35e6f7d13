"""Every Redis key and stream name, in one place.

The part in braces is the Redis Cluster hash tag: all keys of one generation, or of one node, lie
in one slot, so that a script may touch them together.
"""


def live_record(request_id: str) -> str:
    """Hash: the epoch that may write tokens now, its route (:mod:`mesh.route_record`), and what
    else readers want of a generation."""
    return f"inference_session:{{{request_id}}}"


def tokens(request_id: str) -> str:
    """Stream: token *i* has the ID ``i+1-0``; the closing summary after *n* tokens, ``n-1``."""
    return f"inference_session:{{{request_id}}}:tokens"


def events(request_id: str) -> str:
    """Stream: what its nodes and its user tell the generation's supervisor."""
    return f"inference_session:{{{request_id}}}:events"


def inbox(node_id: str) -> str:
    """Stream: all work for one node, whatever the generation."""
    return f"node:{{{node_id}}}:inbox"


def node(node_id: str) -> str:
    """Hash that expires: a node's last heartbeat."""
    return f"node:{{{node_id}}}"


def keepalive(node_id: str) -> str:
    """Number that expires within a second: the node's process runs, and has KV room for so many
    positions."""
    return f"node:{{{node_id}}}:pulse"


def assignment(node_id: str) -> str:
    """Hash that expires: the span that a move has for the node, and when the node last asked."""
    return f"node:{{{node_id}}}:orders"


def unsaved_uptime(node_id: str) -> str:
    """Number that outlives the record: milliseconds heard that are not in Postgres yet."""
    return f"node:{{{node_id}}}:uptime"


def relay_connection(node_id: str) -> str:
    """Hash: the node's newest connection to the relay, and the last push that was forwarded."""
    return f"node:{{{node_id}}}:link"


def skip_counts(node_id: str, hour: int) -> str:
    """Hash that expires: how often the node was not on a route within an hour, by reason."""
    return f"node:{{{node_id}}}:skipped:{hour}"


def cooldown(node_id: str) -> str:
    """Flag that expires: the node failed a generation a moment ago."""
    return f"node:{{{node_id}}}:cooldown"


def model_nodes(model_id: str) -> str:
    """Set: the nodes that have announced a span of the model; the expired are dropped on read."""
    return f"model_nodes:{{{model_id}}}"


def node_speeds(model_id: str) -> str:
    """Hash: layers a second of each node of the model, smoothed over time."""
    return f"node_speeds:{{{model_id}}}"


def dht_directory(model_id: str) -> str:
    """Hash that expires: what the DHT says of a model's nodes, each as JSON under its id."""
    return f"phonebook:{{{model_id}}}"


def nonce(value: str) -> str:
    """Flag that expires: a nonce handed out and not used yet."""
    return f"nonce:{{{value}}}"


DHT_PEERS = "far_mesh:dht_peers"
"""Hash that expires: multiaddresses of our own DHT peers, and until when (Unix time) each
counts."""


def device_code(digest: str) -> str:
    """Hash that expires: a machine that waits for a wallet to let it in."""
    return f"device_code:{{{digest}}}"


def user_code(digest: str) -> str:
    """The device code's digest for what a machine shows its owner. Expires."""
    return f"user_code:{{{digest}}}"


WORKER_QUEUE = "far_mesh:queue"
"""arq's queue: pokes for the workers, each of which Postgres could repeat."""

WORKER_WAKEUPS = "far_mesh:bell"
"""List: an entry for each poke, so that a worker need not look into the queue to see it."""
