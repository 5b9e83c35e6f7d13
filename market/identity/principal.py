"""Who calls: a wallet, one of its API keys, one of its machines, or a node."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from market.identity.errors import ModelNotAllowed, ScopeMissing

PrincipalKind = Literal["user", "key", "node", "machine"]
"""A wallet that logged in; an API key of a wallet; a node; a machine that may register nodes for a
wallet."""


class Scope(StrEnum):
    """What a caller may do."""

    GENERATE = "generate"
    """Ask for generations."""
    READ_JOBS = "read_jobs"
    """Read the wallet's jobs. Who may also generate may cancel them."""
    BILLING = "billing"
    """Read the wallet's balance, usage, earnings and receipts."""
    KEYS = "keys"
    """Make, list, change and revoke the wallet's API keys."""
    MACHINES = "machines"
    """See and revoke the wallet's machines."""
    NODES = "nodes"
    """See the state of the wallet's nodes."""
    REGISTER = "register"
    """Register nodes for the wallet."""
    SERVE = "serve"
    """Send heartbeats, and pull work from the relay."""
    WEIGHTS = "weights"
    """Fetch the weights of models."""


KEY_SCOPES = frozenset({Scope.GENERATE, Scope.READ_JOBS, Scope.BILLING})
"""Those that an API key may have. It makes no keys, lets no machine in and registers no node."""

SCOPES: dict[PrincipalKind, frozenset[Scope]] = {
    "user": KEY_SCOPES | {Scope.KEYS, Scope.MACHINES, Scope.NODES},
    "machine": frozenset({Scope.REGISTER, Scope.WEIGHTS, Scope.NODES}),
    "node": frozenset({Scope.SERVE, Scope.WEIGHTS, Scope.NODES}),
}
"""Those of a token. An API key has its own, which its row names."""


@dataclass(frozen=True, slots=True)
class Principal:
    """
    Attributes:
        subject: The wallet; of a node, its id.
        machine_id: Of a machine.
        registration: Of a node: which of its registrations gave it its token.
        key_id: Of an API key; none for any other caller.
        models: Models that an API key may use; none for all.
        generations_per_minute: An API key's own rate limit; none if it has none.
    """

    kind: PrincipalKind
    subject: str
    scopes: frozenset[Scope]
    machine_id: str = ""
    registration: int = 0
    key_id: str | None = None
    models: frozenset[str] | None = None
    generations_per_minute: int | None = None

    @property
    def wallet(self) -> str:
        """In lower case; empty for a node, which speaks for itself only."""
        return "" if self.kind == "node" else self.subject.lower()

    def require(self, *scopes: Scope) -> None:
        """
        Raises:
            ScopeMissing: the caller may not do this.
        """
        for scope in scopes:
            if scope not in self.scopes:
                raise ScopeMissing(f"This needs the scope {scope}, which {self._named()} lacks.")

    def require_model(self, model_id: str) -> None:
        """
        Raises:
            ModelNotAllowed: the caller is an API key for other models.
        """
        if self.models is not None and model_id not in self.models:
            raise ModelNotAllowed(
                f"This API key is for other models: {', '.join(sorted(self.models))}."
            )

    def may_see(self, node_id: str, owner: str) -> bool:
        """Whether the caller is a node itself, or its owner's wallet, or a machine of that."""
        return self.subject == node_id if self.kind == "node" else self.wallet == owner

    def may_revoke(self, machine_id: str) -> bool:
        """Whether the caller is a user, who may revoke his machines, or the machine itself."""
        return Scope.MACHINES in self.scopes or (
            self.kind == "machine" and self.machine_id == machine_id
        )

    def _named(self) -> str:
        return "this API key" if self.kind == "key" else f"a {self.kind}'s token"
