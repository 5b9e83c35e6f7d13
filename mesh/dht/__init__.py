"""The public phonebook: what nodes say of themselves in a DHT, and what the operator says there.

`keys` signs, `records` is the format and its rules, `phonebook` is what the registry keeps of it
in Redis, `restore` puts back on the routes what Redis lost. None of them imports hivemind, which
brings torch: only `peer` does, and only the discovery service and the node's announcer import that.
"""
