"""Reading the next pictures while one is predicted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

COUNT = 2  # pictures that wait while one is predicted

T = TypeVar("T")
Made = TypeVar("Made")


def ahead(make: Callable[[T], Made], items: Iterable[T], *, count: int = COUNT) -> Iterator[tuple[T, Future[Made]]]:
    """Every item with what `make` gives for it, or raises, in order; `count` of them are made ahead on a thread."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque[tuple[T, Future[Made]]]()
        try:
            for item in items:
                waiting.append((item, pool.submit(make, item)))
                if len(waiting) > count:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, future in waiting:
                future.cancel()
