"""One exception tree. Each error has a stable code, an HTTP status and a sentence for its reader.

::

    MeshError
    ├── InvalidRequest           422  <field>_<reason>: a field of the request is wrong
    │   ├── MalformedJson        400
    │   ├── BodyTooLarge         413
    │   ├── MethodNotAllowed     405
    │   ├── PreflightRefused     400  a page of another origin may not ask this
    │   ├── TransferTooSlow      408  a body, or the reading of an answer, makes no headway
    │   ├── ContextExceeded      422  prompt and max_tokens do not fit the model's context
    │   ├── KvCapacityExceeded   422  nor any node's KV cache, however empty
    │   └── DeadlineUnreachable  422  it could not end in time at the measured speed
    ├── NotAuthenticated         401
    │   ├── TokenMissing, TokenInvalid, TokenExpired
    │   ├── NonceUnknown              never handed out, used already, or too old
    │   ├── LoginMessageInvalid, LoginMessageExpired, DomainMismatch
    │   ├── SignatureMismatch         signed by another wallet
    │   ├── SignatureExpired          what was signed has expired, or expires too late
    │   ├── MachineRevoked            the wallet has taken this machine's token back
    │   └── ApiKeyUnknown, ApiKeyRevoked, ApiKeyExpired
    ├── DeviceLoginError         400  what a machine that polls is told (RFC 8628)
    │   └── AuthorizationPending, SlowDown, CodeExpired, AccessDenied
    ├── Forbidden                403
    │   ├── ScopeMissing              the caller's token or API key is not for this
    │   ├── ModelNotAllowed           the API key is for other models
    │   └── WalletNotAdmitted         the operator has not listed the node's wallet
    ├── InsufficientBalance      402
    ├── SpendingCapExceeded      402  the user has not signed for so much
    ├── KeyLimitReached          402  the API key's limit a day, a month or in all leaves too little
    ├── NotFound                 404  ModelNotFound, JobNotFound, NodeNotFound, MachineNotFound,
    │                                 ApiKeyNotFound, UserCodeUnknown, WeightsNotPublished
    ├── TooManyApiKeys           409  the wallet has as many as it may have
    ├── IdempotencyConflict      409  the key was used for a different request
    ├── ReceiptNotReady          409  the job has not ended
    ├── NodeIdTaken              409  the name belongs to another wallet's node
    ├── NodeSuperseded           409  the node has registered again: another process is it now
    ├── StreamExpired            410
    ├── UsageUnproven            500  the lines that we have are not those of the batch's root
    ├── RateLimited              429  carries Retry-After
    │   └── TooManyInFlight           jobs of the wallet that have not ended
    ├── Unavailable              503  carries Retry-After
    │   ├── NoRoute                   some layer of the model has no healthy node
    │   ├── TransfersFull             a process holds as many unfinished bodies as it may
    │   ├── Overloaded                a new job would wait too long for its start
    │   └── ChainIndexBehind          what happened on the chain lately is not known
    ├── GenerationFailed         502  the mesh could not finish; only what was delivered is charged
    ├── WireError                400  a message between nodes breaks the protocol
    ├── RecordRefused            400  a record in the DHT is not its owner's, or breaks a rule
    ├── UnsupportedModel         422  no engine support for this family
    ├── WeightsError             502  a span's weights cannot be had
    │   ├── WeightsUnreachable   503  no answer from where they lie
    │   ├── WeightsMissing       404  a file is not there
    │   ├── WeightsRefused            what came is not what was asked for, or not a checkpoint
    │   ├── WeightsChanged            a file changed while it was fetched
    │   ├── WeightsCorrupt            bytes have another hash than the manifest says
    │   └── DiskFull             507  no room for the span
    └── ChainError               502  the chain refused or did not answer
        ├── ChainUnreachable     503  no RPC endpoint answers, or none is fresh
        ├── AnswerTooLarge            an RPC endpoint answers with more than we take in
        ├── ChainReorg                a block that counted is not on the chain any more
        ├── ChainMoved                the chain moved while it was read, or the node is behind
        ├── SettlementMismatch        totals differ that have to be equal
        ├── SettlementRefused         the contract would revert a batch
        └── SettlementPaused          until an operator looks into it
"""


class MeshError(Exception):
    """Root of the tree; never raised itself.

    ``retry_useless``: the same request is refused again for as long as nobody changes something,
    although clients retry answers with this status.
    """

    code = "internal_error"
    status = 500
    title = "Internal error"
    retry_useless = False

    def __init__(self, detail: str, *, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after
        """Seconds after which the same request may succeed."""

    def problem(self) -> dict[str, object]:
        """The error as an RFC 9457 problem document."""
        return {
            "type": f"https://farlabs.ai/problems/{self.code}",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }


class NotFound(MeshError):
    code = "not_found"
    status = 404
    title = "Not found"


class WeightsNotPublished(NotFound):
    """``repository``: of a hub, which has the weights instead."""

    code = "weights_not_published"

    def __init__(self, detail: str, *, repository: str) -> None:
        super().__init__(detail)
        self.repository = repository

    def problem(self) -> dict[str, object]:
        return super().problem() | {"repository": self.repository}


class WireError(MeshError):
    code = "wire_error"
    status = 400
    title = "Protocol violation"


class RecordRefused(MeshError):
    """``reason``: size, format, key, signature, credential, expiry or span."""

    code = "record_refused"
    status = 400
    title = "Record refused"

    def __init__(self, detail: str, *, reason: str) -> None:
        super().__init__(detail)
        self.reason = reason


class UnsupportedModel(MeshError):
    code = "unsupported_model"
    status = 422
    title = "Unsupported model"


class WeightsError(MeshError):
    code = "weights_error"
    status = 502
    title = "Weights cannot be had"


class WeightsUnreachable(WeightsError):
    code = "weights_unreachable"
    status = 503


class WeightsMissing(WeightsError):
    code = "weights_missing"
    status = 404


class WeightsRefused(WeightsError):
    code = "weights_refused"


class WeightsChanged(WeightsError):
    code = "weights_changed"


class WeightsCorrupt(WeightsError):
    code = "weights_corrupt"


class DiskFull(WeightsError):
    code = "disk_full"
    status = 507
