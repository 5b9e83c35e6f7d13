"""A node marks its steps as replays, so that the next node passes nothing on and is taken for one
that computes and does not deliver, or passes on more than the relay lets it."""

import dataclasses
from collections import Counter
from pathlib import Path

from api.relay import message_rules
from api.relay.quotas.message_counts import MessageCounts
from mesh.route_record import RouteRecord
from mesh.wire import Resume, Step, Steps
from node_runner.outputs import EngineOutput, NodeMessage
from tests.conftest import DEMO_MODEL
from tests.support.engine.pipeline import Pipeline

CUTS = [0, 1, 2, 4, 6]
LIAR, VICTIM = "1", "2"
PROMPT = [0, *range(20, 60)]
MAX_TOKENS = 8
CAPACITY = len(PROMPT) + MAX_TOKENS


class Lying(Pipeline):
    """A pipeline in which all that the liar sends is a replay."""

    def take(self, output: EngineOutput) -> None:
        if isinstance(output, NodeMessage) and output.to == VICTIM:
            message = output.message
            assert isinstance(message, Steps)
            steps = [step._replace(replay=True) for step in message.steps]
            output = NodeMessage(VICTIM, dataclasses.replace(message, steps=steps))
        super().take(output)


class Counted(Pipeline):
    """A pipeline whose nodes' steps the relay counts. ``refused_by_relay``: by stage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.counts = MessageCounts()
        self.refused_by_relay: Counter[str] = Counter()

    def may_send(self, sender: str, message: Steps) -> bool:
        """Whether the relay lets all steps of a message pass."""
        stage = int(sender)
        route = RouteRecord(message.width, CAPACITY, list(map(str, range(len(self.engines)))))
        to = route.next_node(stage)
        written = len(self.tokens("job"))
        return all(
            message_rules.check_step(sender, to, step, message.width, route) is None
            and self.counts.step(("job", step.epoch, stage), step, CAPACITY, written)
            for step in message.steps
        )

    def lies(self, message: Steps) -> list[Steps]:
        """What the liar sends beside a message, as far as the relay lets it."""
        return []

    def take(self, output: EngineOutput) -> None:
        if isinstance(output, NodeMessage) and isinstance(output.message, Steps):
            sender = str((int(output.to) - 1) % len(self.engines))
            if not self.may_send(sender, output.message):
                self.refused_by_relay[sender] += 1
                return
            if sender == LIAR:
                for lie in self.lies(output.message):
                    if self.may_send(LIAR, lie):
                        super().take(NodeMessage(output.to, lie))
        super().take(output)


class Repeating(Counted):
    """The liar sends each of its steps once more, as a replay."""

    def lies(self, message: Steps) -> list[Steps]:
        steps = [step._replace(replay=True, wanted=0) for step in message.steps]
        return [dataclasses.replace(message, steps=steps)]


def test_only_the_supervisor_says_up_to_where_there_are_replays(tmp_path: Path) -> None:
    honest = Pipeline.cut(DEMO_MODEL, CUTS, tmp_path, speculate=False)
    lying = Lying.cut(DEMO_MODEL, CUTS, tmp_path, speculate=False)
    for pipeline in (honest, lying):
        pipeline.open("job", PROMPT, max_tokens=MAX_TOKENS)
        pipeline.run()
    assert len(honest.tokens("job")) == MAX_TOKENS
    assert lying.tokens("job") == honest.tokens("job")
    assert lying.refused == []


def test_a_neighbour_passes_on_no_more_than_the_relay_lets_it(tmp_path: Path) -> None:
    lying = Repeating.cut(DEMO_MODEL, CUTS, tmp_path, speculate=False)
    lying.open("job", PROMPT, max_tokens=MAX_TOKENS)
    lying.run()
    assert not lying.refused_by_relay
    assert [(refusal.node_id, refusal.code) for refusal in lying.refused] == [(LIAR, "flood")]


def test_nobody_samples_a_replay() -> None:
    """The last node would pass it on as a step that it was not sent."""
    route = RouteRecord(8, CAPACITY, ["0", LIAR, VICTIM])
    replay = Step("job", 1, 0, 4, 0, True)
    assert message_rules.check_step(LIAR, VICTIM, replay, 8, route) is None
    for wanted in (1, 4):
        step = replay._replace(wanted=wanted)
        assert message_rules.check_step(LIAR, VICTIM, step, 8, route) == "wrong_stage"


def test_a_node_that_replays_is_sent_no_replays(tmp_path: Path) -> None:
    """It sends its new neighbour all positions, and the liar's besides would be too many."""
    pipeline = Counted.cut(DEMO_MODEL, CUTS, tmp_path, speculate=False)
    pipeline.open("job", PROMPT, max_tokens=MAX_TOKENS)
    while len(pipeline.tokens("job")) < MAX_TOKENS // 2:
        pipeline.step_all()
    known = len(PROMPT) + len(pipeline.tokens("job")) - 1
    victim = pipeline.engines[int(VICTIM)].generations["job"]
    assert victim.cache.length >= known
    pipeline.inboxes = [[] for _ in pipeline.engines]
    pipeline.engines[3].generations.close(pipeline.engines[3].generations["job"])
    kept, new = Resume(True, False, known), Resume(False, False, known)
    pipeline.open(
        "job",
        PROMPT,
        max_tokens=MAX_TOKENS,
        epoch=2,
        generated=pipeline.tokens("job"),
        resumes={0: kept, 1: kept, 2: Resume(True, True, known), 3: new},
    )
    step = Step("job", 2, 0, 20, 0, True)
    width = pipeline.engines[0].span.hidden_size
    lie = Steps([step], "float32", width, bytes(4 * 20 * width))
    for _ in range(CAPACITY // 20):
        assert pipeline.may_send(LIAR, lie)
        pipeline.send(int(VICTIM), lie)
    pipeline.run()
    assert not pipeline.refused_by_relay
    assert len(pipeline.tokens("job")) == MAX_TOKENS
    assert pipeline.refused == []
