"""Settings of generations: leases, stalls, deadlines."""

from pydantic import BaseModel, Field, SecretStr


class GenerationSettings(BaseModel):
    prompt_key: SecretStr = SecretStr("")
    """Secrets of 32 bytes in base64, separated by commas, from which the keys are derived under
    which prompts rest in Postgres until their job ends, and answers for `stream_ttl` after that.
    The first encrypts, the others decrypt."""
    lease: float = 6.0
    """Seconds a supervisor's lease lasts; a dead worker's job is free after that."""
    sweep_interval: int = 2
    """Seconds between looks for jobs whose lease has run out."""
    stall: float = 10.0
    """Seconds without a new token after which a route's nodes are asked whether they live."""
    ping: float = 5.0
    """Seconds they have to answer; after that, those without a keep-alive count as gone, and the
    others as in a forward pass, between two of which nodes answer."""
    forward: float = Field(30.0, gt=0)
    """Seconds that one forward pass may take at most: how long a node with a keep-alive may not
    answer."""
    prefill_rate: float = Field(20.0, gt=0)
    """Positions a second that a route computes of a prompt at the least, beside other generations.
    With ``stall`` and ``forward`` it bounds how long nodes may say that they advance without a
    token."""
    max_failures: int = 4
    """Routes that may fail one generation before it fails itself."""
    max_rounds: int = Field(12, ge=1)
    """Routes in a row without a new token between them, whatever the reason, after which a
    generation fails."""
    default_max_tokens: int = Field(4096, ge=1)
    """Tokens of an answer whose request does not say how many, if there is room and time for them:
    as many are held on the user's balance."""
    deadline: float = Field(900.0, gt=0, le=3600)
    """Seconds after which a generation ends in failure, whatever happens, and its user pays for
    what was delivered. Until then a job waits for nodes that cover its layers and have room for
    it."""
    deadline_slack: float = Field(1.5, ge=1)
    """Multiples of `deadline`: a request is refused whose answer would take longer at the measured
    speed. Above 1, since that speed is of nodes under load, and draft tokens may save steps."""
    max_start_wait: float = Field(20.0, gt=0)
    """Seconds that a new job may be expected to wait for its start; beyond that it is refused,
    before anything is held."""
    jobs_per_route: int = Field(32, ge=1)
    """Generations that one route computes at once without any of them waiting for the others: what
    a forward pass takes for little more than one. As many are admitted for each route whatever was
    measured."""
    stream_ttl: int = 3600
    """Seconds for which a finished generation's tokens can be read."""
    supervisors_per_worker: int = 200
    """Generations with a route that one worker supervises at once. Those that wait for a route
    have no supervisor."""
