"""Python's process pools, measured when asked.

Arguments: the kind of pool (executor or pool) and its number of workers. Each line on standard
input is a question; its answer is a line of numbers. The end of the input ends the program.
"""

import collections
import concurrent.futures
import multiprocessing
import os
import sys
import time

# The quickest way to start workers, and one in which what is given with `-c` can be a task.
CONTEXT = multiprocessing.get_context("fork")


def same(value):
    return value


class Executor:
    """concurrent.futures.ProcessPoolExecutor"""

    def __init__(self, workers):
        self.pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=CONTEXT)

    def submit(self, function, argument):
        return self.pool.submit(function, argument).result

    def close(self):
        self.pool.shutdown()


class Pool:
    """multiprocessing.Pool"""

    def __init__(self, workers):
        self.pool = CONTEXT.Pool(workers)

    def submit(self, function, argument):
        return self.pool.apply_async(function, (argument,)).get

    def map(self, function, items):
        return self.pool.map(function, items)

    def close(self):
        self.pool.terminate()
        self.pool.join()


def rate(pool, window, tasks):
    """Tasks a second with so many in flight."""
    begin = time.perf_counter()
    flying = collections.deque()
    for n in range(tasks):
        if len(flying) == window:
            flying.popleft()()
        flying.append(pool.submit(same, n))
    while flying:
        flying.popleft()()
    yield tasks / (time.perf_counter() - begin)


def latency(pool, tasks):
    """The median and the 99th percentile of one task's time, in microseconds."""
    times = []
    for n in range(tasks):
        begin = time.perf_counter()
        pool.submit(same, n)()
        times.append(1e6 * (time.perf_counter() - begin))
    times.sort()
    yield times[tasks // 2]
    yield times[tasks * 99 // 100]


def echo(pool, size, tasks):
    """GiB a second, each way."""
    data = bytes(size)
    begin = time.perf_counter()
    for _ in range(tasks):
        data = pool.submit(same, data)()
    assert len(data) == size
    yield 2 * size * tasks / (time.perf_counter() - begin) / 2**30


def map_items(pool, items):
    """Items a second."""
    begin = time.perf_counter()
    results = pool.map(same, range(items))
    yield items / (time.perf_counter() - begin)
    assert len(results) == items


def start(pool, kind):
    """Milliseconds from a new pool to its first result."""
    begin = time.perf_counter()
    fresh = kind(1)
    fresh.submit(same, 1)()
    yield 1e3 * (time.perf_counter() - begin)
    fresh.close()


def pid(pool):
    """The process of a worker."""
    yield pool.submit(worker, None)()


def worker(_):
    return os.getpid()


def main():
    kind = {"executor": Executor, "pool": Pool}[sys.argv[1]]
    pool = kind(int(sys.argv[2]))
    pool.submit(same, 0)()
    measures = {"rate": rate, "latency": latency, "echo": echo, "map": map_items, "pid": pid}
    for line in sys.stdin:
        name, *numbers = line.split()
        if name == "start":
            answer = start(pool, kind)
        else:
            answer = measures[name](pool, *map(int, numbers))
        print(*answer, flush=True)
    pool.close()


main()
