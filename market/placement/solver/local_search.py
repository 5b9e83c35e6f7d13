"""Many nodes over pipelines: nodes that are alike together, and then exchanges of nodes while they
raise the throughput."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product

from market.placement.solver.types import Candidate, ModelShape
from market.placement.solver.water_filling import water_fill, water_level

MAX_DISTANCE = 2
"""How far apart two groups may be, in the order in which they were made, to exchange nodes."""

MIN_GAIN = 1e-9
"""Share of the throughput below which a gain is a rounding error."""


def full_step(node: Candidate) -> float:
    """Seconds of a step of a node that serves all the layers that it holds: in a pipeline of nodes
    that differ in that, the quicker wait for the slower."""
    return node.capacity / node.speed


def quickest_first(node: Candidate) -> float:
    """Nodes of equal speed divide layers evenly."""
    return -node.speed


def group_alike(
    nodes: Sequence[Candidate],
    count: int,
    model: ModelShape,
    sort_key: Callable[[Candidate], float],
) -> list[list[Candidate]]:
    """``count`` groups of nodes that are alike, which is: neighbours by ``sort_key``. The groups'
    nodes would serve equally many layers if all pipelines were equally quick, and each group gets a
    node that can hold the edge if there is one to spare."""
    speeds, capacities = [n.speed for n in nodes], [min(n.capacity, model.layers) for n in nodes]
    level = water_level(
        speeds, capacities, [0.0] * len(nodes), count * (model.layers + model.edge_work)
    )
    layers = {
        node.node_id: min(capacity, node.speed * level)
        for node, capacity in zip(nodes, capacities, strict=True)
    }
    share = sum(layers.values()) / count
    groups: list[list[Candidate]] = [[] for _ in range(count)]
    assigned = 0.0
    for node in sorted(nodes, key=lambda node: (sort_key(node), node.node_id)):
        middle = assigned + layers[node.node_id] / 2
        groups[min(count - 1, int(middle / share))].append(node)
        assigned += layers[node.node_id]
    _share_edges(groups, layers)
    return groups


def _share_edges(groups: list[list[Candidate]], layers: dict[str, float]) -> None:
    """A group without a node that can hold the edge gets one from the group with the most of them,
    in exchange for the node of its own that serves most nearly as many layers."""
    holders = [[node for node in group if node.edge_capacity > 0] for group in groups]
    for number, group in enumerate(groups):
        if holders[number]:
            continue
        donor = max(range(len(groups)), key=lambda other: len(holders[other]))
        if len(holders[donor]) < 2:
            return
        given = max(holders[donor], key=lambda node: node.edge_capacity)
        holders[donor].remove(given)
        groups[donor].remove(given)
        if group:
            back = min(group, key=lambda n: abs(layers[n.node_id] - layers[given.node_id]))
            group.remove(back)
            groups[donor].append(back)
        group.append(given)
        holders[number].append(given)


class Groups:
    """Nodes by pipeline, the idle ones last, and the rate of each pipeline."""

    def __init__(self, groups: Sequence[Sequence[Candidate]], model: ModelShape) -> None:
        self._model = model
        self.members = [*map(list, groups), []]
        self._rates = [self._rate(group) for group in self.members]

    @property
    def throughput(self) -> float:
        """Steps a second of all pipelines together."""
        return sum(self._rates)

    def improve(self, budget: int) -> int:
        """Exchange nodes while that raises the throughput, or until the budget is spent.

        One node goes over to another group, or two nodes change places: for two groups always the
        exchange that gains most. The result depends on nothing but the groups at the start.

        Args:
            budget: Nodes of all the pipelines that may be evaluated.

        Returns:
            What is left of the budget.
        """
        improved = True
        while improved:
            improved = False
            for one, other in self._pairs():
                found = True
                while found:
                    budget -= self._cost(one, other)
                    if budget < 0:
                        return 0
                    found = self._exchange_best(one, other)
                    improved = improved or found
        return budget

    def _pairs(self) -> Iterator[tuple[int, int]]:
        for one, other in combinations(range(len(self.members)), 2):
            if other - one <= MAX_DISTANCE or other == len(self.members) - 1:
                yield one, other

    def _cost(self, one: int, other: int) -> int:
        size, other_size = len(self.members[one]), len(self.members[other])
        return (size + 1) * (other_size + 1) * (size + other_size)

    def _exchange_best(self, one: int, other: int) -> bool:
        """Make the exchange between two groups that gains most; false if none gains anything."""
        best = (self._rates[one] + self._rates[other]) * (1 + MIN_GAIN)
        found = None
        for leaving, coming in product((None, *self.members[one]), (None, *self.members[other])):
            changed = (
                _exchanged(self.members[one], leaving, coming),
                _exchanged(self.members[other], coming, leaving),
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
    group: Sequence[Candidate], leaving: Candidate | None, coming: Candidate | None
) -> list[Candidate]:
    rest = [node for node in group if node is not leaving]
    return rest if coming is None else [*rest, coming]
