"""The protocol that nodes and the platform share.

No SQL, web framework, chain client, Redis client or torch: a provider's machine has none of the
first four, the API's container none of the last.
"""

__version__ = "0.1.0"
