"""Records of nodes and of the platform in the DHT, each signed by its owner.

`signing_keys` signs, `records` is the format and its rules. Neither imports hivemind, which brings
torch: only `peer` does, and only the discovery service and a node's peer process import that.
"""
