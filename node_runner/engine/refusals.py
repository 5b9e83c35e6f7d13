"""Why a generation cannot go on at this node, and which node is to blame."""

import structlog

from mesh.grammar import GrammarRefused
from mesh.wire import GenerationRefused, Open, OpenEdge
from mesh.wire.refusal_codes import GENERATION_FAILED, GRAMMAR_REFUSED
from node_runner.engine.device.isolation import described
from node_runner.engine.generation import Generation, WorkItem

log = structlog.get_logger()


class FailedGenerations:
    """Generations in whose work an exception was raised, until the end of a step."""

    def __init__(self) -> None:
        self._failed: dict[Generation, str] = {}

    def add(self, generation: Generation, error: BaseException) -> None:
        """Stop a generation, and log the exception."""
        generation.halted = True
        refused = isinstance(error, GrammarRefused)
        self._failed[generation] = GRAMMAR_REFUSED if refused else GENERATION_FAILED
        log.error(
            "generation_failed",
            request_id=generation.request_id,
            epoch=generation.epoch,
            position=generation.cache.length,
            **described(error),
        )

    def pop(self) -> list[tuple[Generation, str]]:
        """The generations that were added since the last call, and the codes of their refusals."""
        failed, self._failed = list(self._failed.items()), {}
        return failed


def refuse(what: Open | OpenEdge | Generation, code: str, *, node_id: str) -> GenerationRefused:
    """A refusal for which this node, ``node_id``, is answerable."""
    return GenerationRefused(what.request_id, what.epoch, node_id, code)


def refuse_sender(generation: Generation, code: str) -> GenerationRefused:
    """Stop a generation whose previous node sent a step that cannot be right.

    The KV cache holds nothing of that step, so the next epoch may keep it.
    """
    generation.halted = True
    return refuse(generation, code, node_id=generation.stage_assignment.previous_node)


def refuse_output(generation: Generation, code: str, *, node_id: str) -> GenerationRefused:
    """Stop a generation whose computation has failed here.

    Zeros take the place of its KV cache: values in it that are not finite would spoil those of the
    next generation.
    """
    generation.halted = True
    generation.cache.pool.zero(generation.cache)
    return refuse(generation, code, node_id=node_id)


def check_position(item: WorkItem, *, node_id: str) -> GenerationRefused | None:
    """Stop a generation whose next positions do not fit its KV cache.

    Positions that the cache has already are a repeated step, and fit. Positions that begin behind
    its end are a ``gap``: a step before them was lost. Positions beyond the capacity that was
    reserved (``capacity``) are the sender's fault.

    Returns:
        The refusal; none if the positions fit.
    """
    generation = item.generation
    if item.end > generation.stage_assignment.capacity:
        return refuse_sender(generation, "capacity")
    if item.position > generation.cache.length:
        generation.halted = True
        return refuse(generation, "gap", node_id=node_id)
    return None
