"""Limits on how often somebody may ask: token buckets, one for each key."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

MAX_KEYS = 10_000  # of whom nothing was heard for longest is forgotten first


class RateLimit:
    """So many requests a second, and a burst at once after a pause."""

    def __init__(
        self, *, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Everybody begins with a full burst.

        Args:
            per_second: Requests that come back in a second, > 0.
            burst: Most at once, >= 1.
            clock: Seconds, never going back.
        """
        self.per_second = per_second
        self.burst = burst
        self._clock = clock
        self._levels: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def wait(self, key: Hashable) -> float:
        """Count a request: 0 if it may pass, else the seconds until the next one may."""
        now = self._clock()
        level, since = self._levels.pop(key, (float(self.burst), now))
        level = min(float(self.burst), level + (now - since) * self.per_second)
        passes = level >= 1
        self._levels[key] = (level - passes, now)
        if len(self._levels) > MAX_KEYS:
            self._levels.popitem(last=False)
        return 0.0 if passes else (1 - level) / self.per_second
