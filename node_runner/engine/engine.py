"""Continuous batching: every step packs what waits, of all generations, into one forward."""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from mesh import wire
from mesh.errors import WireError
from mesh.wire import Close, Ended, Message, Open, OpenEdge, Ping, Pong, Refused, Step, Token
from node_runner.engine.attention import Pack, Segment
from node_runner.engine.kv import KVCache, KVPool
from node_runner.engine.sampler import sample
from node_runner.engine.span import Span
from node_runner.engine.tensors import NAMES, from_step, to_bytes
from node_runner.engine.text import TextStream

PREFILL_CHUNK = 128
"""Positions of one prompt in one forward: small enough that the spans work on different chunks at
once and that decoding generations do not wait long."""

MAX_ROWS = 1024
"""Rows of one forward, all generations together."""


@dataclass(frozen=True, slots=True)
class Forward:
    """A step for another node's inbox."""

    to: str
    step: Step


Result = Forward | Token | Ended | Refused | Pong


@dataclass(slots=True)
class Decoding:
    """What the edge keeps of a generation: its tokens, prompt first, and how to go on."""

    tokens: list[int]
    prompt_length: int
    max_tokens: int
    sampling: wire.Sampling
    text: TextStream
    stopped: bool
    fed: int = 0
    """Tokens that have been put into the first span."""

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def unfed(self) -> bool:
        return self.fed < len(self.tokens)


@dataclass(slots=True)
class Generation:
    """One generation on this node, at one epoch."""

    request_id: str
    epoch: int
    next_node: str
    first: bool
    last: bool
    cache: KVCache
    capacity: int
    expires_at: float
    decoding: Decoding | None


@dataclass(slots=True)
class Work:
    """Consecutive positions of one generation that wait for the forward."""

    generation: Generation
    position: int
    sample: bool
    hidden: torch.Tensor | None = None
    token_ids: list[int] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return len(self.token_ids) if self.hidden is None else self.hidden.shape[0]


class Engine:
    """Turns messages into results. Not thread-safe; one caller steps it."""

    def __init__(self, span: Span, *, node_id: str, kv_budget_bytes: int) -> None:
        self._span = span
        self._node_id = node_id
        self.pool = KVPool(span.kv_shape, kv_budget_bytes)
        self.generations: dict[str, Generation] = {}
        self._waiting: deque[Work] = deque()
        # One answer a generation, however often it came.
        self._returned: dict[str, tuple[Generation, torch.Tensor]] = {}
        self._forwards: list[tuple[int, int]] = []

    @property
    def busy(self) -> bool:
        """Whether another step has something to do without new messages."""
        return bool(self._waiting or self._returned) or any(
            generation.decoding is not None and generation.decoding.unfed
            for generation in self.generations.values()
        )

    def step(self, messages: Iterable[Message]) -> list[Result]:
        """Take messages in, run one forward over what waits, give results out."""
        results: list[Result] = []
        for message in messages:
            self._receive(message, results)
        self._sample(results)
        self._feed()
        self._run(results)
        return results

    def take_forwards(self) -> list[tuple[int, int]]:
        """Generations and positions of each forward since the last call."""
        taken, self._forwards = self._forwards, []
        return taken

    def expire(self) -> None:
        """Forget generations whose supervisor never came back to close them."""
        now = time.monotonic()
        for generation in [g for g in self.generations.values() if g.expires_at < now]:
            self._drop(generation)

    def _receive(self, message: Message, results: list[Result]) -> None:
        match message:
            case Open() | OpenEdge():
                self._open(message, results)
            case Close():
                generation = self.generations.get(message.request_id)
                if generation is not None and generation.epoch <= message.epoch:
                    self._drop(generation)
            case Ping():
                results.append(Pong(message.request_id, message.epoch, self._node_id))
            case Step():
                generation = self.generations.get(message.request_id)
                if generation is not None and generation.epoch == message.epoch:
                    self._arrive(generation, message, results)

    def _open(self, message: Open | OpenEdge, results: list[Result]) -> None:
        known = self.generations.get(message.request_id)
        if known is not None:
            if known.epoch >= message.epoch:
                return
            self._drop(known)
        decoding = None
        if isinstance(message, OpenEdge):
            decoding = self._decoding(message.prompt)
        cache = self.pool.reserve(message.capacity)
        if cache is None:
            results.append(Refused(message.request_id, message.epoch, self._node_id, "kv_full"))
            return
        generation = Generation(
            request_id=message.request_id,
            epoch=message.epoch,
            next_node=message.next_node,
            first=message.stage == 0,
            last=message.stage == message.stages - 1,
            cache=cache,
            capacity=message.capacity,
            expires_at=time.monotonic() + message.expires_in,
            decoding=decoding,
        )
        self.generations[message.request_id] = generation
        if decoding is not None and decoding.stopped:
            # What readers have is all there is: only the news of the end was lost.
            results.append(Ended(message.request_id, message.epoch, "stop", decoding.generated))
            self._drop(generation)

    def _decoding(self, prompt: wire.Prompt) -> Decoding:
        text = TextStream(self._span.tokenizer, prompt.token_ids, prompt.sampling.stop)
        stopped = False
        for token_id in prompt.generated:  # what readers have; brings the decoder up to it
            stopped = text.push(token_id)[1] or token_id in self._span.end_tokens
        return Decoding(
            tokens=[*prompt.token_ids, *prompt.generated],
            prompt_length=len(prompt.token_ids),
            max_tokens=prompt.max_tokens,
            sampling=prompt.sampling,
            text=text,
            stopped=stopped,
        )

    def _arrive(self, generation: Generation, step: Step, results: list[Result]) -> None:
        try:
            hidden = from_step(
                step, width=self._span.hidden_size, dtype=self._span.dtype, device=self._span.device
            )
        except WireError as error:
            results.append(
                Refused(generation.request_id, generation.epoch, self._node_id, error.code)
            )
            return
        if generation.decoding is not None:
            # Back from the last span. A repeated answer is for a position already passed.
            if step.position == len(generation.decoding.tokens) - 1:
                self._returned[generation.request_id] = (generation, hidden[-1])
            return
        self._waiting.append(Work(generation, step.position, step.sample, hidden))

    def _sample(self, results: list[Result]) -> None:
        """Choose the next token of every generation whose last position came back."""
        returned = [
            (generation, generation.decoding, hidden)
            for generation, hidden in self._returned.values()
            if generation.decoding is not None and self._alive(generation)
        ]
        self._returned = {}
        if not returned:
            return
        logits = self._span.logits(torch.stack([hidden for _, _, hidden in returned]))
        chosen = sample(
            logits,
            [decoding.sampling for _, decoding, _ in returned],
            [len(decoding.tokens) for _, decoding, _ in returned],
        )
        for (generation, decoding, _), token_id in zip(returned, chosen, strict=True):
            self._append(generation, decoding, token_id, results)

    def _append(
        self, generation: Generation, decoding: Decoding, token_id: int, results: list[Result]
    ) -> None:
        index = decoding.generated
        decoding.tokens.append(token_id)
        text, stopped = decoding.text.push(token_id)
        stopped = stopped or token_id in self._span.end_tokens
        ended = stopped or decoding.generated >= decoding.max_tokens
        if ended:
            text += decoding.text.flush()
        request_id, epoch = generation.request_id, generation.epoch
        results.append(Token(request_id, epoch, index, token_id, text))
        if ended:
            reason = "stop" if stopped else "length"
            results.append(Ended(request_id, epoch, reason, decoding.generated))
            self._drop(generation)

    def _feed(self) -> None:
        """Each generation's next tokens: a chunk of its prompt, or the token just chosen."""
        for generation in self.generations.values():
            decoding = generation.decoding
            if decoding is None or not decoding.unfed:
                continue
            begin = decoding.fed
            end = min(begin + PREFILL_CHUNK, len(decoding.tokens))
            complete = end == len(decoding.tokens)
            tokens = decoding.tokens[begin:end]
            self._waiting.append(Work(generation, begin, complete, token_ids=tokens))
            decoding.fed = end

    def _run(self, results: list[Result]) -> None:
        pack = self._take(results)
        if not pack:
            return
        pack.sort(key=lambda work: work.rows)  # equals attend together
        packed = Pack([Segment(work.generation.cache, work.rows, work.position) for work in pack])
        output = self._span.forward(self._inputs(pack), packed)
        self._forwards.append((len(pack), packed.rows))
        rows = output.split_with_sizes([work.rows for work in pack])
        for work, own in zip(pack, rows, strict=True):
            self._pass_on(work, own, results)

    def _take(self, results: list[Result]) -> list[Work]:
        """Waiting work up to the row limit, in order of arrival; the rest waits on."""
        pack: list[Work] = []
        later: list[Work] = []
        taken: set[str] = set()
        rows = 0
        while self._waiting and (not pack or rows + self._waiting[0].rows <= MAX_ROWS):
            work = self._waiting.popleft()
            generation = work.generation
            if not self._alive(generation):
                continue
            if generation.request_id in taken:
                later.append(work)
                continue
            fits = work.position + work.rows <= generation.capacity
            if not (fits and work.position <= generation.cache.length):
                code = "gap" if fits else "capacity"
                results.append(
                    Refused(generation.request_id, generation.epoch, self._node_id, code)
                )
                self._drop(generation)
                continue
            pack.append(work)
            taken.add(generation.request_id)
            rows += work.rows
        self._waiting.extendleft(reversed(later))
        return pack

    def _inputs(self, pack: list[Work]) -> torch.Tensor:
        token_ids = [token for work in pack for token in work.token_ids]
        if token_ids:
            return self._span.embed(token_ids)
        return torch.cat([work.hidden for work in pack if work.hidden is not None])

    def _pass_on(self, work: Work, rows: torch.Tensor, results: list[Result]) -> None:
        generation = work.generation
        position = work.position
        if generation.last:
            if not work.sample:
                return
            position, rows = position + work.rows - 1, rows[-1:]
            if generation.first:
                self._returned[generation.request_id] = (generation, rows[0])
                return
        step = Step(
            request_id=generation.request_id,
            epoch=generation.epoch,
            position=position,
            sample=work.sample,
            dtype=NAMES[self._span.dtype],
            rows=rows.shape[0],
            width=rows.shape[1],
            data=to_bytes(rows),
        )
        results.append(Forward(generation.next_node, step))

    def _alive(self, generation: Generation) -> bool:
        return self.generations.get(generation.request_id) is generation

    def _drop(self, generation: Generation) -> None:
        if self._alive(generation):
            del self.generations[generation.request_id]
            self.pool.free(generation.cache)
