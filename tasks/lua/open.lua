-- Takes a job's stream over for a new attempt: from now on older ones are fenced.
--
-- KEYS[1] meta hash   KEYS[2] log stream   ARGV[1] attempt   ARGV[2] last sequence number of the
-- checkpoint in Postgres   ARGV[3] ttl in ms
--
-- Returns {code, last sequence number}:
--   0 the log is whole: go on after the returned number
--   1 the log may have lost its end (absent, older than the checkpoint, or written by another run of
--     Redis): readers may have seen more, so go on well beyond
--  -1 a newer attempt owns the stream   -2 the stream is final
local attempt = tonumber(ARGV[1])
local meta = redis.call('HMGET', KEYS[1], 'a', 's', 'f', 'r')
local last = tonumber(meta[2] or '0')
if attempt < tonumber(meta[1] or '0') then return {-1, last} end
if meta[3] then return {-2, last} end
local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local is_new = not meta[1] and attempt == 1
local has_log = last == 0 or redis.call('EXISTS', KEYS[2]) == 1
local is_whole = is_new
    or (meta[1] and meta[4] == run_id and has_log and last >= tonumber(ARGV[2]))
redis.call('HSET', KEYS[1], 'a', attempt)
if is_whole then redis.call('HSET', KEYS[1], 's', last, 'r', run_id) end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {is_whole and 0 or 1, last}
