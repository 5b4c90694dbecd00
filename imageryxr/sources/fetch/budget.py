"""Limits of a process: requests in flight, to each service and in all, and bytes in memory of chunks that are read.

A service is a server or a bucket. Its number of requests follows TCP's rule (additive increase, multiplicative
decrease): it halves when the service throttles, and grows by one after as many successful requests as are in flight.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

from imageryxr.sources.fetch.sockets import POLL_SECONDS, StoppedError
from imageryxr.sources.fetch.url import WebURL

FILE_REQUESTS, SERVICE_REQUESTS = 64, 8
"""Default number of simultaneous requests to an object store or file server, and to a CAVE service."""
PROCESS_REQUESTS, LINK_REQUESTS = 512, 256
"""Largest number of simultaneous requests of a process, and that at which those of links wait: each is a socket."""
MOST_SERVICES = 256
"""Number of services whose limits are kept. A link or a redirect may name any number of buckets."""
MOST_BYTES = 256 << 20
"""Largest number of bytes of chunks that are being fetched or decoded."""
THROTTLED = (429, 503)
# Servers of many buckets, which begin the path. The limits of a store are those of one bucket.
_BUCKET_SERVERS = re.compile(r"storage\.googleapis\.com|s3([.-][a-z0-9-]+)?\.amazonaws\.com")
_BUCKET = re.compile("/[^/?#]*")


def service_of(url: WebURL) -> str:
    """Return the service of a URL, whose requests are limited together: its server, and its bucket if it has many."""
    bucket = _BUCKET.match(url.path) if _BUCKET_SERVERS.fullmatch(url.host) else None
    return url.netloc + (bucket[0] if bucket else "")


class RequestBudget:
    """The running requests to one service, and how many it accepts."""

    def __init__(self) -> None:
        self._free = threading.Condition(threading.Lock())
        self._running: list[threading.Event] = []
        self._accepted = float("inf")
        self._halved_at = 0.0

    def limit(self, most: int) -> int:
        """Return the number of requests that may run at once; it is less than ``most`` after throttling."""
        return max(1, int(min(most, self._accepted)))

    def acquire(self, most: int, stop: threading.Event, host: str) -> None:
        """Wait until fewer requests run than the limit, and count one more; `stop` cancels it."""
        with self._free:
            while len(self._running) >= self.limit(most) and self._busy >= self.limit(most):
                if stop.is_set():
                    raise StoppedError(f"{host}: stopped")
                self._free.wait(POLL_SECONDS)
            self._running.append(stop)

    def release(self, stop: threading.Event) -> None:
        """Count one request less."""
        with self._free:
            self._running.remove(stop)
            self._free.notify()

    def record(self, status: int, most: int, began: float) -> None:
        """Adapt the limit to the status of a response whose request began at a monotonic time."""
        if status not in THROTTLED and self._accepted >= most:
            return
        with self._free:
            if status in THROTTLED:
                # The requests that were in flight together with a throttled one are throttled for the same reason.
                if began >= self._halved_at:
                    self._accepted = max(1.0, min(self._accepted, most) / 2)
                    self._halved_at = time.monotonic()
            elif self._accepted < most:
                self._accepted += 1 / self._accepted
                self._free.notify()

    @property
    def is_running(self) -> bool:
        """Whether there are running requests."""
        return bool(self._running)

    @property
    def _busy(self) -> int:
        # A cancelled request may last until its timeout.
        return sum(not stop.is_set() for stop in self._running)


class RequestBudgets:
    """The running requests of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._whole = RequestBudget()
        self._services: OrderedDict[str, RequestBudget] = OrderedDict()

    def __len__(self) -> int:
        return len(self._services)

    def of(self, service: str) -> RequestBudget:
        """Return the budget of a service; those that were not used for a long time are dropped."""
        with self._lock:
            found = self._services.get(service)
            if found is None:
                found = self._services[service] = RequestBudget()
            self._services.move_to_end(service)
            extra = len(self._services) - MOST_SERVICES
            if extra > 0:
                idle = (name for name, kept in self._services.items() if kept is not found and not kept.is_running)
                for name in list(islice(idle, extra)):
                    del self._services[name]
            return found

    @contextmanager
    def slot(
        self, service: str, most: int, stop: threading.Event, host: str, *, from_link: bool
    ) -> Iterator[RequestBudget]:
        """Wait until fewer requests run than the limits of the service and of the process, and count one more."""
        budget = self.of(service)
        whole = LINK_REQUESTS if from_link else PROCESS_REQUESTS
        budget.acquire(most, stop, host)
        try:
            self._whole.acquire(whole, stop, host)
            try:
                yield budget
            finally:
                self._whole.release(stop)
        finally:
            budget.release(stop)


class ByteBudget:
    """The bytes that chunks take while they are fetched and decoded."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self.most, self.used, self.peak = most, 0, 0
        self._free = threading.Condition()

    @contextmanager
    def reserve(self, count: int, stop: threading.Event) -> Iterator[None]:
        """Wait until there is room for a number of bytes; one above the limit waits until nothing else is reserved."""
        with self._free:
            while self.used and self.used + count > self.most:
                if stop.is_set():
                    raise StoppedError("stopped")
                self._free.wait(POLL_SECONDS)
            self.used += count
            self.peak = max(self.peak, self.used)
        try:
            yield
        finally:
            with self._free:
                self.used -= count
                self._free.notify_all()
