"""Many requests in one thread, which does the next step of each when its socket is ready.

64 threads with one request each wake up at the same time and compete for the interpreter lock at every system call,
which takes longer than the requests. Here a few threads take turns: one waits for the sockets, while the others handle
the results of requests that have ended. When there is none, the others wait for their turn.
"""

from __future__ import annotations

import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from imageryxr.sources.fetch.sockets import POLL_SECONDS, SHORT_SECONDS, Steps, StoppedError, Wait

Job = TypeVar("Job")
Result = TypeVar("Result")
IS_SUPPORTED = hasattr(select, "poll")


@dataclass(slots=True)
class _Task(Generic[Job, Result]):
    job: Job
    steps: Steps[Result]
    is_queued: bool = False
    """Whether the request waits for other requests to end."""
    wake: float = 0.0
    """Monotonic time at which the next step is executed even if the socket is not ready."""
    fd: int = -1
    """File descriptor of the socket that the request waits for."""


class Lanes(Generic[Job, Result]):
    """Requests that run at once, up to a width, in the few threads that call `work`.

    Parameters
    ----------
    jobs : iterable
        Job of each request.
    width : int
        Largest number of requests at once.
    threads : int
        Number of threads that call `work`. One of them always waits for the sockets.
    start : callable
        Returns the steps of the request of a job.
    finish : callable
        Receives a job and the result of its request.
    discard : callable
        Releases a result after `finish`, or instead of `finish` if another request has failed.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        width: int,
        threads: int,
        *,
        start: Callable[[Job, threading.Event], Steps[Result]],
        finish: Callable[[Job, Result], None],
        discard: Callable[[Result], None],
    ) -> None:
        self._jobs, self._width = deque(jobs), width
        self._start, self._finish, self._discard = start, finish, discard
        self._turn, self._count = threading.Lock(), threading.Lock()
        self._poll = select.poll()
        self._on_socket: dict[int, _Task[Job, Result]] = {}
        self._asleep: list[_Task[Job, Result]] = []
        self._ended: deque[tuple[Job, Result]] = deque()
        self._failed: list[BaseException] = []
        self._checked_at = time.monotonic()
        self._finishing, self._most_finishing = 0, max(1, threads - 1)

    def work(self, _: object, stop: threading.Event) -> None:
        """Do the steps of requests, and finish those that have ended, until there are none."""
        try:
            while True:
                ended = None if stop.is_set() else self._take_ended()
                if ended is None:
                    with self._turn:
                        ended = self._next_ended(stop)
                if ended is None:
                    return
                job, result = ended
                try:
                    self._finish(job, result)
                finally:
                    self._discard(result)
                    with self._count:
                        self._finishing -= 1
        except BaseException:
            # If another thread has the turn, it closes the sockets when it is stopped.
            if self._turn.acquire(blocking=False):
                self._close()
                self._turn.release()
            raise

    def _next_ended(self, stop: threading.Event) -> tuple[Job, Result] | None:
        while True:
            if stop.is_set():
                raise StoppedError("stopped")
            self._start_jobs(stop)
            if self._failed:
                raise self._failed[0]
            if not (self._jobs or self._on_socket or self._asleep or self._ended):
                return None
            if self._ended and self._finishing < self._most_finishing:
                self._wait(0.0)  # start further requests before the result is handled
                ended = self._take_ended()
                if ended is not None:
                    return ended
            is_short = bool(self._asleep or self._ended)
            self._wait(SHORT_SECONDS if is_short else POLL_SECONDS)

    def _take_ended(self) -> tuple[Job, Result] | None:
        """Return a job whose request has ended and its result; None if none has or enough threads handle results."""
        with self._count:
            if not self._ended or self._finishing >= self._most_finishing:
                return None
            self._finishing += 1
            return self._ended.popleft()

    def _start_jobs(self, stop: threading.Event) -> None:
        while self._jobs and len(self._on_socket) + len(self._asleep) < self._width:
            if any(task.is_queued for task in self._asleep):
                return
            job = self._jobs.popleft()
            self._advance(_Task(job, self._start(job, stop)))

    def _wait(self, seconds: float) -> None:
        """Execute the next steps of the requests whose sockets become ready in time, or whose wait has ended."""
        for fd, _ in self._poll.poll(seconds * 1000):
            self._poll.unregister(fd)
            self._advance(self._on_socket.pop(fd))
        now = time.monotonic()
        for task in [task for task in self._asleep if task.wake <= now]:
            self._asleep.remove(task)
            self._advance(task)
        if now - self._checked_at > POLL_SECONDS / 2:  # the next step of a task raises if its deadline has passed
            self._checked_at = now
            for task in [task for task in self._on_socket.values() if task.wake <= now]:
                self._poll.unregister(task.fd)
                del self._on_socket[task.fd]
                self._advance(task)

    def _advance(self, task: _Task[Job, Result]) -> None:
        try:
            wait = next(task.steps)
        except StopIteration as end:
            self._ended.append((task.job, end.value))
        except BaseException as error:
            self._failed.append(error)
        else:
            self._suspend(task, wait)

    def _suspend(self, task: _Task[Job, Result], wait: Wait) -> None:
        task.wake, task.is_queued = time.monotonic() + wait.seconds, wait.is_queue
        if wait.sock is None:
            self._asleep.append(task)
            return
        task.fd = wait.sock.fileno()
        self._poll.register(task.fd, select.POLLOUT if wait.is_write else select.POLLIN)
        self._on_socket[task.fd] = task

    def _close(self) -> None:
        tasks = [*self._on_socket.values(), *self._asleep]
        with self._count:  # other threads take results at the same time
            results = [result for _, result in self._ended]
            self._ended.clear()
        for group in (self._on_socket, self._asleep, self._jobs):
            group.clear()
        for task in tasks:
            task.steps.close()
        for result in results:
            self._discard(result)
