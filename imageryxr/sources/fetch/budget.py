"""Limits of a process: requests in flight, per service and in total, and memory of chunks that are being read.

A service is a server or a bucket. Its number of requests follows TCP's rule (additive increase, multiplicative
decrease): it halves when the service throttles, and grows by one after as many successful requests as are in flight.
"""

from __future__ import annotations

import re
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice

from imageryxr.sources.fetch.sockets import POLL_SECONDS, SHORT_SECONDS, Steps, StoppedError, Wait, run
from imageryxr.sources.fetch.url import WebURL

FILE_REQUESTS, SERVICE_REQUESTS = 64, 8
"""Default number of simultaneous requests to an object store or file server, and to a CAVE service."""
PROCESS_REQUESTS, LINK_REQUESTS = 512, 256
"""Largest number of simultaneous requests of a process, and the smaller limit at which requests of links wait."""
MOST_SERVICES = 256
"""Number of services whose limits are kept. A link or a redirect may name any number of buckets."""
MOST_BYTES = 256 << 20
"""Largest number of bytes of chunks that are being fetched or decoded."""
# A chunk is small if it takes at most `MOST_BYTES` divided by this.
_SMALL = 8
THROTTLED = (429, 503)
# Servers with many buckets; the path begins with the name of the bucket. Each bucket has limits of its own.
_BUCKET_SERVERS = re.compile(r"storage\.googleapis\.com|s3([.-][a-z0-9-]+)?\.amazonaws\.com")
_BUCKET = re.compile("/[^/?#]*")


def service_of(url: WebURL) -> str:
    """Return the service of a URL, whose requests are limited together: its server, and its bucket if it has many."""
    bucket = _BUCKET.match(url.path) if _BUCKET_SERVERS.fullmatch(url.host) else None
    return url.netloc + (bucket[0] if bucket else "")


@dataclass(eq=False, slots=True)
class _Ticket:
    """A request, or the bytes of a chunk, that waits for room within a limit."""

    most: int
    """Largest number of requests at once."""
    size: int = 1
    reader: object = None
    """The read that the chunk belongs to."""
    turn: threading.Event | None = None
    """Event that wakes the waiting thread, which then checks whether there is room."""


class _Queue(ABC):
    """Tickets that wait for room, in the order of their arrival."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[_Ticket] = deque()

    @abstractmethod
    def _admissible(self) -> Iterator[_Ticket]:
        """Yield the waiting tickets for which there is room in addition to all earlier ones.

        An earlier ticket keeps its room until its thread takes it.
        """

    @abstractmethod
    def _take(self, ticket: _Ticket, stop: threading.Event) -> None:
        """Count a ticket that leaves the queue."""

    def _enter(self, ticket: _Ticket, stop: threading.Event, host: str) -> Steps[None]:
        with self._lock:
            self._waiting.append(ticket)
        try:
            while not self._is_admitted(ticket, stop):
                if stop.is_set():
                    raise StoppedError(f"{host}: stopped")
                yield Wait(SHORT_SECONDS, block=partial(self._block, ticket), is_queue=True)
        finally:
            with self._lock:
                if ticket in self._waiting:
                    self._waiting.remove(ticket)
                self._call_next()

    def _is_admitted(self, ticket: _Ticket, stop: threading.Event) -> bool:
        with self._lock:
            if ticket not in self._admissible():
                return False
            self._waiting.remove(ticket)
            self._take(ticket, stop)
            return True

    def _call_next(self) -> None:
        for ticket in self._admissible():
            if ticket.turn is not None:
                ticket.turn.set()

    def _block(self, ticket: _Ticket, _: float) -> None:
        with self._lock:
            turn = ticket.turn = threading.Event()
            if ticket in self._admissible():
                return
        turn.wait(POLL_SECONDS)


class RequestBudget(_Queue):
    """The running requests to one service, and how many it accepts."""

    def __init__(self) -> None:
        super().__init__()
        self._running: list[threading.Event] = []
        self._most = 1
        """Largest limit of the requests so far."""
        self._accepted = float("inf")
        self._halved_at = 0.0

    def limit(self, most: int) -> int:
        """Return the number of requests that may run at once; it is less than ``most`` after throttling."""
        return max(1, int(min(most, self._accepted)))

    def acquire(self, most: int, stop: threading.Event, host: str) -> Steps[None]:
        """Wait until fewer requests run than the limit, and count one more; `stop` ends the wait."""
        with self._lock:
            self._most = max(self._most, most)
        yield from self._enter(_Ticket(most), stop, host)

    def _take(self, ticket: _Ticket, stop: threading.Event) -> None:
        self._running.append(stop)

    def release(self, stop: threading.Event) -> None:
        """Stop counting a request, which was acquired with the same event."""
        with self._lock:
            self._running.remove(stop)
            self._call_next()

    def record(self, status: int, most: int, began: float) -> None:
        """Adapt the limit to the status of a response whose request began at a monotonic time."""
        if status not in THROTTLED and self._accepted >= most:
            return
        with self._lock:
            if status in THROTTLED:
                # Requests that were in flight at the same time are throttled for one reason and halve the limit once.
                if began >= self._halved_at:
                    self._accepted = max(1.0, min(self._accepted, most) / 2)
                    self._halved_at = time.monotonic()
            elif self._accepted < most:
                self._accepted += 1 / self._accepted
                self._call_next()

    @property
    def is_running(self) -> bool:
        """Whether there are running or waiting requests."""
        return bool(self._running or self._waiting)

    def _admissible(self) -> Iterator[_Ticket]:
        count, is_exact, largest = len(self._running), False, self.limit(self._most)
        for ticket in self._waiting:
            limit = self.limit(ticket.most)
            if count >= limit and not is_exact:
                # Cancelled requests are not counted, because they may last until their timeout.
                count, is_exact = count - sum(stop.is_set() for stop in self._running), True
            if count >= largest:  # hundreds of threads check their tickets, which must not take all their time
                return
            # A request with a small limit of its own waits without delaying those with a larger one.
            if count < limit:
                count += 1
                yield ticket


class RequestBudgets:
    """The request budgets of all services, and that of the whole process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._whole = RequestBudget()
        self._services: OrderedDict[str, RequestBudget] = OrderedDict()

    def __len__(self) -> int:
        return len(self._services)

    def of(self, service: str) -> RequestBudget:
        """Return the budget of a service; the budgets of the least recently used services are dropped."""
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

    def acquire(
        self, service: str, most: int, stop: threading.Event, host: str, *, from_link: bool
    ) -> Steps[RequestBudget]:
        """Wait until fewer requests run than the limits of the service and of the process, and count one more.

        Requests of links wait at a smaller limit of the process.
        """
        budget = self.of(service)
        yield from budget.acquire(most, stop, host)
        try:
            yield from self._whole.acquire(LINK_REQUESTS if from_link else PROCESS_REQUESTS, stop, host)
        except BaseException:
            budget.release(stop)
            raise
        return budget

    def release(self, budget: RequestBudget, stop: threading.Event) -> None:
        """Stop counting a request, which was acquired with the same event."""
        self._whole.release(stop)
        budget.release(stop)

    @contextmanager
    def slot(
        self, service: str, most: int, stop: threading.Event, host: str, *, from_link: bool
    ) -> Iterator[RequestBudget]:
        """Count one more request in a context; see `acquire`."""
        budget = run(self.acquire(service, most, stop, host, from_link=from_link))
        try:
            yield budget
        finally:
            self.release(budget, stop)


class ByteBudget(_Queue):
    """The bytes that chunks take while they are fetched and decoded.

    One chunk of each read at a time is not counted unless it is large. So no read waits for a slow server from which
    another one reads.
    """

    def __init__(self, most: int = MOST_BYTES) -> None:
        super().__init__()
        self.most, self.used, self.peak = most, 0, 0
        self._uncounted: dict[object, _Ticket] = {}

    def acquire(self, size: int, reader: object, stop: threading.Event) -> Steps[_Ticket]:
        """Wait until there is room for a number of bytes, and reserve it.

        A number above the limit waits until nothing else is reserved.
        """
        ticket = _Ticket(0, size, reader)
        yield from self._enter(ticket, stop, "memory")
        return ticket

    def _admissible(self) -> Iterator[_Ticket]:
        used, is_next, readers = self.used, True, set[object]()
        for ticket in self._waiting:
            if self._is_uncounted(ticket) and ticket.reader not in readers:
                readers.add(ticket.reader)
                yield ticket
            elif is_next and (not used or used + ticket.size <= self.most):
                used += ticket.size
                yield ticket
            else:
                is_next = False

    def _is_uncounted(self, ticket: _Ticket) -> bool:
        return ticket.size <= self.most // _SMALL and ticket.reader not in self._uncounted

    def _take(self, ticket: _Ticket, stop: threading.Event) -> None:
        if self._is_uncounted(ticket):
            self._uncounted[ticket.reader] = ticket
            return
        self.used += ticket.size
        self.peak = max(self.peak, self.used)

    def release(self, ticket: _Ticket) -> None:
        """Release reserved bytes."""
        with self._lock:
            if self._uncounted.get(ticket.reader) is ticket:
                del self._uncounted[ticket.reader]
            else:
                self.used -= ticket.size
            self._call_next()

    @contextmanager
    def reserve(self, size: int, reader: object, stop: threading.Event) -> Iterator[None]:
        """Reserve a number of bytes in a context; see `acquire`."""
        ticket = _Ticket(0, size, reader)
        with closing(self._enter(ticket, stop, "memory")) as steps:
            for _ in steps:
                self._block(ticket, 0)
        try:
            yield
        finally:
            self.release(ticket)
