"""A node marks its steps as replays, so that the next node passes nothing on and is taken for one
that computes and does not deliver."""

import dataclasses
from pathlib import Path

from mesh.wire import Steps
from node_runner.outputs import EngineOutput, NodeMessage
from tests.conftest import DEMO_MODEL
from tests.support.engine.pipeline import Pipeline

CUTS = [0, 1, 2, 4, 6]
LIAR, VICTIM = "1", "2"
PROMPT = [0, *range(20, 220)]


class Lying(Pipeline):
    """A pipeline in which all that the liar sends is a replay."""

    def take(self, output: EngineOutput) -> None:
        if isinstance(output, NodeMessage) and output.to == VICTIM:
            message = output.message
            assert isinstance(message, Steps)
            steps = [step._replace(replay=True) for step in message.steps]
            output = NodeMessage(VICTIM, dataclasses.replace(message, steps=steps))
        super().take(output)


def test_only_the_supervisor_says_up_to_where_there_are_replays(tmp_path: Path) -> None:
    honest = Pipeline.cut(DEMO_MODEL, CUTS, tmp_path, speculate=False)
    lying = Lying.cut(DEMO_MODEL, CUTS, tmp_path, speculate=False)
    for pipeline in (honest, lying):
        pipeline.open("job", PROMPT, max_tokens=8)
        pipeline.run()
    assert len(honest.tokens("job")) == 8
    assert lying.tokens("job") == honest.tokens("job")
    assert lying.refused == []
