"""How many rows one stage may send another in one epoch: counted by the relay of what a node sends,
and by a node of what it is sent, so that nobody can make an honest node send too many."""

from dataclasses import dataclass

from mesh.wire.limits import MAX_DRAFT_TOKENS
from mesh.wire.messages import Step


@dataclass(slots=True)
class StepCounts:
    """Rows of one stage in one epoch: of the prefill and of replays, which nobody samples; and rows
    to sample."""

    prefilled: int = 0
    replayed: int = 0
    sampled: int = 0

    def add(self, step: Step, capacity: int, steps: int) -> bool:
        """Count a step.

        Args:
            step: What is sent.
            capacity: Positions of the generation.
            steps: Tokens that may have been sampled by now.

        Returns:
            Whether the stage may still send it: each position once for the prefill and once for a
            replay; and for each token one step, with draft tokens that are all rejected.
        """
        self._count(step, 1)
        return (
            self.replayed <= capacity
            and self.prefilled <= capacity
            and self.sampled <= (1 + MAX_DRAFT_TOKENS) * steps
        )

    def undo(self, step: Step) -> None:
        """A step that was counted did not get through, and comes again."""
        self._count(step, -1)

    def _count(self, step: Step, sign: int) -> None:
        if step.replay:
            self.replayed += sign * step.rows
        else:
            self.sampled += sign * step.wanted
            self.prefilled += sign * (step.rows - step.wanted)
