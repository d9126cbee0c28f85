"""Many small pieces of work in a few threads, in order and never far ahead of what is done.

with Workers(4) as workers:
    for nbytes in workers.each(parts): ...
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

# Small tensors share a task: handing one over costs as much as copying some kilobytes.
_TASK_BYTES = 1 << 22

Part = tuple[int, Callable[[], None]]
"""Bytes that will be written, and what writes them."""


class Workers:
    """`n` threads. Work already begun is finished before the `with` block is left, even by an error."""

    def __init__(self, n: int) -> None:
        self._ahead = 2 * n
        self._threads = ThreadPoolExecutor(n, thread_name_prefix="convert")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._threads.shutdown(cancel_futures=True)

    def each(self, parts: Iterable[Part]) -> Iterator[int]:
        """Do all parts; yields the bytes of each task, a few parts together, in their order. Raises what a part raises; no other begins."""
        waiting: deque[tuple[int, Future[None]]] = deque()
        try:
            for nbytes, works in _tasks(parts):
                waiting.append((nbytes, self._threads.submit(_do, works)))
                if len(waiting) > self._ahead:
                    yield _finished(waiting)
            while waiting:
                yield _finished(waiting)
        finally:
            for _, future in waiting:
                future.cancel()


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """torch computes in the thread that calls it: the threads are the parallelism."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tasks(parts: Iterable[Part]) -> Iterator[tuple[int, list[Callable[[], None]]]]:
    nbytes, works = 0, []
    for size, work in parts:
        works.append(work)
        nbytes += size
        if nbytes >= _TASK_BYTES:
            yield nbytes, works
            nbytes, works = 0, []
    if works:
        yield nbytes, works


def _do(works: list[Callable[[], None]]) -> None:
    for work in works:
        work()


def _finished(waiting: deque[tuple[int, Future[None]]]) -> int:
    nbytes, future = waiting[0]
    future.result()
    waiting.popleft()
    return nbytes
