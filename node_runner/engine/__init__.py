"""The engine: one span of a model, many generations, one forward for all that waits.

Knows torch and transformers; knows nothing of Redis, HTTP or wallets. Messages come in
(:mod:`mesh.wire`), messages go out.
"""
