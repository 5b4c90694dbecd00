"""Whether the workers of a cluster, and its scheduler, can import the package."""

from __future__ import annotations

import threading
import time
import uuid
from contextlib import suppress
from typing import Any

from imageryxr.errors import TargetError

# Pickled by name from Python itself, so that a process without the package can run it.
_IMPORT = "__import__('imageryxr') and ''"
ANSWER_SECONDS = 15.0
"""Seconds that answers are waited for; a worker that does not answer is left to the scheduler."""
PAUSE_SECONDS, FIRST_PAUSE_SECONDS = 2.0, 0.2
"""Seconds between two looks for workers that have joined, and between those for the first one."""


class Probe:
    """Checks that each process of a cluster can import the package.

    A worker without the package ends when it gets a task of an export, and its nanny starts it again for ever. So no
    region is handed out before one worker has passed; where there is none yet, a task that needs no package waits for
    the first one, so that clusters that grow with their tasks start one.

    Parameters
    ----------
    client : distributed.Client
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._checked = set[str]()
        self._scheduler_checked = False
        self._next = 0.0
        self._waiting: Any = None

    def is_passed(self) -> bool:
        """Return whether a worker can import the package, or does not answer.

        Raises
        ------
        TargetError
            If a process of the cluster cannot import the package.
        """
        self.check()
        if self._checked:
            self._waiting = None
        elif self._waiting is None and self._client.status == "running":
            self._waiting = self._client.submit(eval, _IMPORT, key=f"imageryxr-probe-{uuid.uuid4().hex}", pure=False)
        return bool(self._checked)

    def check(self) -> None:
        """Check the workers that have joined; raise `TargetError` if a process cannot import the package."""
        if time.monotonic() < self._next or self._client.status != "running":
            return
        answers: dict[str, Any] = {}
        asking = threading.Thread(target=self._collect, args=(answers,), daemon=True)
        asking.start()
        asking.join(ANSWER_SECONDS)
        self._next = time.monotonic() + (PAUSE_SECONDS if self._checked else FIRST_PAUSE_SECONDS)
        lacking = {place: error for place, error in list(answers.items()) if isinstance(error, ImportError)}
        if lacking:
            raise TargetError(_message(lacking))
        if asking.is_alive():
            self._checked.add("no answer")  # the scheduler finds out what has become of its workers

    def _collect(self, answers: dict[str, Any]) -> None:
        with suppress(Exception):  # a cluster may forbid it, or be away for a moment
            if not self._scheduler_checked:
                self._scheduler_checked = True
                answers["scheduler"] = _scheduler_answer(self._client)
            new = sorted(set(self._client.nthreads()) - self._checked)
            if new:
                found = self._client.run(eval, _IMPORT, workers=new, on_error="return")
                answers.update(found)
                # a connection that was lost is no answer
                self._checked.update(place for place, answer in found.items() if not isinstance(answer, OSError))


def _scheduler_answer(client: Any) -> Any:
    try:
        return client.run_on_scheduler(eval, _IMPORT)
    except Exception as error:
        return error


def _message(lacking: dict[str, Any]) -> str:
    names = [f"the {name} {'of the cluster ' * (name == 'scheduler')}".strip() for name in lacking if "://" not in name]
    workers = [name for name in lacking if "://" in name]
    if workers:
        more = f" and {len(workers) - 3} more" if len(workers) > 3 else ""
        names.append(f"{'worker' if len(workers) == 1 else 'workers'} {', '.join(workers[:3])}{more}")
    error = next(iter(lacking.values()))
    return (
        f"{' and '.join(names)} cannot import imageryxr ({error}): install it there as it is installed here, in the "
        "same version, and start them again; or leave them out of the cluster"
    )
