"""The node in the public DHT directory: it announces its span there, and finds the platform there.

hivemind runs in a process of its own (`peer_process`), which may die or hang: the node starts it
again, or goes on without. No other module of this package imports hivemind.
"""
