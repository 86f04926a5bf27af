-- Takes from all rate limits of a tenant, or from none of them; or gives back, or only looks.
--
-- KEYS[1] what is used: `<time in us> <requests> <tokens>`
-- ARGV[1] period in us
-- ARGV[2] limit of requests a period, 0: none    ARGV[3] of tokens
-- ARGV[4] requests to take, below 0: to give back, 0: to look    ARGV[5] tokens
--
-- Returns what refused (0: nothing, 1: requests, 2: tokens; of both the one that takes longer to pass)
-- and what is used now, as texts: a reply's numbers are integers.
--
-- This is GCRA, kept as the amount used instead of as the time at which all of it will have come back:
-- an amount is exact where a time in us is rounded. tasks/limits.py does the same sums.

local SLACK = 1e-6 -- sums of fractions are off by less

local period = tonumber(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local elapsed, used = 0, {0, 0}
local kept = redis.call('GET', KEYS[1])
if kept then
  local at, requests, tokens = string.match(kept, '^(%S+) (%S+) (%S+)$')
  elapsed = math.max(0, now - tonumber(at)) -- another server's clock may be behind
  used = {tonumber(requests), tonumber(tokens)}
end

local refused, most, after, ttl = 0, 0, {0, 0}, 0
for i = 1, 2 do
  local limit, amount = tonumber(ARGV[1 + i]), tonumber(ARGV[3 + i])
  if limit > 0 then
    -- No more than the limit, which may have been lowered: nobody waits longer than a period.
    used[i] = math.min(limit, math.max(0, used[i] - elapsed * limit / period))
    after[i] = math.max(0, used[i] + amount)
    ttl = math.max(ttl, after[i] * period / limit)
    local share = after[i] / limit -- the wait is this, less one, in periods
    if after[i] > limit + SLACK and share > most then
      refused, most = i, share
    end
  end
end

if refused == 0 and (tonumber(ARGV[4]) ~= 0 or tonumber(ARGV[5]) ~= 0) then
  used = after
  local text = string.format('%.0f %.17g %.17g', now, used[1], used[2])
  redis.call('SET', KEYS[1], text, 'PX', math.ceil(ttl / 1000) + 1)
end
return {refused, string.format('%.17g', used[1]), string.format('%.17g', used[2])}
