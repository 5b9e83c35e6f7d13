"""Who calls: a wallet, one of its machines, or a node."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from market.errors import Forbidden

PrincipalKind = Literal["user", "node", "machine"]
"""A wallet that logged in; a node; a machine that may register nodes for a wallet."""


class Scope(StrEnum):
    """What a caller may do."""

    INFERENCE = "inference"
    """Ask for generations, read and cancel them."""
    BILLING = "billing"
    """Read the wallet's balance, usage, earnings and receipts."""
    MACHINES = "machines"
    """See the wallet's machines."""
    REGISTER = "register"
    """Register nodes for the wallet."""
    SERVE = "serve"
    """Send heartbeats, and pull work from the relay."""
    WEIGHTS = "weights"
    """Fetch the weights of models."""


SCOPES: dict[PrincipalKind, frozenset[Scope]] = {
    "user": frozenset({Scope.INFERENCE, Scope.BILLING, Scope.MACHINES}),
    "machine": frozenset({Scope.REGISTER, Scope.WEIGHTS}),
    "node": frozenset({Scope.SERVE, Scope.WEIGHTS}),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """
    Attributes:
        subject: The wallet; of a node, its id.
        machine_id: Of a machine.
        registration: Of a node: which of its registrations gave it its token.
    """

    kind: PrincipalKind
    subject: str
    scopes: frozenset[Scope]
    machine_id: str = ""
    registration: int = 0

    @property
    def wallet(self) -> str:
        """In lower case; empty for a node, which speaks for itself only."""
        return "" if self.kind == "node" else self.subject.lower()

    def require(self, scope: Scope) -> None:
        """
        Raises:
            Forbidden: the caller may not do this.
        """
        if scope not in self.scopes:
            raise Forbidden(f"This needs the scope {scope}, which a {self.kind}'s token lacks.")

    def may_see(self, node_id: str, owner: str) -> bool:
        """Whether the caller is a node itself, or its owner's wallet, or a machine of that."""
        return self.subject == node_id if self.kind == "node" else self.wallet == owner

    def may_revoke(self, machine_id: str) -> bool:
        """Whether the caller is a user, who may revoke his machines, or the machine itself."""
        return self.kind == "user" or (self.kind == "machine" and self.machine_id == machine_id)
