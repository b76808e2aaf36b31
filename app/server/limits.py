"""Rate limits: a token bucket for each person."""

import ipaddress
import math
import threading
import time
from collections.abc import Callable
from typing import Any

from app.jobs.job import Busy

# Maximum number of buckets; the fullest are forgotten first.
MAX_PEOPLE = 10_000
# Less than this is nothing left; it is one, but for rounding.
ONE = 1 - 1e-6


class LimitReached(Busy):
    """A person has used up their share, and may ask again in `wait_s` seconds."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s
        seconds = math.ceil(wait_s)
        wait = f"{seconds} s" if seconds < 120 else f"{math.ceil(seconds / 60)} minutes"
        super().__init__(
            f"You have used up your share for now. Please try again in {wait}: everybody has the same share "
            "here, and yours refills by itself."
        )


class Limits:
    """Buckets that hold a share, such as a minute's denoiser steps, and refill as time passes.

    A person with anything left may ask for more than that and goes into debt: no request is too large.

    Args:
        share: what each person may have in `per_s` seconds.
        now: the clock, in seconds.
    """

    def __init__(self, share: float, now: Callable[[], float] = time.monotonic, per_s: float = 60.0) -> None:
        self._share, self._per_s = float(share), per_s
        self._now = now
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}  # by person: what is left, and when that was

    def take(self, person: str, amount: float) -> None:
        """Charge a person. Raises LimitReached, and charges nothing, if nothing is left."""
        with self._lock:
            left = self._left(person)
            if left < ONE:
                raise LimitReached((1 - left) * self._per_s / self._share)
            self._set(person, left - amount)

    def charge(self, person: str, amount: float) -> None:
        """Charge a person what was allowed already."""
        with self._lock:
            self._set(person, self._left(person) - amount)

    def _left(self, person: str) -> float:
        left, when = self._buckets.get(person, (self._share, 0.0))
        return min(self._share, left + (self._now() - when) * self._share / self._per_s)

    def _set(self, person: str, left: float) -> None:
        self._buckets[person] = (left, self._now())
        if len(self._buckets) > MAX_PEOPLE:
            fullest = sorted(self._buckets, key=self._left, reverse=True)
            for other in fullest[: MAX_PEOPLE // 10]:
                del self._buckets[other]


def address_of(request: Any) -> str:
    """Return whom a request of Starlette's or Gradio's counts for, see `network_of`; "" without a client."""
    client = getattr(request, "client", None)
    return network_of(client.host) if client else ""


def person_of(request: Any) -> str:
    """Return whom a gr.Request counts for: the login or, without one, the address; "" without a request."""
    return str(getattr(request, "username", None) or address_of(request))


def network_of(host: str) -> str:
    """Return the key of an address for limits: itself or, for IPv6, its /64 network."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)
