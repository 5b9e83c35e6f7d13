"""The chain as the platform uses it: endpoints, signers, and the escrow contract.

::

    rpc           several JSON-RPC endpoints as one: failover, staleness
    network       what is the same for every contract: nonces, fees, sending, receipts, finality
    transactions  fees, and signed bytes
    signers       who signs: an encrypted keystore, or AWS KMS
    escrow        the InferenceEscrow contract
    reverts       what its errors mean
    events        what happened to it, across reorganizations

All amounts are integer base units of FAR, all fees integer wei.
"""

from mesh.chain.artifacts import artifact
from mesh.chain.escrow import Batch, Escrow
from mesh.chain.network import Network, Receipt
from mesh.chain.rpc import Rpc
from mesh.chain.signers import LocalSigner, Signature, Signer, open_signer, unlock
from mesh.chain.transactions import Fees, SignedTransaction, sign_transaction

__all__ = [
    "Batch",
    "Escrow",
    "Fees",
    "LocalSigner",
    "Network",
    "Receipt",
    "Rpc",
    "Signature",
    "SignedTransaction",
    "Signer",
    "artifact",
    "open_signer",
    "sign_transaction",
    "unlock",
]
