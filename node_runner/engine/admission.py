"""Opens generations: their KV is reserved, or taken over from the epoch before."""

import math
import time

from mesh.wire import Ended, Open, OpenEdge, PrefixCached, PrefixReused, Prompt, SamplingParams
from mesh.wire.limits import (
    MAX_GRAMMAR,
    MAX_LAYERS,
    MAX_LOGIT_BIAS,
    MAX_LOGIT_BIASES,
    MAX_PENALTY,
    MAX_STOP_TEXT,
    MAX_STOP_TEXTS,
    MAX_TOP_LOGPROBS,
)
from mesh.wire.refusal_codes import INVALID_REQUEST
from node_runner.engine.attention.kv_cache import KVCache
from node_runner.engine.attention.prefix_cache import PrefixCache
from node_runner.engine.edge import Edge
from node_runner.engine.generation import Generation
from node_runner.engine.generation_table import GenerationTable
from node_runner.engine.model.span_model import SpanModel
from node_runner.engine.output_batcher import OutputBatcher
from node_runner.engine.refusals import refuse
from node_runner.engine.replay_buffer import ReplayBuffer
from node_runner.engine.scheduler import PREFILL_CHUNK
from node_runner.outputs import NodeMessage


class Admission:
    """Admits generations into the table, by reservation: KV for all positions that a generation may
    have is set aside before it begins."""

    def __init__(
        self,
        span: SpanModel,
        generations: GenerationTable,
        prefix_cache: PrefixCache,
        edge: Edge,
        node_id: str,
    ) -> None:
        self._span = span
        self._generations = generations
        self._prefix_cache = prefix_cache
        self._edge = edge
        self._node_id = node_id

    def open(self, message: Open | OpenEdge, outputs: OutputBatcher) -> None:
        """Admit a generation, or its next epoch; a repeated or older epoch is ignored.

        Refused are a generation that the span cannot compute (``invalid_request``), one for which
        there is no free KV (``kv_full``), an epoch that is to keep a KV cache which is not here
        (``forgotten``), and one that is to replay hidden states which were not kept
        (``no_replay``).
        """
        known = self._generations.get(message.request_id)
        if known is not None and known.epoch >= message.epoch:
            return
        if not _is_valid(message, self._span):
            outputs.add(refuse(message, INVALID_REQUEST, node_id=self._node_id))
            return
        generation = self._resumed(known, message) if message.resume.keep else self._fresh(message)
        if generation is None:
            code = "forgotten" if message.resume.keep else "kv_full"
            outputs.add(refuse(message, code, node_id=self._node_id))
            return
        self._generations.add(generation)
        if isinstance(message, OpenEdge):
            self._begin(generation, message, outputs)
        elif message.prefix:
            cached = PrefixCached(
                message.request_id,
                message.epoch,
                message.stage_assignment.stage,
                generation.cache.length,
            )
            outputs.add(NodeMessage(message.stage_assignment.edge_node, cached))
        if message.resume.keep and message.resume.replay and not generation.halted:
            self._replay(generation, outputs)

    def _resumed(self, known: Generation | None, message: Open | OpenEdge) -> Generation | None:
        """The next epoch on the KV cache of the one before; none if that is not here."""
        if known is None or known.cache.length < message.resume.known:
            return None
        if known.cache.capacity < message.stage_assignment.capacity:
            return None
        known.halted = True
        return _generation(message, known.cache, known.replay_buffer)

    def _fresh(self, message: Open | OpenEdge) -> Generation | None:
        """A generation on a KV cache of its own; none if there is no free KV for it."""
        known = self._generations.get(message.request_id)
        if known is not None:
            self._generations.close(known)
        if self._generations.full:
            return None
        cache = self._prefix_cache.reserve(message.stage_assignment.capacity, message.prefix)
        return None if cache is None else _generation(message, cache, ReplayBuffer())

    def _begin(self, generation: Generation, message: OpenEdge, outputs: OutputBatcher) -> None:
        """At the edge: the prompt can be scheduled, once all nodes are ready."""
        stages = range(1, message.stage_assignment.stages) if message.prefix else ()
        decoding = self._edge.open(message.request_id, message.prompt, stages_not_ready=set(stages))
        decoding.num_scheduled_tokens = min(generation.cache.length, len(decoding.tokens) - 1)
        generation.decoding = decoding
        if message.prefix and not stages:  # the edge alone serves all layers
            outputs.add(*prefix_reused(generation))
        if decoding.stopped or decoding.generated >= decoding.max_tokens:
            # The tokens that readers have are all there are: only the message of the end was lost.
            reason = "stop" if decoding.stopped else "length"
            outputs.add(Ended(message.request_id, message.epoch, reason, decoding.generated))
            self._generations.close(generation)

    def _replay(self, generation: Generation, outputs: OutputBatcher) -> None:
        """Send the next node, which is new, the hidden states of all positions before."""
        hidden = generation.replay_buffer.upto(generation.resume.known)
        if hidden is not None:
            for position in range(0, len(hidden), PREFILL_CHUNK):
                chunk = hidden[position : position + PREFILL_CHUNK]
                outputs.send(generation, position, chunk, replay=True)
        elif generation.decoding is not None:
            # The edge has the tokens, and computes all of them again.
            generation.decoding.num_scheduled_tokens = 0
        else:
            generation.halted = True
            outputs.add(refuse(generation, "no_replay", node_id=self._node_id))


def prefix_reused(generation: Generation) -> list[PrefixReused]:
    """At the edge, when all nodes are ready: what they have of the prompt, if they have any."""
    decoding = generation.decoding
    if decoding is None or not decoding.num_scheduled_tokens:
        return []
    positions = decoding.num_scheduled_tokens
    return [PrefixReused(generation.request_id, generation.epoch, positions)]


def _is_valid(message: Open | OpenEdge, span: SpanModel) -> bool:
    """Whether a span can compute what a message asks for. All that later work counts on is checked
    here: a token id without a row of the embedding would end the process on a GPU."""
    own = message.stage_assignment
    if not 0 <= own.stage < own.stages <= MAX_LAYERS or message.resume.known < 0:
        return False
    if not 1 <= own.capacity <= span.max_positions:
        return False
    if not isinstance(message, OpenEdge):
        return own.stage > 0 and not span.edge
    return own.stage == 0 and span.edge and _is_valid_prompt(message.prompt, own.capacity, span)


def _is_valid_prompt(prompt: Prompt, capacity: int, span: SpanModel) -> bool:
    lowest = min(min(ids, default=0) for ids in (prompt.token_ids, prompt.generated))
    highest = max(max(ids, default=0) for ids in (prompt.token_ids, prompt.generated))
    return (
        len(prompt.token_ids) >= 1
        and lowest >= 0
        and highest < span.vocab_size
        and prompt.max_tokens >= max(1, len(prompt.generated))
        and len(prompt.token_ids) + prompt.max_tokens <= capacity
        and _is_valid_sampling(prompt.sampling, span.vocab_size)
    )


def _is_valid_sampling(params: SamplingParams, vocab_size: int) -> bool:
    """Whether a token can be drawn as asked. More than the vocabulary has as ``top_k`` is all."""
    return (
        0 <= params.temperature < math.inf
        and 0 < params.top_p <= 1
        and params.top_k >= 0
        and 0 <= params.min_p <= 1
        and (params.repetition_penalty is None or 0 < params.repetition_penalty < math.inf)
        and abs(params.frequency_penalty) <= MAX_PENALTY
        and abs(params.presence_penalty) <= MAX_PENALTY
        and len(params.logit_bias) <= MAX_LOGIT_BIASES
        and all(0 <= token < vocab_size for token in params.logit_bias)
        and all(abs(bias) <= MAX_LOGIT_BIAS for bias in params.logit_bias.values())
        and (params.logprobs is None or 0 <= params.logprobs <= MAX_TOP_LOGPROBS)
        and len(params.grammar) <= MAX_GRAMMAR
        and len(params.stop) <= MAX_STOP_TEXTS
        and all(len(text) <= MAX_STOP_TEXT for text in params.stop)
    )


def _generation(
    message: Open | OpenEdge, cache: KVCache, replay_buffer: ReplayBuffer
) -> Generation:
    return Generation(
        request_id=message.request_id,
        epoch=message.epoch,
        stage_assignment=message.stage_assignment,
        resume=message.resume,
        prefix=message.prefix,
        cache=cache,
        expires_at=time.monotonic() + message.stage_assignment.expires_in,
        decoding=None,
        replay_buffer=replay_buffer,
    )
