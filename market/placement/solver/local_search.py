"""Many nodes over pipelines: like with like, and then whatever change of places helps."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product

from market.placement.solver.types import Candidate, ModelShape
from market.placement.solver.water_filling import level_of, water_fill

NEAR = 2
"""How far apart in the order of likeness groups may be whose nodes change places."""

GAIN = 1e-9
"""Share of the throughput below which a change is a rounding error."""


def full_step(node: Candidate) -> float:
    """Seconds of a step when a node is full: where those of a pipeline differ, the quicker wait."""
    return node.capacity / node.speed


def speed(node: Candidate) -> float:
    """The quickest first: equal nodes share layers without a rest."""
    return -node.speed


def group_alike(
    nodes: Sequence[Candidate],
    count: int,
    model: ModelShape,
    likeness: Callable[[Candidate], float],
) -> list[list[Candidate]]:
    """So many groups of nodes that are alike. Each gets its share of the layers that the nodes
    would serve if all pipelines were equally quick, and a node that can hold the edge while there
    are any left over."""
    speeds, depths = [n.speed for n in nodes], [min(n.capacity, model.layers) for n in nodes]
    level = level_of(speeds, depths, [0.0] * len(nodes), count * (model.layers + model.edge_work))
    layers = {
        node.node_id: min(depth, node.speed * level)
        for node, depth in zip(nodes, depths, strict=True)
    }
    share = sum(layers.values()) / count
    groups: list[list[Candidate]] = [[] for _ in range(count)]
    dealt_out = 0.0
    for node in sorted(nodes, key=lambda node: (likeness(node), node.node_id)):
        middle = dealt_out + layers[node.node_id] / 2
        groups[min(count - 1, int(middle / share))].append(node)
        dealt_out += layers[node.node_id]
    _share_edges(groups, layers)
    return groups


def _share_edges(groups: list[list[Candidate]], layers: dict[str, float]) -> None:
    """A group without an edge's node gets one from the group with the most, for the node of its
    own that serves most nearly as many layers."""
    holders = [[node for node in group if node.edge_capacity > 0] for group in groups]
    for number, group in enumerate(groups):
        if holders[number]:
            continue
        rich = max(range(len(groups)), key=lambda other: len(holders[other]))
        if len(holders[rich]) < 2:
            return
        given = max(holders[rich], key=lambda node: node.edge_capacity)
        holders[rich].remove(given)
        groups[rich].remove(given)
        if group:
            back = min(group, key=lambda n: abs(layers[n.node_id] - layers[given.node_id]))
            group.remove(back)
            groups[rich].append(back)
        group.append(given)
        holders[number].append(given)


class Groups:
    """Nodes by pipeline, the idle last, and what each pipeline makes."""

    def __init__(self, groups: Sequence[Sequence[Candidate]], model: ModelShape) -> None:
        self._model = model
        self.members = [*map(list, groups), []]
        self._rates = [self._rate(group) for group in self.members]

    @property
    def throughput(self) -> float:
        """Steps a second of all pipelines together."""
        return sum(self._rates)

    def improve(self, budget: int) -> int:
        """Let nodes change places while that helps, or until the budget is spent; what is left of
        it. It counts the nodes of all the pipelines that are weighed.

        One node goes over to another group, or two change places; always the best of these for two
        groups. The result depends on nothing but the start.
        """
        better = True
        while better:
            better = False
            for one, other in self._pairs():
                found = True
                while found:
                    budget -= self._cost(one, other)
                    if budget < 0:
                        return 0
                    found = self._change_best(one, other)
                    better = better or found
        return budget

    def _pairs(self) -> Iterator[tuple[int, int]]:
        for one, other in combinations(range(len(self.members)), 2):
            if other - one <= NEAR or other == len(self.members) - 1:
                yield one, other

    def _cost(self, one: int, other: int) -> int:
        here, there = len(self.members[one]), len(self.members[other])
        return (here + 1) * (there + 1) * (here + there)

    def _change_best(self, one: int, other: int) -> bool:
        """Make the change between two groups that helps most, if one does."""
        best = (self._rates[one] + self._rates[other]) * (1 + GAIN)
        found = None
        for leaves, comes in product((None, *self.members[one]), (None, *self.members[other])):
            changed = (
                _exchanged(self.members[one], leaves, comes),
                _exchanged(self.members[other], comes, leaves),
            )
            rates = (self._rate(changed[0]), self._rate(changed[1]))
            if sum(rates) > best:
                best, found = sum(rates), (changed, rates)
        if found is None:
            return False
        for number, group, rate in zip((one, other), *found, strict=True):
            self.members[number], self._rates[number] = group, rate
        return True

    def _rate(self, group: Sequence[Candidate]) -> float:
        filling = water_fill(group, self._model.layers, self._model.edge_work)
        return filling.rate if filling else 0.0


def _exchanged(
    group: Sequence[Candidate], leaves: Candidate | None, comes: Candidate | None
) -> list[Candidate]:
    rest = [node for node in group if node is not leaves]
    return rest if comes is None else [*rest, comes]
