"""The message to each node of a route with which an epoch begins."""

from collections.abc import Collection, Sequence

from market.jobs.tables import Job
from market.prompt_vault import PromptText
from mesh.wire import Open, OpenEdge, Prompt, Resume, SamplingParams, StageAssignment
from workers.supervisor.route_finder import Hop


def open_messages(
    job: Job,
    prompt: PromptText,
    prefix: list[bytes],
    route: Sequence[Hop],
    *,
    epoch: int,
    generated: list[int],
    kept: Collection[Hop],
    expires_in: int,
) -> list[tuple[str, Open | OpenEdge]]:
    """Node ids and their messages, in the order in which they have to be sent: the edge's last, as
    the edge starts at once; or first if there is a prefix, as the edge then waits until all others
    are ready.

    Args:
        job: The generation.
        prompt: Its prompt, decrypted.
        prefix: Hashes of the prompt's prefixes (:mod:`mesh.prefix_hashes`); empty if the generation
            has tokens.
        route: Nodes and their spans, the edge's first.
        epoch: The epoch that begins.
        generated: Token ids that readers have.
        kept: Hops that served the epoch before and have all positions but the last in their KV
            cache; each of them replays to its next hop, if that is new.
        expires_in: Seconds after which a node forgets the generation by itself.
    """
    order = list(reversed(range(len(route))))
    if prefix:
        order = [0, *order[:-1]]
    known = len(prompt.token_ids) + len(generated) - 1 if kept else 0
    messages: list[tuple[str, Open | OpenEdge]] = []
    for stage in order:
        hop, next_hop = route[stage], route[(stage + 1) % len(route)]
        position = StageAssignment(
            stage=stage,
            stages=len(route),
            edge_node=route[0].node_id,
            previous_node=route[stage - 1].node_id,
            next_node=next_hop.node_id,
            capacity=job.prompt_tokens + job.max_tokens,
            expires_in=expires_in,
            start_layer=hop.start_layer,
            end_layer=hop.end_layer,
        )
        more = stage + 1 < len(route)
        resume = Resume(keep=hop in kept, replay=more and next_hop not in kept, known=known)
        if stage > 0:
            message: Open | OpenEdge = Open(job.request_id, epoch, position, resume, prefix)
        else:
            sampling = SamplingParams(
                job.temperature, job.top_p, job.seed, prompt.stop, **prompt.sampling
            )
            text = Prompt(prompt.token_ids, generated, job.max_tokens, sampling)
            message = OpenEdge(job.request_id, epoch, position, resume, prefix, text)
        messages.append((hop.node_id, message))
    return messages
