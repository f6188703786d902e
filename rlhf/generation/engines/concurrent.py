"""Work on the items of an iterator in a limited number of threads, and give out results as soon as they are finished.

`openai_server` uses it. Two things differ from `ThreadPoolExecutor.map`: the iterator is read only when a worker is free, and the
results keep no order. And unlike the executor, it does not wait at exit for a request that hangs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _Job(Generic[T, R]):
    def __init__(self, item: T) -> None:
        self.item = item
        self.result: R | None = None
        self.error: BaseException | None = None


def concurrently(work: Callable[[T], R], items: Iterable[T], limit: int) -> Iterator[tuple[T, R]]:
    """Each item with `work(item)`, in any order. At most `limit` items are read and not yet given out.

    The first exception of `work` is raised here, after the results that are finished by then. If the caller stops early, each
    worker finishes its item, and these results are lost.
    """
    jobs: SimpleQueue[_Job[T, R] | None] = SimpleQueue()
    done: SimpleQueue[_Job[T, R]] = SimpleQueue()

    def worker() -> None:
        while (job := jobs.get()) is not None:
            try:
                job.result = work(job.item)
            except BaseException as error:
                job.error = error
            done.put(job)

    source, pending, threads, more = iter(items), 0, 0, True
    try:
        while more or pending:
            if more and pending < limit and done.empty():  # finished results are given out before more is read
                try:
                    item = next(source)
                except StopIteration:
                    more = False
                    continue
                pending += 1
                if threads < pending:
                    threading.Thread(target=worker, daemon=True).start()
                    threads += 1
                jobs.put(_Job(item))
                continue
            job = done.get()
            pending -= 1
            if job.error is not None:
                while not done.empty():  # finished results are paid for
                    other = done.get()
                    if other.error is None:
                        yield other.item, other.result  # type: ignore[misc]
                raise job.error
            yield job.item, job.result  # type: ignore[misc]
    finally:
        for _ in range(threads):
            jobs.put(None)
