"""Messages of the command line, which name flags where Python names parameters, and exit codes."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn

from imageryxr.errors import (
    AddressError,
    BoxError,
    ChoiceError,
    ColorError,
    ImageryError,
    LayerError,
    LinkError,
    Message,
    MipError,
    OptionError,
    Param,
    ScratchError,
    SegmentError,
    TimestampError,
    Wording,
)

FAILED = 1
"""Exit code for errors of a source, a server or a disk, and for a target that exists."""
INVALID_OPTION = 2
"""Exit code for invalid options on the command line or in a job file, which fail again if repeated."""
INTERRUPTED = 130
"""Exit code after an interrupt (Ctrl-C)."""
TERMINATED = 143
"""Exit code after SIGTERM, which job schedulers and a system shutdown send."""

FLAGS: dict[str, str] = {}
"""Flags of Python's parameters, of all commands."""

_INVALID_OPTION_ERRORS = (
    AddressError,
    BoxError,
    ChoiceError,
    ColorError,
    LayerError,
    LinkError,
    MipError,
    OptionError,
    SegmentError,
    TimestampError,
)

_NAMES = {
    "target": "the target",
    "source": "the source",
    "path": "the picture",
    "lo": "from",
    "hi": "to",
    "mip": "mip",
}
"""Names of parameters that the command line has without a flag."""


def command_text(message: object) -> str:
    """Return the text of a message, a part of one, an error or a warning, with flags in place of Python parameters."""
    if isinstance(message, BaseException):
        return command_text(message.args[0]) if message.args else ""
    if isinstance(message, Message):
        return "".join(map(command_text, message.parts))
    if isinstance(message, Wording):
        return command_text(message.command)
    return _option(message) if isinstance(message, Param) else str(message)


def rename_parameters(error: ImageryError, **names: str) -> ImageryError:
    """Return an error whose message has other parameter names, for options that are named differently in Python."""

    def other(part: Any) -> Any:
        if isinstance(part, Message):
            return Message(*map(other, part.parts))
        return replace(part, name=names.get(part.name, part.name)) if isinstance(part, Param) else part

    return type(error)(other(error.message))


def _option(param: Param) -> str:
    """Return a parameter as a user types it on the command line: ``--overwrite`` for ``overwrite=True``."""
    flag = FLAGS.get(param.name) or _NAMES.get(param.name)
    if flag is None:
        return str(param)
    if param.name == "mip" and param.value is ...:
        return "--image-mip or --seg-mip"
    if not param.has_value or param.value is True:
        return flag
    if param.name == "scratch" and param.value is False:
        return f"{flag} none"
    if param.value is False:
        return f"--no-{flag.removeprefix('--')}"
    if param.value is None and param.text is None:
        return f"no {flag}"
    return f"{flag} {_typed_text(param.value) if param.text is None else param.text.strip('()[]').replace(', ', ',')}"


def _typed_text(value: Any) -> str:
    """Return a value as a user types it on the command line."""
    if value is ...:
        return "…"
    if isinstance(value, tuple | list):
        return ",".join(map(_typed_text, value))
    if isinstance(value, str):
        return value if value and not re.search(r"[\s{}*?$;&|<>()]", value) else repr(value)
    return str(value)


class Terminated(KeyboardInterrupt):
    """The command received SIGTERM, which is handled like an interrupt."""


def _handle_sigterm(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # if Python ignores the exception, a second SIGTERM ends the process
    raise Terminated


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Raise `Terminated` in the block when this process receives SIGTERM."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    before = signal.signal(signal.SIGTERM, _handle_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(error: BaseException) -> int:
    """Return the exit code for an error or an interrupt: `INVALID_OPTION`, `FAILED`, `INTERRUPTED` or `TERMINATED`."""
    if isinstance(error, KeyboardInterrupt):
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    if isinstance(error, ScratchError):  # a missing folder is an invalid option; a full disk may have space again
        return FAILED if error.full or error.worker is not None else INVALID_OPTION
    return INVALID_OPTION if isinstance(error, _INVALID_OPTION_ERRORS) and not isinstance(error, OSError) else FAILED


def fail(error: BaseException, *, as_json: bool) -> NoReturn:
    """Print an error and its notes, such as the number of kept regions of an interrupted export, and exit.

    With `as_json`, the error and its plan are also printed to standard output as one JSON object.
    """
    message = command_text(error) or "stopped"
    if as_json:
        plan = getattr(error, "plan", None)
        fields = {} if plan is None else plan.to_dict()
        print_error(type(error).__name__, message, exit_code(error), **fields)
    for note in getattr(error, "__notes__", ()):
        print(command_text(note), file=sys.stderr)
    print("stopped" if isinstance(error, KeyboardInterrupt) else f"error: {message}", file=sys.stderr)
    raise SystemExit(exit_code(error)) from None


def print_error(kind: str, message: str, code: int, **plan: Any) -> None:
    """Print an error as one JSON object."""
    print(json.dumps({**plan, "error": kind, "message": message, "exit_code": code}, indent=2))
