"""Errors of nodes: unknown, id taken, registered again elsewhere, wallet not admitted."""

from market.errors import Forbidden
from mesh.errors import MeshError, NotFound


class NodeNotFound(NotFound):
    code = "node_not_found"


class NodeIdTaken(MeshError):
    code = "node_id_taken"
    status = 409
    title = "Node id taken"
    retry_useless = True


class NodeSuperseded(MeshError):
    code = "node_superseded"
    status = 409
    title = "Registered again elsewhere"
    retry_useless = True


class WalletNotAdmitted(Forbidden):
    code = "wallet_not_admitted"
    title = "Wallet not admitted"
