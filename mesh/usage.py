"""What a batch paid for, line by line, under one hash: the usage tree.

The contract keeps the root. Whoever has a line and its proof can show that the batch paid it, and
the operator cannot settle one thing and tell another. Leaves and tree are those of OpenZeppelin's
standard Merkle tree, which the contract's ``verifyUsage`` checks: leaves are hashed twice, so that
no inner node passes for one, and sorted, so that the order of the lines does not matter.
"""

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from eth_abi.abi import encode
from eth_utils.crypto import keccak

TYPES = ("bytes32", "address", "address", "uint256", "uint256")
"""Of the contract's struct ``Usage``, in its order."""


class Usage(NamedTuple):
    """What one request paid one provider. The platform's fee is a line as well, of no tokens."""

    request_id: bytes
    """32 bytes; see :func:`request_id_of`."""
    user: str
    provider: str
    tokens: int
    amount: int
    """Base units."""


class UsageTree:
    """The tree over a batch's lines: at least one, in any order.

    Raises:
        ValueError: there is no line.
    """

    def __init__(self, lines: Sequence[Usage]) -> None:
        if not lines:
            raise ValueError("A batch without lines has no usage tree.")
        leaves = [leaf(line) for line in lines]
        order = sorted(range(len(leaves)), key=leaves.__getitem__)
        # A complete binary tree in an array: the children of i are 2i + 1 and 2i + 2, the root is
        # 0, and the sorted leaves fill the end backwards.
        last = 2 * len(leaves) - 2
        self._place = {line: last - rank for rank, line in enumerate(order)}
        self._nodes = [b""] * (len(leaves) - 1) + [leaves[line] for line in reversed(order)]
        for parent in reversed(range(len(leaves) - 1)):
            self._nodes[parent] = _pair(self._nodes[2 * parent + 1], self._nodes[2 * parent + 2])

    @property
    def root(self) -> bytes:
        """The batch's usage root."""
        return self._nodes[0]

    def proof(self, index: int) -> list[bytes]:
        """The siblings on the way from the line at ``index`` to the root.

        Raises:
            IndexError: there is no such line.
        """
        if index not in self._place:
            raise IndexError(f"The batch has no line {index}.")
        place = self._place[index]
        siblings = []
        while place:
            siblings.append(self._nodes[place + 1 if place % 2 else place - 1])
            place = (place - 1) // 2
        return siblings


def root(lines: Sequence[Usage]) -> bytes:
    """The hash that commits to all lines, whatever their order.

    Raises:
        ValueError: there is no line.
    """
    return UsageTree(lines).root


def proof(lines: Sequence[Usage], index: int) -> list[bytes]:
    """That ``lines[index]`` is one of the lines. For several proofs make one :class:`UsageTree`.

    Raises:
        ValueError: there is no line.
        IndexError: there is no such line.
    """
    return UsageTree(lines).proof(index)


def verify(root: bytes, line: Usage, proof: Sequence[bytes]) -> bool:
    """Whether the line is under the root, as the contract would decide."""
    node = leaf(line)
    for sibling in proof:
        node = _pair(node, sibling)
    return node == root


def leaf(line: Usage) -> bytes:
    """The line's place in the tree: its ABI encoding, hashed twice."""
    return keccak(keccak(encode(TYPES, line)))


def request_id_of(session: uuid.UUID) -> bytes:
    """The id under which the chain knows a generation: its session's number, as 32 bytes."""
    return session.int.to_bytes(32, "big")


def _pair(one: bytes, other: bytes) -> bytes:
    return keccak(min(one, other) + max(one, other))
