"""Check that the workers and the scheduler of a cluster can import the package."""

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
"""Seconds to wait for answers; the scheduler handles workers that do not answer."""
PAUSE_SECONDS, FIRST_PAUSE_SECONDS = 2.0, 0.2
"""Seconds between checks for new workers, and between checks for the first worker."""


class ImportProbe:
    """Checks that each process of a cluster can import the package.

    A worker without the package exits when it gets a task of an export, and its nanny restarts it forever. So no region
    is submitted before one worker has passed. While there is no worker, a task that needs no package is submitted, so
    that adaptive clusters start one.

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
        thread = threading.Thread(target=self._collect, args=(answers,), daemon=True)
        thread.start()
        thread.join(ANSWER_SECONDS)
        self._next = time.monotonic() + (PAUSE_SECONDS if self._checked else FIRST_PAUSE_SECONDS)
        lacking = {place: error for place, error in list(answers.items()) if isinstance(error, ImportError)}
        if lacking:
            raise TargetError(_import_error_message(lacking))
        if thread.is_alive():
            self._checked.add("no answer")  # the scheduler handles workers that do not answer

    def _collect(self, answers: dict[str, Any]) -> None:
        with suppress(Exception):  # a cluster may forbid it, or the connection may be down for a moment
            if not self._scheduler_checked:
                self._scheduler_checked = True
                answers["scheduler"] = _scheduler_answer(self._client)
            new = sorted(set(self._client.nthreads()) - self._checked)
            if new:
                found = self._client.run(eval, _IMPORT, workers=new, on_error="return")
                answers.update(found)
                # workers whose connection was lost are checked again
                self._checked.update(place for place, answer in found.items() if not isinstance(answer, OSError))


def _scheduler_answer(client: Any) -> Any:
    try:
        return client.run_on_scheduler(eval, _IMPORT)
    except Exception as error:
        return error


def _import_error_message(lacking: dict[str, Any]) -> str:
    names = [f"the {name} {'of the cluster ' * (name == 'scheduler')}".strip() for name in lacking if "://" not in name]
    workers = [name for name in lacking if "://" in name]
    if workers:
        more = f" and {len(workers) - 3} more" if len(workers) > 3 else ""
        names.append(f"{'worker' if len(workers) == 1 else 'workers'} {', '.join(workers[:3])}{more}")
    error = next(iter(lacking.values()))
    return (
        f"{' and '.join(names)} cannot import imageryxr ({error}): install the same version there as here and restart "
        "them; or remove them from the cluster"
    )
