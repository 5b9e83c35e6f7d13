"""Limits that a sender, the relay and a receiver must agree on, each in this one place.

What a sender makes, the relay lets pass, and what the relay lets pass, a receiver takes. Limits of
the relay's frames stand in :mod:`mesh.relay.frames`, those of the node's HTTP bodies in
:mod:`mesh.node_api`, keep-alives in :mod:`mesh.keepalive`.
"""

MAX_STEP_ROWS = 512
"""Positions of one step. An engine prefills no more at once; a receiver refuses more as its
sender's fault."""

MAX_STEPS = 256
"""Steps of one message of hidden states. An engine gathers no more rows than that in a message of
several steps, each of which has one row at least."""

MAX_DRAFT_TOKENS = 12
"""Draft tokens of one step. An edge drafts no more ahead (:mod:`node_runner.engine.decoding`), so a
stage sends, of each position that is sampled, one row and as many draft rows at most; the relay
counts that."""

MAX_NODE_HEADER_BYTES = 2**16
"""Header of a message that a node sends: only what a supervisor sends carries prompts."""

MAX_TENSOR_BYTES = 2**25 - 2 * MAX_NODE_HEADER_BYTES
"""Hidden states of one message: 512 rows of width 16,320 in float32."""

MAX_HEADER_BYTES = 8 * 2**20
"""Header of any message. An open message carries the prompt and, after a re-route, what was
generated: 1.6 million token ids of five bytes."""

MAX_TOKENS = 1_000_000
"""Tokens that one generation may be asked for."""

MAX_TOKEN_ID = 2**31 - 1

MAX_TOKEN_TEXT = 4096
"""Characters that readers get with one token."""

TOKEN_TEXT_ON_AVERAGE = 256
"""Characters of all tokens of a generation, by their number: vocabularies have tokens of up to some
hundred spaces."""

EVENT_BURST = 16
EVENTS_PER_SECOND = 1.0
"""What a node says of one generation in one epoch besides steps and tokens (that a prefix is there,
answers to pings, a refusal, the end): few at once, and as often as a supervisor asks."""

MAX_STOP_TEXTS = 4
MAX_STOP_TEXT = 64
"""Characters of a text that ends a generation."""

MAX_TOP_LOGPROBS = 20
"""Likeliest tokens that are reported with a token, beside itself."""

MAX_LOGIT_BIASES = 1024
"""Token ids whose logits one request may change: OpenAI's clients send 300 at most."""

MAX_LOGIT_BIAS = 100.0
"""What a request may add to a logit, or take from it, at most: OpenAI's."""

MAX_PENALTY = 2.0
"""Of a frequency or presence penalty, or of a reward by it: OpenAI's."""

MAX_GRAMMAR = 2**17
"""Characters of a generation's grammar."""

MAX_LAYERS = 1024
"""Layers of a model, and so nodes of a route."""

MAX_REQUEST_ID = 64
"""Characters of a generation's id."""

MAX_NODE_ID = 64
"""Characters of an id that a node chooses for itself."""

MAX_MODEL_ID = 255
"""Characters of a model's id."""

MAX_REFUSAL_CODE = 64
"""Characters of the code by which a node or the relay refuses."""

INBOX_TTL = 3600
"""Seconds for which an inbox, a generation's events or a node's connection are kept in Redis when
nobody writes to them or reads them."""
