"""Refusals of a moment ago, remembered in Redis for all gateways: whoever would be refused, too, is
so by one short command.

Remembered is from how many positions on jobs of a model are refused: of everybody, or of one wallet
whose earlier jobs are served first. Four times a second one submission is let through and counts
how many more have room; so many are let through, and no more queue for the model's lock.
"""

from redis.asyncio import Redis

from market.jobs.errors import Overloaded
from mesh import redis_keys

REMEMBERED_MS = 10_000
"""Milliseconds for which a refusal is remembered, if nobody counts anew."""

COUNTED_MS = 250
"""Milliseconds after which one submission counts anew."""

_CLAIM = """
local claims, room, full, retry_after = ARGV[2] == '1', {}, false, 0
for _, key in ipairs({KEYS[1], KEYS[2]}) do
    local found = redis.call('HMGET', key, 'positions', 'room', 'retry_after')
    if found[1] and tonumber(ARGV[1]) >= tonumber(found[1]) then
        if tonumber(found[2]) > 0 then
            room[#room + 1] = key
        else
            full = true
            retry_after = math.max(retry_after, tonumber(found[3]))
        end
    end
end
if full then
    if redis.call('EXISTS', KEYS[3]) == 1 then return retry_after end
    if claims then redis.call('SET', KEYS[3], 1, 'PX', ARGV[3]) end
end
if claims then
    for _, key in ipairs(room) do redis.call('HINCRBY', key, 'room', -1) end
end
return full and -1 or 0
"""
"""Seconds after which to ask again; 0 if there is room; -1 if it has to be counted anew. Keys:
refusals of the model and of the wallet, counted. Arguments: positions, whether it claims, ms."""

_REMEMBER = """
local known = tonumber(redis.call('HGET', KEYS[1], 'positions') or ARGV[1])
redis.call('HSET', KEYS[1], 'positions', math.min(known, tonumber(ARGV[1])), 'room', 0,
    'retry_after', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('SET', KEYS[2], 1, 'PX', ARGV[4])
"""
"""Keys: refusals, counted. Arguments: positions, seconds after which to ask again, ms, ms."""


async def check(redis: Redis, model_id: str, wallet: str, positions: int) -> None:
    """
    Args:
        positions: Positions of the job, or fewer if they are not known yet.

    Raises:
        Overloaded: the job would be refused.
    """
    await _ask(redis, model_id, wallet, positions, claims=False)


async def claim(redis: Redis, model_id: str, wallet: str, positions: int) -> bool:
    """Take the room of one job.

    Returns:
        Whether it is not known if there is room: whoever is admitted has to :func:`set_room`.

    Raises:
        Overloaded: the job would be refused.
    """
    return await _ask(redis, model_id, wallet, positions, claims=True)


async def _ask(redis: Redis, model_id: str, wallet: str, positions: int, *, claims: bool) -> bool:
    answer: int = await redis.eval(  # type: ignore[misc]
        _CLAIM,
        3,
        redis_keys.overload(model_id),
        redis_keys.overload_of_wallet(model_id, wallet),
        redis_keys.room_counted(model_id),
        str(positions),
        str(int(claims)),
        str(COUNTED_MS),
    )
    if answer > 0:
        raise overloaded(model_id, answer)
    return answer < 0


async def set_room(redis: Redis, model_id: str, wallet: str, jobs: int) -> None:
    """So many more jobs have room, of the wallet and of all together."""
    async with redis.pipeline(transaction=True) as pipe:
        for key in (redis_keys.overload(model_id), redis_keys.overload_of_wallet(model_id, wallet)):
            pipe.hset(key, "room", str(jobs))
            pipe.pexpire(key, REMEMBERED_MS)
        await pipe.execute()


async def remember(
    redis: Redis, model_id: str, wallet: str | None, positions: int, retry_after: int
) -> None:
    """Remember that jobs of so many positions are refused: the wallet's, or everybody's."""
    if wallet is None:
        key = redis_keys.overload(model_id)
    else:
        key = redis_keys.overload_of_wallet(model_id, wallet)
    await redis.eval(  # type: ignore[misc]
        _REMEMBER,
        2,
        key,
        redis_keys.room_counted(model_id),
        str(positions),
        str(retry_after),
        str(REMEMBERED_MS),
        str(COUNTED_MS),
    )


def overloaded(model_id: str, retry_after: int) -> Overloaded:
    """The refusal of a job that would start too late, with the seconds after which to ask again."""
    return Overloaded(
        f"{model_id} has more to do than it can begin soon. Try again in {retry_after} seconds.",
        retry_after=retry_after,
    )
