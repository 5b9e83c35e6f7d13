"""The usage tree: every line can be proved, and nothing else."""

import uuid
from random import Random

import pytest
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

from market.settlement import usage_tree
from market.settlement.usage_tree import UsageLine, UsageTree

UINT256 = 2**256 - 1

addresses = st.binary(min_size=20, max_size=20).map(lambda raw: "0x" + raw.hex())
lines = st.builds(
    UsageLine,
    request_id=st.uuids().map(usage_tree.request_id_of),
    user=addresses,
    provider=addresses,
    tokens=st.integers(0, UINT256),
    amount=st.integers(0, UINT256),
)
batches = st.lists(lines, min_size=1, max_size=40)

LINE = UsageLine(
    usage_tree.request_id_of(uuid.UUID(int=7)),
    "0x" + "aa" * 20,
    "0x" + "bb" * 20,
    tokens=3,
    amount=5,
)


@given(batches)
def test_every_line_has_a_proof(batch: list[UsageLine]) -> None:
    stored = UsageTree.from_lines(batch).nodes
    tree = UsageTree(stored)
    for line in batch:
        assert usage_tree.verify_proof(tree.root, line, tree.proof(line))


@given(batches, lines, st.data())
def test_no_line_that_is_not_there_has_one(
    batch: list[UsageLine], other: UsageLine, data: st.DataObject
) -> None:
    """Neither another line nor one with a single field altered, by any line's proof."""
    line = data.draw(st.sampled_from(batch))
    field = data.draw(st.sampled_from(UsageLine._fields))
    altered = line._replace(**{field: getattr(other, field)})
    tree = UsageTree.from_lines(batch)
    proof = tree.proof(line)
    for forged in {other, altered}.difference(batch):
        assert not usage_tree.verify_proof(tree.root, forged, proof)
        with pytest.raises(LookupError):
            tree.proof(forged)


@given(batches, st.randoms())
def test_the_order_of_the_lines_does_not_matter(batch: list[UsageLine], random: Random) -> None:
    shuffled = list(batch)
    random.shuffle(shuffled)
    assert UsageTree.from_lines(shuffled).nodes == UsageTree.from_lines(batch).nodes


def test_a_single_line_is_the_root() -> None:
    tree = UsageTree.from_lines([LINE])
    assert tree.root == usage_tree.leaf_hash(LINE)
    assert tree.proof(LINE) == []
    assert usage_tree.verify_proof(usage_tree.leaf_hash(LINE), LINE, [])


def test_a_leaf_is_the_double_hash_of_five_words() -> None:
    words = (7, int("aa" * 20, 16), int("bb" * 20, 16), 3, 5)
    encoded = b"".join(word.to_bytes(32, "big") for word in words)
    assert usage_tree.leaf_hash(LINE) == keccak(keccak(encoded))


def test_three_lines_pair_as_in_openzeppelins_tree() -> None:
    """The two lowest leaves are hashed first, and the highest joins at the root."""
    batch = [LINE._replace(amount=amount) for amount in (1, 2, 3)]
    low, middle, high = sorted(usage_tree.leaf_hash(line) for line in batch)
    inner = keccak(low + middle)
    assert UsageTree.from_lines(batch).root == keccak(min(high, inner) + max(high, inner))


def test_an_inner_node_is_no_line() -> None:
    """A proof cut short, as of a tree whose leaves and nodes are hashed alike."""
    batch = [LINE._replace(amount=amount) for amount in range(4)]
    tree = UsageTree.from_lines(batch)
    assert not usage_tree.verify_proof(tree.root, batch[0], tree.proof(batch[0])[1:])


def test_a_batch_has_lines() -> None:
    with pytest.raises(ValueError, match="without lines"):
        UsageTree.from_lines([])
