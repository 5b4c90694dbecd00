"""The manifest and the journal of an export to a bucket, where a lease excludes other processes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from imageryxr.errors import TargetError
from imageryxr.export.commit.manifest import Entry, Header, ManifestStore
from imageryxr.export.store.bucket import Bucket
from imageryxr.export.store.lease import WorkerWatch


class BucketManifest(ManifestStore):
    """A manifest in a bucket; a `Lease` excludes other processes while an export runs."""

    EVERY = 15.0
    """Seconds between uploads of the journal: a crash loses the entries of this time at most."""

    def __init__(self, folder: str, name: str) -> None:
        super().__init__(folder, name)
        self._buffered: list[bytes] = []
        self._last = time.monotonic()

    def save(self, header: Header) -> None:
        """Upload the header."""
        self.place.put([(self.name + ".json", header.to_bytes())])

    def _journal(self) -> list[str]:
        return sorted(f"{self.name}.log/{key}" for key in Bucket(f"{self.base}.log").names())

    def _lines(self) -> Iterator[bytes]:
        for key in self._journal():
            yield from (self.place.get(key) or b"").splitlines()

    def append(self, run: str, entry: Entry) -> None:
        """Add a line, and upload the buffered lines if the last upload is long ago."""
        self.lock.ensure()
        self._buffered.append(entry.line(run))
        if time.monotonic() - self._last > self.EVERY:
            self.flush()

    def flush(self) -> None:
        """Upload the buffered lines."""
        self._last = time.monotonic()
        if self._buffered:
            key = f"{self.name}.log/manifest-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
            self.place.put([(key, b"".join(self._buffered))])
            self._buffered = []

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lease; at the end upload the rest of the journal if the lease is still held."""
        with self.lock.hold():
            try:
                yield
            finally:
                try:
                    self.lock.ensure()
                except TargetError:
                    pass  # the lease is lost
                else:
                    self.flush()


@dataclass
class ManifestWatch(WorkerWatch):
    """Checks, by the manifest, that the export of a worker still runs; workers hold no lease."""

    url: str
    name: str
    run: str
    phase: str
    """Run and phase in the manifest when the region was submitted."""
    work: str | None = None
    """The work folder of the export, which no other export writes to."""

    def confirm(self) -> None:
        """Read the manifest; raise `TargetError` if the export has ended or another one has started."""
        place = f"{self.url}/{self.name}.json"
        text = Bucket(self.url).get(self.name + ".json")
        now = None if text is None else Header.parse(text, place)
        if now is not None and (now.run, now.phase) == (self.run, self.phase) and not now.replaced:
            return
        if self.work is not None and (now is None or now.run != self.run or now.phase == "finished"):
            Bucket(self.work).clear()  # files that workers wrote after the work folder was removed
        change = "was removed" if now is None else "shows that this export ended or another one started"
        raise TargetError(f"{place} {change}: the region that a worker was still processing is not written", taken=True)
