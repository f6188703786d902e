"""When to ask again: which faults may pass, how long to wait, and how fast requests may follow each other.

`openai_server` uses it. The wait doubles with each try, and half of it is random ("equal jitter"): clients that failed together
do not come back together. If the server sends Retry-After, all workers wait so long.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

FIRST_WAIT = 0.5  # seconds, doubled with each further try
LONGEST_WAIT = 60.0
LONGEST_RETRY_AFTER = 600.0  # if a server names a longer time, it is asked again after this

# Request Timeout, Conflict (a lock, says OpenAI's client), Too Early, Too Many Requests, and anything the server did wrong
PASSING = frozenset({408, 409, 425, 429})


def passes(status: int) -> bool:
    """Whether the same request may be answered later. 501 says that it never will be."""
    return status in PASSING or (status >= 500 and status != 501)


def backoff(tries: int) -> float:
    """Seconds to wait after `tries` failures (>= 1)."""
    longest = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(tries - 1, 30))
    return longest * random.uniform(0.5, 1.0)


def retry_after(value: str | None, *, now: Callable[[], float] = time.time) -> float | None:
    """Seconds that a Retry-After header asks for (a number, or a date: RFC 9110, 10.2.3); None if it cannot be read."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER) if seconds == seconds else None


class Pace:
    """Spaces the requests of any number of threads evenly: at most `per_minute` (None: no limit).

    `sleep` may return early, when everything stops. It and the clock are arguments so that tests need not wait.
    """

    def __init__(
        self,
        per_minute: int | None,
        *,
        sleep: Callable[[float], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._sleep, self._clock = sleep, clock
        self._lock = threading.Lock()
        self._next = float("-inf")

    def wait(self) -> None:
        """Block until this request may go."""
        with self._lock:
            now = self._clock()
            at = max(now, self._next)
            self._next = at + self._interval
        if at > now:
            self._sleep(at - now)

    def hold(self, seconds: float) -> None:
        """Let no request go for so long. The server said it to one worker and means all."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)
