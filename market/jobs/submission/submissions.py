"""Submission of jobs: looked at, taken in, tokenized, quoted and written, each in its turn."""

import asyncio
import datetime as dt
from collections.abc import Sequence

import structlog
from sqlalchemy import ColumnElement, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import defer

from market import ledger, metrics, outbox
from market.catalog.models import Model
from market.identity.principal import Principal
from market.jobs.errors import IdempotencyConflict, Overloaded, TooManyInFlight
from market.jobs.quote import quote_of
from market.jobs.request import Idempotency, JobRequest
from market.jobs.submission import prompt_tokens, transaction
from market.jobs.submission.early_refusal import EarlyRefusals
from market.jobs.submission.under_way import Submission, UnderWay
from market.jobs.tables import Job, JobStatus
from market.keyed_locks import KeyedLocks
from market.ledger.errors import InsufficientBalance, KeyLimitReached
from market.outages import OUTAGES
from market.resources import Resources
from market.wallet_turns import WalletTurns
from mesh.errors import MeshError

log = structlog.get_logger()

MAX_AT_ONCE = 8
"""Submissions of one process that use Postgres at once. They wait for each other's locks there, and
would otherwise do so on all of the pool's connections, which everything else needs."""

MAX_BALANCES = 2
"""Balances of one process that are read at once, beside those: whoever has no money, or for whom
there is no room, is told so without waiting for others' locks."""

MAX_TOKENIZED = 2
"""Prompts that one process tokenizes at once. A long one takes a processor for a second."""

RETRY_WINDOW = dt.timedelta(seconds=60)
"""For so long after its first attempt, a client's retry of a request without an idempotency key
finds that attempt's jobs. OpenAI's clients retry within seconds."""

WAITING_RETRY = 5
"""Seconds after which most of the submissions that wait have been looked at."""


class Submissions:
    """The submissions of one process."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self.under_way = UnderWay()
        self._early = EarlyRefusals(resources, self.under_way)
        self._turns = asyncio.Semaphore(MAX_AT_ONCE)
        self.balances = asyncio.Semaphore(MAX_BALANCES)
        self._tokenizing = WalletTurns(MAX_TOKENIZED)
        self._wallets = KeyedLocks()
        """One wallet takes no more than one turn for what may wait for its money."""

    async def submit(
        self, caller: Principal, request: JobRequest, idempotency: Idempotency
    ) -> Sequence[Job]:
        """The jobs of a request, in the order of its prompts and choices: new ones, or those that
        the same key, or an earlier attempt of the same client, made before.

        Raises:
            ModelNotAllowed: the caller is an API key for other models.
            KeyLimitReached: a limit of the caller's API key leaves too little.
            TooManyInFlight: the wallet has too many jobs that have not ended.
            Overloaded: the jobs would start too late.
            ChainIndexBehind: it is not known who has withdrawn lately.
            MeshError: whatever else is wrong with the request; in all cases nothing is held.
        """
        wallet = caller.wallet
        caller.require_model(request.model_id)
        earlier = await self._earlier(caller, idempotency)
        if earlier:
            return earlier
        try:
            jobs = await self._submit_new(caller, request, idempotency)
        except (InsufficientBalance, KeyLimitReached, TooManyInFlight, Overloaded):
            earlier = await self._earlier(caller, idempotency)  # accepted in the meantime
            if earlier:
                return earlier
            self._count_rejected(request)
            raise
        except MeshError:
            self._count_rejected(request)
            raise
        except IntegrityError as error:
            if "uq_sessions_idempotency" not in str(error.orig):
                raise
            earlier = await self._earlier(caller, idempotency)
            if not earlier:
                raise
            return earlier
        for job in jobs:
            metrics.inference_requests.labels(request.model_id, request.tier, "accepted").inc()
            log.info(
                "inference_accepted",
                request_id=job.request_id,
                model_id=job.model_id,
                user_wallet=wallet,
                api_key_id=caller.key_id,
                tier=job.tier,
                prompt_tokens=job.prompt_tokens,
                max_tokens=job.max_tokens,
            )
        await self._wake_worker(jobs)
        return jobs

    async def _submit_new(
        self, caller: Principal, request: JobRequest, idempotency: Idempotency
    ) -> list[Job]:
        """New jobs. Most of those for which there is no room are refused before they are taken
        in."""
        settings, wallet = self._resources.settings, caller.wallet
        model = self._resources.catalog.get(request.model_id)
        prompt_tokens.check(model, request, settings.limits.max_prompt_chars)
        least = prompt_tokens.least_positions(model, request)
        default = settings.generation.default_max_tokens
        likely = prompt_tokens.likely_positions(model, request, default)
        try:
            await self._early.check(model, wallet, least)
            if not self.under_way.has_room(wallet):
                raise Overloaded(
                    "Too many submissions wait at this gateway. Try again in "
                    f"{WAITING_RETRY} seconds.",
                    retry_after=WAITING_RETRY,
                )
            submission = Submission(model.id, wallet, likely)
            with self.under_way.enter(submission):
                return await self._take_in(submission, caller, model, request, idempotency)
        except Overloaded:
            self._early.watch(model.id)
            raise

    async def _take_in(
        self,
        submission: Submission,
        caller: Principal,
        model: Model,
        request: JobRequest,
        idempotency: Idempotency,
    ) -> list[Job]:
        """Nobody waits with a turn for a prompt to be tokenized, and no prompt is for which there
        is no money."""
        wallet = submission.wallet
        generated = request.generations * (request.max_tokens or 1)
        least = model.prices.most(
            prompt_tokens.least_positions(model, request) - generated, generated
        )
        async with self.balances, self._resources.sessions() as db:
            await ledger.check_available(db, wallet=wallet, amount=least, at_least=True)
            if caller.key_id is not None:
                today = ledger.KeyDay.now(caller.key_id)
                await ledger.check_key(db, today, least, at_least=True)
        if not submission.can_pay:  # others may have come before it meanwhile
            await self._early.check(model, wallet, submission.positions)
            submission.can_pay = True
        prompts = await self._tokenizing.run(wallet, lambda: prompt_tokens.tokenize(model, request))
        async with self._wallets.of(wallet), self._turns:
            quote = await quote_of(self._resources, request, prompts)
            submission.positions = request.choices * sum(each.positions for each in quote.prompts)
            jobs = transaction.new_jobs(self._resources, caller, request, quote, idempotency)
            await transaction.write(self._resources, request, jobs, quote)
        return jobs

    def _count_rejected(self, request: JobRequest) -> None:
        model_id = request.model_id if request.model_id in self._resources.catalog else "unknown"
        metrics.inference_requests.labels(model_id, request.tier, "rejected").inc()

    async def _wake_worker(self, jobs: Sequence[Job]) -> None:
        """The jobs are accepted whether this succeeds or not: the outbox has them."""
        try:
            async with self._turns:
                await outbox.send_outbox(self._resources.sessions, self._resources.queue)
        except OUTAGES as error:
            log.warning("enqueue_failed", request_id=jobs[0].request_id, error=type(error).__name__)

    async def _earlier(self, caller: Principal, idempotency: Idempotency) -> Sequence[Job]:
        """The jobs that the same request has made before; none if it has not."""
        wallet = caller.wallet
        if idempotency.key is not None:
            jobs = await self._jobs(wallet, Job.idempotency_key == idempotency.key)
            if any(job.request_digest not in idempotency.digests for job in jobs):
                raise IdempotencyConflict(
                    "This Idempotency-Key was used for a different request. Use a new key."
                )
            return jobs
        if not idempotency.retry:
            return []
        jobs = await self._jobs(
            wallet,
            Job.request_digest.in_(idempotency.digests),
            Job.api_key_id.is_not_distinct_from(caller.key_id),
            Job.started_at > dt.datetime.now(dt.UTC) - RETRY_WINDOW,
        )
        newest = [job for job in jobs if job.started_at == jobs[-1].started_at]
        # A retry of what has failed, or was cancelled, is another attempt.
        return newest if all(_has_not_failed(job) for job in newest) else []

    async def _jobs(self, wallet: str, *conditions: ColumnElement[bool]) -> Sequence[Job]:
        """Jobs of a wallet, the oldest first, and those of one request in their order."""
        found = (
            select(Job)
            .where(Job.user_wallet == wallet, *conditions)
            .order_by(Job.started_at, Job.choice)
            .options(defer(Job.request_cipher))
        )
        async with self._resources.sessions() as db:
            return (await db.scalars(found)).all()


def _has_not_failed(job: Job) -> bool:
    return job.status != JobStatus.FAILED and not job.cancel_requested
