"""The relay: nodes' one way to each other, to readers and to supervisors (DESIGN §6).

Nothing of a connection outlives its process: inboxes, cursors and numbers are in Redis, so that any
replica can serve any node. ``websocket`` and ``long_poll`` are the two ways to a node; ``hub`` does
what both need. What a node sends goes through ``forwarder``, by the ``message_rules`` and the
routes in ``route_cache``; ``quotas`` bound how much a node may send, hold and leave in Redis,
``stream_trimming`` says when that is looked at, ``keepalive_ttl`` how long a node counts as alive.
``pipelined_connection`` is the way to Redis.
"""
