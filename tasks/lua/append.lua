-- Appends events to the streams of some jobs: fenced by attempt, checked against the expected
-- sequence. Each job stands for itself: one that Redis refuses holds up no other.
--
-- KEYS     of each job: meta hash (a: attempt, s: last sequence number, f: final sequence number,
--          r: Redis run id), log stream (entry id `<seq>-0`, field `e`)
-- ARGV[1]  log entries to keep; then, of each job:
--   0 attempt               1 sequence number of the first event given
--   2 1: last event is the final marker
--   3 1: the log was lost: it is to begin with this first event, whatever is left of it
--   4 ttl in ms, 0: as it is    5 channel    6 number of events    7... events, `<type> <json>`
--
-- Returns of each job {code, sequence number}:
--   0 appended   -1 a newer attempt owns the stream   -2 the stream is final   -3 hole: the log is gone,
--   lacks the returned number + 1, or was begun by an older attempt after Redis lost data; the
--   producer begins it anew from memory. Another attempt's events never pass for a repetition of ours.
-- or {-4, what Redis says}: a key that holds something else, no memory, no right.
local max_entries = ARGV[1]

local function begin(meta, log, attempt, owner, first, last)
    -- A repetition that comes late must not take back what was appended after it.
    local entry = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
    if attempt ~= owner or not entry or entry[1] ~= first .. '-0' then
        redis.call('DEL', log)
        last = tonumber(first) - 1
    end
    local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
    redis.call('HSET', meta, 'a', attempt, 'r', run_id)
    return last
end

local function add(log, id, event, must_exist)
    if must_exist then
        return redis.call('XADD', log, 'NOMKSTREAM', 'MAXLEN', '~', max_entries, id, 'e', event)
    end
    return redis.call('XADD', log, 'MAXLEN', '~', max_entries, id, 'e', event)
end

local function append(meta, log, at)
    local attempt, first, num = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 6])
    local known = redis.call('HMGET', meta, 'a', 's', 'f')
    local owner, last = tonumber(known[1] or '0'), tonumber(known[2] or '0')
    local must_exist = false
    if attempt < owner then return {-1, last} end
    if known[3] then return {-2, last} end
    if ARGV[at + 3] == '1' or (not known[2] and first == 1) then
        last = begin(meta, log, attempt, owner, ARGV[at + 1], last)
    elseif attempt > owner or last < first - 1 then
        return {-3, last}
    else
        must_exist = last > 0
    end
    local num_known = last - first + 1
    if must_exist and num_known >= num and redis.call('EXISTS', log) == 0 then return {-3, last} end
    for i = at + 7 + num_known, at + 6 + num do
        -- Only the first can find the log gone: nothing has changed by then.
        if not add(log, (last + 1) .. '-0', ARGV[i], must_exist) then return {-3, last} end
        last = last + 1
        redis.call('PUBLISH', ARGV[at + 5], last .. ' ' .. ARGV[i])
    end
    if ARGV[at + 2] == '1' then
        redis.call('HSET', meta, 's', last, 'f', last)
    else
        redis.call('HSET', meta, 's', last)
    end
    if ARGV[at + 4] ~= '0' then
        redis.call('PEXPIRE', meta, ARGV[at + 4])
        redis.call('PEXPIRE', log, ARGV[at + 4])
    end
    return {0, last}
end

local answers, at = {}, 2
for i = 1, #KEYS, 2 do
    local is_said, answer = pcall(append, KEYS[i], KEYS[i + 1], at)
    if not is_said then
        answer = {-4, type(answer) == 'table' and answer.err or tostring(answer)}
    end
    table.insert(answers, answer)
    at = at + 7 + tonumber(ARGV[at + 6])
end
return answers
