"""From a request in OpenAI's form to jobs."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request

from api.http import rate_limits
from api.http.authentication import GenerateCaller
from api.http.rate_limits import address_of
from api.http.reading.reader_slots import HeldForAnswer
from api.http.services import Services, WithServices
from api.routes.openai import attempts
from api.routes.openai.attempts import Attempt
from api.schemas.base import IdempotencyKey, RequestBody
from market.catalog.models import Model
from market.chat import preparation
from market.chat.preparation import Chat, PreparedChat
from market.geo.distance import Coordinates
from market.identity.principal import Principal
from market.jobs.request import Idempotency, JobRequest
from market.jobs.tables import Job


@dataclass(frozen=True, slots=True)
class Asking:
    """A caller's request, beside its body. ``attempt``: see :mod:`api.routes.openai.attempts`."""

    request: Request
    caller: Principal
    services: Services
    held: ExitStack
    attempt: int | None
    idempotency_key: str | None

    @property
    def near(self) -> Coordinates | None:
        """About where the caller is, in whole degrees; none if that is not known."""
        return self.services.geoip.approximate(address_of(self.request, self.services))

    def model(self, model_id: str) -> Model:
        """The model that is asked for.

        Raises:
            ModelNotAllowed: the caller is an API key for other models.
            ModelNotFound: there is none of that id.
        """
        self.caller.require_model(model_id)
        return self.services.catalog.get(model_id)

    async def prepare(self, model: Model, chat: Chat) -> PreparedChat:
        """The prompt and the grammar of a chat, made in the caller's turn.

        Raises:
            InvalidRequest: see :func:`market.chat.preparation.prepare`.
        """
        return await self.services.chat_turns.run(
            self.caller.wallet, lambda: preparation.prepare(model, chat)
        )

    async def submit(self, body: RequestBody, job_request: JobRequest) -> Sequence[Job]:
        """The jobs of the request, new ones or those of an earlier attempt.

        Raises:
            MeshError: whatever is wrong with it; nothing is held then.
        """
        services, more = self.services, job_request.generations - 1
        if more:
            await rate_limits.count_generations(services, self.caller, more)
        self.held.enter_context(services.reader_slots.hold(self.caller.wallet))
        digests = services.vault.digests(
            f"{self.request.url.path} {body.model_dump_json()}".encode()
        )
        jobs = await services.submissions.submit(
            self.caller, job_request, Idempotency(self.idempotency_key, digests, bool(self.attempt))
        )
        await attempts.begin(services, jobs, self.attempt)
        return jobs


async def _asking(
    request: Request,
    caller: GenerateCaller,
    services: WithServices,
    held: HeldForAnswer,
    attempt: Attempt,
    idempotency_key: Annotated[IdempotencyKey | None, Header()] = None,
) -> Asking:
    await rate_limits.count_generations(services, caller)
    return Asking(request, caller, services, held, attempt, idempotency_key)


WithAsking = Annotated[Asking, Depends(_asking)]
