"""The relay: nodes' one way to each other, to readers and to supervisors (DESIGN §6).

Nothing of a connection outlives its process: inboxes, cursors and numbers are in Redis, so that any
replica can serve any node. ``carriers`` are the two ways to a node, ``desk`` is what is done for
it: ``forwarding`` what it sends, by the rules of ``checks`` and the routes that are ``known``; at
its ``pace``, while it has a ``pulse``. ``line`` is the way to Redis.
"""
