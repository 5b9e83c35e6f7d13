"""The engine: continuous batching of many generations over one span of a model.

Knows torch and transformers; knows nothing of Redis, HTTP or wallets. Messages come in
(:mod:`mesh.wire`), outputs go out (:mod:`node_runner.outputs`). Reading begins at
:meth:`node_runner.engine.engine.Engine.step`.
"""
