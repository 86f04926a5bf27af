-- Appends events to the streams of some jobs: fenced by attempt, checked against the expected
-- sequence. Each job stands for itself: one that Redis refuses holds up no other.
--
-- KEYS     of each job: meta hash `<channel>:meta` (a: attempt, s: last sequence number, f: final
--          sequence number, r: Redis run id), log stream (entry id `<seq>-0`, field `e`)
-- ARGV[1]  log entries to keep; then, of each job, six numbers in one word and the events:
--   attempt    sequence number of the first event given    number of events
--   1: the last event is the final marker
--   1: the log was lost: it is to begin with this first event, whatever is left of it
--   ttl in ms, 0: as it is
--   then each event, `<type> <json>`
-- One word, since packing the words is most of what a call costs a worker.
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
    if attempt ~= owner or not entry or entry[1] ~= string.format('%.0f-0', first) then
        redis.call('DEL', log)
        last = first - 1
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

local function append(meta, log, at, attempt, first, num, is_final, resets_log, ttl)
    local known = redis.call('HMGET', meta, 'a', 's', 'f')
    local owner, last = tonumber(known[1] or '0'), tonumber(known[2] or '0')
    local must_exist = false
    if attempt < owner then return {-1, last} end
    if known[3] then return {-2, last} end
    if resets_log or (not known[2] and first == 1) then
        last = begin(meta, log, attempt, owner, first, last)
    elseif attempt > owner or last < first - 1 then
        return {-3, last}
    else
        must_exist = last > 0
    end
    local num_known = last - first + 1
    if must_exist and num_known >= num and redis.call('EXISTS', log) == 0 then return {-3, last} end
    local channel = string.sub(meta, 1, -6)
    for i = at + num_known, at + num - 1 do
        -- Only the first can find the log gone: nothing has changed by then.
        if not add(log, (last + 1) .. '-0', ARGV[i], must_exist) then return {-3, last} end
        last = last + 1
        redis.call('PUBLISH', channel, last .. ' ' .. ARGV[i])
    end
    if is_final then
        redis.call('HSET', meta, 's', last, 'f', last)
    else
        redis.call('HSET', meta, 's', last)
    end
    if ttl ~= '0' then
        redis.call('PEXPIRE', meta, ttl)
        redis.call('PEXPIRE', log, ttl)
    end
    return {0, last}
end

local answers, at = {}, 2
for i = 1, #KEYS, 2 do
    local attempt, first, num, is_final, resets_log, ttl =
        string.match(ARGV[at], '^(%d+) (%d+) (%d+) (%d) (%d) (%d+)$')
    local is_said, answer = pcall(
        append, KEYS[i], KEYS[i + 1], at + 1, tonumber(attempt), tonumber(first), tonumber(num),
        is_final == '1', resets_log == '1', ttl)
    if not is_said then
        answer = {-4, type(answer) == 'table' and answer.err or tostring(answer)}
    end
    table.insert(answers, answer)
    at = at + 1 + tonumber(num)
end
return answers
