"""How much one person may ask for: a token bucket each."""

import ipaddress
import math
import threading
import time
from collections.abc import Callable

from app.jobs.job import Busy

# More people than this are not remembered at once; those with the fullest buckets are forgotten first.
MAX_PEOPLE = 10_000


class TooMuch(Busy):
    """A request that one person may make again later; `wait_s` seconds from now."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s
        seconds = math.ceil(wait_s)
        wait = f"{seconds} s" if seconds < 120 else f"{math.ceil(seconds / 60)} minutes"
        super().__init__(
            f"That is a lot in a short time. Please try again in {wait}: everybody has a share here, and "
            "yours refills by itself."
        )


class Limits:
    """Buckets that hold a minute's share of `per_minute` denoiser steps, and refill as time passes.

    Whoever has anything left may ask, and goes into debt where it costs more: a request is never too large,
    only too soon. now: the clock, in seconds.
    """

    def __init__(self, per_minute: float, now: Callable[[], float] = time.monotonic) -> None:
        self._share = float(per_minute)
        self._now = now
        self._lock = threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}  # by person: what was left, and when

    def take(self, person: str, steps: float) -> None:
        """Count `steps` of a person's. Raises TooMuch, and counts nothing, where nothing is left."""
        with self._lock:
            left = self._refilled(person)
            if left <= 0:
                raise TooMuch((1 - left) * 60 / self._share)
            self._keep(person, left - steps)

    def charge(self, person: str, steps: float) -> None:
        """Count `steps` that were allowed already."""
        with self._lock:
            self._keep(person, self._refilled(person) - steps)

    def _refilled(self, person: str) -> float:
        left, when = self._left.get(person, (self._share, 0.0))
        return min(self._share, left + (self._now() - when) * self._share / 60)

    def _keep(self, person: str, left: float) -> None:
        self._left[person] = (left, self._now())
        if len(self._left) > MAX_PEOPLE:
            fullest = sorted(self._left, key=self._refilled, reverse=True)
            for other in fullest[: MAX_PEOPLE // 10]:
                del self._left[other]


def address_of(host: str) -> str:
    """Whom an address stands for: itself or, for IPv6, the network of 64 bits that one household has."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)
