-- Appends events to one job's stream: fenced by attempt, checked against the expected sequence.
--
-- KEYS[1] meta hash (a: attempt, s: last sequence number, f: final sequence number, r: Redis run id)
-- KEYS[2] log stream, entry id `<seq>-0`, field `e`
-- ARGV[1] attempt            ARGV[2] sequence number of the first event given
-- ARGV[3] 1: last event is the final marker
-- ARGV[4] 1: the log was lost: it is to begin with this first event, whatever is left of it
-- ARGV[5] ttl in ms          ARGV[6] log entries to keep
-- ARGV[7] channel            ARGV[8...] events, `<type> <json>`
--
-- Returns {code, sequence number}:
--   0 appended   -1 a newer attempt owns the stream   -2 the stream is final   -3 hole: the log is gone,
--   lacks the returned number + 1, or was begun by an older attempt after Redis lost data; the
--   producer begins it anew from memory. Another attempt's events never pass for a repetition of ours.
local attempt, first = tonumber(ARGV[1]), tonumber(ARGV[2])
local meta = redis.call('HMGET', KEYS[1], 'a', 's', 'f')
local owner, last = tonumber(meta[1] or '0'), tonumber(meta[2] or '0')
if attempt < owner then return {-1, last} end
if meta[3] then return {-2, last} end
if ARGV[4] == '1' or (not meta[2] and first == 1) then
    -- A repetition that comes late must not take back what was appended after it.
    local entry = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
    if attempt ~= owner or not entry or entry[1] ~= ARGV[2] .. '-0' then
        redis.call('DEL', KEYS[2])
        last = first - 1
    end
    local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
    redis.call('HSET', KEYS[1], 'a', attempt, 'r', run_id)
elseif attempt > owner or last < first - 1
    or (last > 0 and redis.call('EXISTS', KEYS[2]) == 0) then
    return {-3, last}
end
for i = 8 + (last - first + 1), #ARGV do
    last = last + 1
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], last .. '-0', 'e', ARGV[i])
    redis.call('PUBLISH', ARGV[7], last .. ' ' .. ARGV[i])
end
redis.call('HSET', KEYS[1], 's', last)
if ARGV[3] == '1' then redis.call('HSET', KEYS[1], 'f', last) end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return {0, last}
