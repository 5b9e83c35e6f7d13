"""A generation continues on new nodes, token for token, and only these compute again."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mesh.wire import PrefixCached, Resume, SamplingParams, Token
from node_runner.engine.engine import Engine
from node_runner.engine.replay_buffer import ReplayBuffer
from node_runner.engine.scheduler import PREFILL_CHUNK
from node_runner.outputs import EngineOutput
from tests.conftest import DEMO_MODEL
from tests.support.engine.pipeline import GREEDY, KV_BUDGET, Pipeline
from tests.support.engine.sampling import ALL_PARAMS
from tests.support.some_slow import some_slow

CUTS = [0, 2, 4, 6]
PROMPT = [0, *range(20, 220)]
TOKENS = 24
DEAD = [{0}, {1}, {2}, {0, 1}, {1, 2}, {0, 2}, {0, 1, 2}, set()]
"""Stages of the nodes that die."""

SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=7, stop=[])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spans")


@pytest.fixture(
    scope="module", params=[GREEDY, SAMPLED, ALL_PARAMS], ids=["greedy", "sampled", "all"]
)
def sampling(request: pytest.FixtureRequest) -> SamplingParams:
    chosen: SamplingParams = request.param
    return chosen


@pytest.fixture(scope="module")
def undisturbed(cache: Path, sampling: SamplingParams) -> list[int]:
    pipeline = Pipeline.cut(DEMO_MODEL, CUTS, cache)
    pipeline.open("job", PROMPT, max_tokens=TOKENS, sampling=sampling)
    pipeline.run()
    return pipeline.tokens("job")


@dataclass
class Mesh(Pipeline):
    """A pipeline in which nodes die."""

    def die(self, *stages: int) -> None:
        """Put new nodes in the place of these, and lose all messages that are on their way."""
        for stage in stages:
            old = self.engines[stage]
            self.engines[stage] = Engine(
                old.span, node_id=str(stage), kv_budget_bytes=KV_BUDGET, speculate=False
            )
        self.inboxes = [[] for _ in self.engines]

    def run_until(self, count: int) -> None:
        """Until ``count`` tokens are written."""
        while len(self.tokens("job")) < count:
            self.step_all()

    def run(self) -> None:
        """Until the job has ended or is refused; `positions` are those computed meanwhile."""
        self.positions = [0] * len(self.engines)
        while "job" not in self.ended and not self.refused:
            self.step_all()

    def take(self, output: EngineOutput) -> None:
        """Tokens that readers have are not written again."""
        if isinstance(output, Token) and output.index < len(self.tokens("job")):
            return
        super().take(output)

    def resume(self, sampling: SamplingParams, dead: set[int]) -> None:
        """Open a new epoch as the supervisor does: nodes that live keep their KV caches."""
        generated = self.tokens("job")
        known = len(PROMPT) + len(generated) - 1
        last = len(self.engines) - 1
        resumes = {
            stage: Resume(
                keep=stage not in dead, replay=stage < last and stage + 1 in dead, known=known
            )
            for stage in range(len(self.engines))
        }
        self.open(
            "job",
            PROMPT,
            max_tokens=TOKENS,
            sampling=sampling,
            epoch=2,
            generated=generated,
            resumes=resumes,
        )


@pytest.mark.parametrize("dead", some_slow(DEAD, quick=[{0}, {1}, {2}, {0, 1, 2}]), ids=str)
@pytest.mark.parametrize("written", some_slow([1, 11], quick=[11]))
def test_only_new_nodes_compute_again(
    cache: Path, sampling: SamplingParams, undisturbed: list[int], dead: set[int], written: int
) -> None:
    mesh = Mesh.cut(DEMO_MODEL, CUTS, cache, speculate=False)
    mesh.open("job", PROMPT, max_tokens=TOKENS, sampling=sampling)
    mesh.run_until(written)
    mesh.die(*dead)
    so_far = len(mesh.tokens("job"))
    mesh.resume(sampling, dead)
    mesh.run()
    assert mesh.tokens("job") == undisturbed
    assert mesh.refused == []
    # A new edge computes the prompt in chunks, of which the last passes through all nodes.
    again = PREFILL_CHUNK if 0 in dead else 0
    for stage, positions in enumerate(mesh.positions):
        if stage in dead:
            assert positions >= len(PROMPT)
        else:
            assert positions <= again + TOKENS - so_far


def test_a_node_without_the_kv_cache_refuses(cache: Path) -> None:
    mesh = Mesh.cut(DEMO_MODEL, CUTS, cache)
    mesh.open("job", PROMPT, max_tokens=TOKENS)
    mesh.run_until(3)
    mesh.die(1)
    mesh.resume(GREEDY, dead=set())  # the supervisor thinks that it lives
    mesh.run()
    assert [(refused.node_id, refused.code) for refused in mesh.refused] == [("1", "forgotten")]


def test_a_node_that_did_not_keep_what_it_sent_refuses(cache: Path) -> None:
    mesh = Mesh.cut(DEMO_MODEL, CUTS, cache)
    mesh.open("job", PROMPT, max_tokens=TOKENS)
    mesh.run_until(3)
    mesh.engines[1].generations["job"].replay_buffer.clear()
    mesh.die(2)
    mesh.resume(GREEDY, dead={2})
    mesh.run()
    assert [(refused.node_id, refused.code) for refused in mesh.refused] == [("1", "no_replay")]


def test_an_edge_that_did_not_keep_what_it_sent_computes_it_again(
    cache: Path, undisturbed: list[int], sampling: SamplingParams
) -> None:
    mesh = Mesh.cut(DEMO_MODEL, CUTS, cache)
    mesh.open("job", PROMPT, max_tokens=TOKENS, sampling=sampling)
    mesh.run_until(3)
    mesh.engines[0].generations["job"].replay_buffer.clear()
    mesh.die(1)
    mesh.resume(sampling, dead={1})
    mesh.run()
    assert mesh.tokens("job") == undisturbed


def test_a_second_death_is_survived_as_well(
    cache: Path, undisturbed: list[int], sampling: SamplingParams
) -> None:
    """What a new node sent on while its KV cache was rebuilt is replayed to the next new node."""
    mesh = Mesh.cut(DEMO_MODEL, CUTS, cache)
    mesh.open("job", PROMPT, max_tokens=TOKENS, sampling=sampling)
    mesh.run_until(2)
    for epoch, stage in ((2, 1), (3, 2), (4, 0)):
        mesh.die(stage)
        generated = mesh.tokens("job")
        mesh.open(
            "job",
            PROMPT,
            max_tokens=TOKENS,
            sampling=sampling,
            epoch=epoch,
            generated=generated,
            resumes={
                other: Resume(other != stage, other + 1 == stage, len(PROMPT) + len(generated) - 1)
                for other in range(3)
            },
        )
        mesh.run_until(min(len(generated) + 3, TOKENS))
    mesh.run()
    assert mesh.refused == []
    assert mesh.tokens("job") == undisturbed


def test_a_replay_buffer_keeps_its_own_rows_alone() -> None:
    """Not the whole batch that they were a part of."""
    buffer = ReplayBuffer()
    buffer.put(0, torch.zeros(128, 64)[5:6])
    assert buffer.nbytes == 4 * 64


@pytest.mark.parametrize("positions", [-5, -200, 10**9])
def test_a_wrong_number_of_ready_positions_is_harmless(
    cache: Path, undisturbed: list[int], sampling: SamplingParams, positions: int
) -> None:
    """And a message of readiness that is repeated, in the middle, begins nothing anew."""
    mesh = Mesh.cut(DEMO_MODEL, CUTS, cache)
    mesh.open("job", PROMPT, max_tokens=TOKENS, sampling=sampling, prefix=[b"a name"])
    mesh.send(0, PrefixCached("job", 1, 1, positions))
    mesh.run_until(3)
    mesh.send(0, PrefixCached("job", 1, 1, 0))
    mesh.run()
    assert mesh.tokens("job") == undisturbed
    assert sum(mesh.positions) < 3 * TOKENS * 2
