"""What a batch paid for, line by line, under one hash: the usage tree.

The contract keeps the root. Whoever has a line and its proof can show that the batch paid it, and
the operator cannot settle one thing and claim another. Leaves and tree are those of OpenZeppelin's
standard Merkle tree, which the contract's ``verifyUsage`` checks: leaves are hashed twice, so that
no inner node passes for one, and sorted, so that the order of the lines does not matter.
"""

import uuid
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from eth_abi.abi import encode
from eth_utils.crypto import keccak

USAGE_TYPES = ("bytes32", "address", "address", "uint256", "uint256")
"""ABI types of the fields of the contract's struct ``Usage``."""

HASH_BYTES = 32
"""Size of a node."""


class UsageLine(NamedTuple):
    """One line: what one request paid one provider. The platform's fee is a line of no tokens."""

    request_id: bytes
    """32 bytes; see :func:`request_id_of`."""
    user: str
    provider: str
    tokens: int
    amount: int
    """Base units."""


class UsageTree:
    """The tree over a batch's lines, whatever their order.

    A complete binary tree in one string of bytes: the root comes first, the children of node i are
    2i + 1 and 2i + 2, and the sorted leaves fill the end backwards.
    """

    def __init__(self, nodes: bytes) -> None:
        """``nodes`` are those of a tree that :meth:`from_lines` made."""
        self.nodes = nodes

    @classmethod
    def from_lines(cls, lines: Iterable[UsageLine]) -> "UsageTree":
        """The tree over these lines.

        Raises:
            ValueError: there is no line.
        """
        leaves = sorted(map(leaf_hash, lines), reverse=True)
        if not leaves:
            raise ValueError("A batch without lines has no usage tree.")
        nodes = [b""] * (len(leaves) - 1) + leaves
        for parent in reversed(range(len(leaves) - 1)):
            nodes[parent] = _pair(nodes[2 * parent + 1], nodes[2 * parent + 2])
        return cls(b"".join(nodes))

    def __len__(self) -> int:
        """How many lines the tree has."""
        return (len(self.nodes) // HASH_BYTES + 1) // 2

    @property
    def root(self) -> bytes:
        """The batch's usage root."""
        return self._node(0)

    def proof(self, line: UsageLine) -> list[bytes]:
        """The siblings on the way from a line to the root.

        Raises:
            LookupError: the batch has no such line.
        """
        rising = range(2 * len(self) - 2, len(self) - 2, -1)
        wanted = leaf_hash(line)
        rank = bisect_left(rising, wanted, key=self._node)
        if rank == len(rising) or self._node(rising[rank]) != wanted:
            raise LookupError("The batch has no such line.")
        node = rising[rank]
        siblings = []
        while node:
            siblings.append(self._node(node + 1 if node % 2 else node - 1))
            node = (node - 1) // 2
        return siblings

    def _node(self, index: int) -> bytes:
        return self.nodes[index * HASH_BYTES : (index + 1) * HASH_BYTES]


def verify_proof(root: bytes, line: UsageLine, proof: Sequence[bytes]) -> bool:
    """Whether the line is under the root, as the contract would decide."""
    node = leaf_hash(line)
    for sibling in proof:
        node = _pair(node, sibling)
    return node == root


def leaf_hash(line: UsageLine) -> bytes:
    """The tree's leaf for a line: its ABI encoding, hashed twice."""
    return keccak(keccak(encode(USAGE_TYPES, line)))


def request_id_of(job: uuid.UUID) -> bytes:
    """A generation's id on the chain: its UUID as 32 bytes."""
    return job.int.to_bytes(32, "big")


def _pair(one: bytes, other: bytes) -> bytes:
    return keccak(min(one, other) + max(one, other))
