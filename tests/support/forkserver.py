"""Python processes that start with the package imported and its kernels loaded.

A new interpreter needs about three seconds to import and load them. Therefore one server process per session does so,
and the processes of tests are forks of it. The server has a single thread, so it can be forked safely.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import types
from functools import cache
from pathlib import Path

from tests.support.warm import load

ROOT = Path(__file__).parents[2]


# ---------------------------------------------------------------------------------------------------------
# client: the process that runs the tests


class Forked:
    """A forked process with those methods of `subprocess.Popen` that tests use. Streams are text."""

    def __init__(self, args: list[str], env: dict[str, str], stdout: int | None, stderr: int | None, session: bool):
        our_ends, their_ends = zip(
            *(_stream(given, number) for given, number in ((stdout, 1), (stderr, 2))), strict=True
        )
        self.stdout, self.stderr = (None if end is None else os.fdopen(end) for end in our_ends)
        status_reader, status_writer = os.pipe()
        request = json.dumps({"args": args, "env": env, "session": session}).encode()
        fds = [their_ends[0], their_ends[1] if stderr != subprocess.STDOUT else their_ends[0], status_writer]
        socket.send_fds(_server(), [len(request).to_bytes(8, "big") + request], fds)
        for end in (status_writer, *(end for end, kept in zip(their_ends, our_ends, strict=True) if kept is not None)):
            os.close(end)
        self.args, self.returncode = args, None
        self._status = os.fdopen(status_reader)
        self.pid = int(self._status.readline())

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, or the negative number of the signal that ended the process."""
        if self.returncode is None:
            with selectors.DefaultSelector() as waiting:
                waiting.register(self._status, selectors.EVENT_READ)
                if not waiting.select(timeout):
                    raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, or None if the process is running."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str | None, str | None]:
        """Return the output of the process."""
        read: dict[int, str] = {}
        streams = dict(enumerate((self.stdout, self.stderr)))

        def drain(number: int) -> None:
            read[number] = streams[number].read()

        readers = [threading.Thread(target=drain, args=(n,), daemon=True) for n, s in streams.items() if s is not None]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        self._close()
        return read.get(0), read.get(1)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _close(self) -> None:
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()

    def __del__(self) -> None:
        self._close()
        self._status.close()


def _stream(given: object, number: int) -> tuple[int | None, int]:
    """Return the file descriptors of a stream: the one that this process reads, or None, and the one for the fork."""
    if given == subprocess.PIPE:
        return os.pipe()
    if given == subprocess.DEVNULL:
        return None, _devnull()
    return None, number if given in (None, subprocess.STDOUT) else given.fileno()


@cache
def _devnull() -> int:
    return os.open(os.devnull, os.O_RDWR)


@cache
def _server() -> socket.socket:
    """Start the server; it ends with this process."""
    ours, theirs = socket.socketpair()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.support.forkserver", str(theirs.fileno())]
    subprocess.Popen(command, cwd=ROOT, env=env, pass_fds=[theirs.fileno()], start_new_session=True)
    theirs.close()
    return ours


# ---------------------------------------------------------------------------------------------------------
# server


def _serve(requests: socket.socket) -> list[str]:
    """Fork a process for each request. Return only in the forked processes, with the arguments of the request."""
    running: dict[int, tuple[int, int]] = {}
    with selectors.DefaultSelector() as waiting:
        waiting.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fileobj is not requests:
                    waiting.unregister(key.fileobj)
                    _report_end(key.fd, *running.pop(key.fd))
                    continue
                head, fds, _, _ = socket.recv_fds(requests, 8, 3)
                if not head:
                    os._exit(0)
                request = json.loads(requests.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
                pid = os.fork()
                if not pid:
                    _become(request, fds, [requests.fileno(), *(end for _, end in running.values()), *running])
                    return request["args"]
                os.write(fds[2], f"{pid}\n".encode())
                for end in fds[:2]:
                    os.close(end)
                watch = os.pidfd_open(pid)
                running[watch] = (pid, fds[2])
                waiting.register(watch, selectors.EVENT_READ)


def _report_end(watch: int, pid: int, status: int) -> None:
    os.close(watch)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        os.write(status, f"{code}\n".encode())
    os.close(status)


def _become(request: dict, fds: list[int], foreign: list[int]) -> None:
    """Replace the streams, environment and session of this process by those of a request."""
    os.dup2(fds[0], 1)
    os.dup2(fds[1], 2)
    for end in {*fds, *foreign}:
        os.close(end)
    if request["session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(request["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    load()
    args = _serve(requests)
    requests.detach()
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    if args[0] == "-c":
        code, sys.argv[:] = args[1], ["-c", *args[2:]]
    else:
        code, sys.argv[:] = Path(args[0]).read_text(), args
        module.__file__ = args[0]
        sys.path.insert(0, str(Path(args[0]).parent))
    try:
        exec(compile(code, sys.argv[0], "exec"), module.__dict__)
    except SystemExit as end:
        _end(end.code if isinstance(end.code, int) else int(end.code is not None))
    except Exception:
        sys.excepthook(*sys.exc_info())
        _end(1)
    _end(0)


def _end(code: int) -> None:
    """Exit as an interpreter does, but without freeing memory, which would take a second."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
