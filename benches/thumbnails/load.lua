-- For wrk, one connection a thread: `wrk -s load.lua ADDRESS -- FOLDER EVERY`. FOLDER holds the uploads
-- `good` and `crash`, and `expected`, the thumbnail of `good`; one request in EVERY is `crash`, none if it is 0.
-- It prints a line of JSON: how many answers were right, and how long the good ones took.
--
-- wrk's own figures do not tell the requests apart, so each is timed here.

local ffi = require("ffi")
ffi.cdef [[
    struct moment { long seconds; long nanoseconds; };
    int clock_gettime(int clock, struct moment *now);
]]
local CLOCK_MONOTONIC = 1

local threads = {}

function setup(thread)
    thread:set("number", #threads)
    threads[#threads + 1] = thread
end

local function read(path)
    local file = assert(io.open(path, "rb"))
    local bytes = file:read("*a")
    file:close()
    return bytes
end

function init(arguments)
    local folder = arguments[1]
    every = tonumber(arguments[2])
    expected = read(folder .. "/expected")
    good = wrk.format("POST", "/thumbnail?width=96&height=96", nil, read(folder .. "/good"))
    crash = wrk.format("POST", "/thumbnail?width=96&height=96", nil, read(folder .. "/crash"))
    sent, right, wrong, crashed, not_crashed, times = number * 25, 0, 0, 0, 0, {}
    now = ffi.new("struct moment")
end

local function microseconds()
    ffi.C.clock_gettime(CLOCK_MONOTONIC, now)
    return tonumber(now.seconds) * 1e6 + tonumber(now.nanoseconds) / 1e3
end

function request()
    sent = sent + 1
    is_crash = every > 0 and sent % every == 0
    start = microseconds()
    return is_crash and crash or good
end

function response(status, headers, body)
    local took = microseconds() - start
    if is_crash then
        local is_told = status == 500 and body:find('"worker-crashed"', 1, true)
        if is_told then crashed = crashed + 1 else not_crashed = not_crashed + 1 end
    elseif status == 200 and body == expected then
        right = right + 1
        times[#times + 1] = took
    else
        wrong = wrong + 1
    end
end

local function sum(name)
    local total = 0
    for _, thread in ipairs(threads) do total = total + thread:get(name) end
    return total
end

function done(summary, latency, requests)
    local all = {}
    for _, thread in ipairs(threads) do
        for _, took in ipairs(thread:get("times")) do all[#all + 1] = took end
    end
    table.sort(all)
    local function at(part) return all[math.max(1, math.ceil(#all * part))] or 0 end
    local errors = summary.errors
    print(string.format(
        '{"seconds": %f, "right": %d, "wrong": %d, "crashed": %d, "not_crashed": %d, "lost": %d, ' ..
        '"p50": %f, "p90": %f, "p99": %f, "p99.9": %f, "max": %f}',
        summary.duration / 1e6, sum("right"), sum("wrong"), sum("crashed"), sum("not_crashed"),
        errors.connect + errors.read + errors.write + errors.timeout,
        at(0.5), at(0.9), at(0.99), at(0.999), at(1)))
end
