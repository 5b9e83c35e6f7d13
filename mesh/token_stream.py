"""The script that appends a token once, and the stream's IDs."""

APPEND_TOKEN = """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return -1 end
local length = redis.call('XLEN', KEYS[2])
local index = tonumber(ARGV[2])
if index < length then return 0 end
if index > length then return -1 end
local id = (index + 1) .. '-0'
if ARGV[5] and ARGV[5] ~= '' then
    redis.call('XADD', KEYS[2], id, 'i', ARGV[3], 't', ARGV[4], 'p', ARGV[5])
else
    redis.call('XADD', KEYS[2], id, 'i', ARGV[3], 't', ARGV[4])
end
if index == 0 then
    local now = redis.call('TIME')
    redis.call('HSET', KEYS[1], 'first', now[1] .. '.' .. string.format('%06d', now[2]))
end
return 1
"""
"""1: written. 0: the token was there already. -1: the writer's epoch is over; it must forget the
generation. Keys: live record, token stream. Arguments: epoch, index, token id, text, and its packed
log-probabilities if there are any."""


START = "0-0"
"""The ID before the first token's."""


def token_count_at(entry_id: str) -> int:
    """Number of tokens in the stream up to and with an ID."""
    return int(entry_id.partition("-")[0])
