"""Commands whose options are declared once: as fields of dataclasses, or as members of TypedDicts.

A parameter of a command whose type is such a class becomes a group of options. Each value is declared with an `Option`:
flags, the groups of the help, keys of job files and the names in messages follow from it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints, is_typeddict

import typer
from typer.core import TyperCommand

from imageryxr.cli.messages import FLAGS, fail, raise_on_sigterm
from imageryxr.core.option import Option
from imageryxr.errors import ImageryError, OptionError


def option(
    help: str, default: Any = None, *, python: str | Iterable[str] = (), needs: str = "", **settings: Any
) -> Any:
    """Return the field of a dataclass that declares an option.

    Parameters
    ----------
    help : str
        What the option sets.
    default : object
        The value without the option; ``...`` if the option is required.
    python : str or iterable of str
        Parameters of Python's functions that the option sets, if their names differ from that of the field.
    needs : str
        The flags, with their values, without which the option has no effect, such as ``--outline WIDTH``. If there are
        several, one of them is enough. On the command line the option without them is an error; a job file may have it,
        because the command line may add them.
    **settings
        Further arguments of `typer.Option`.
    """
    names = (python,) if isinstance(python, str) else tuple(python)
    metadata = {"option": Option(help, default, python=names, needs=needs, settings=settings)}
    return field(metadata=metadata) if default is ... else field(default=default, metadata=metadata)


@dataclass(frozen=True)
class _GroupOption:
    """An option that a group declares."""

    key: str
    """The name of the value in the group."""
    kind: type
    option: Option

    @property
    def name(self) -> str:
        return self.option.flag or self.key

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    def parameter(self, panel: str) -> inspect.Parameter:
        """Return the function parameter from which typer makes the option."""
        declaration = self.flag
        if self.kind is bool and self.option.default is not False:
            declaration += f"/--no-{self.flag[2:]}"
        settings = {"help": self.option.help, "rich_help_panel": panel, **self.option.settings}
        default = inspect.Parameter.empty if self.option.default is ... else self.option.default
        kind: Any = self.kind if default is not None else self.kind | None
        hint = Annotated[kind, typer.Option(declaration, **settings)]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _group_options(group: type) -> Iterator[_GroupOption]:
    hints = get_type_hints(group, include_extras=True)
    if is_dataclass(group):
        declarations = {f.name: f.metadata.get("option") for f in fields(group)}
    else:
        declarations = {
            key: next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Option)), None)
            for key, hint in hints.items()
        }
    for key, declaration in declarations.items():
        if declaration is not None:
            yield _GroupOption(key, _typed_kind(hints[key]), declaration)


def _typed_kind(hint: Any) -> type:
    """Return the type of a value on the command line: bool, int, float or Path, and str for all other types."""
    while get_origin(hint) in (Annotated, Union, UnionType):
        alternatives = [kind for kind in get_args(hint) if kind is not NoneType]
        hint = alternatives[0] if len(alternatives) == 1 or get_origin(hint) is Annotated else str
    return hint if hint in (bool, int, float, Path) else str


def add_command(app: typer.Typer, function: Callable[..., Any]) -> None:
    """Add a command, with the options that the groups among its parameters declare.

    The function receives each group as an instance of its dataclass, or as a dict with all members of its TypedDict.
    """
    hints = get_type_hints(function, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if is_dataclass(hint) or is_typeddict(hint)}
    declared = {name: list(_group_options(group)) for name, group in groups.items()}
    own = inspect.signature(function).parameters
    parameters = []
    for name, parameter in own.items():
        if name not in groups:
            parameters.append(parameter.replace(annotation=hints[name]))
        for one in declared.get(name, ()):
            parameters.append(one.parameter(name.capitalize()))
            for known in one.option.python or (one.key,):
                FLAGS.setdefault(known, one.flag)

    if "context" not in own:
        parameters.append(_CONTEXT)

    def run(**values: Any) -> Any:
        for options in declared.values():
            _check_needs(values["context"], options, values)
        if "context" not in own:
            del values["context"]
        for name, group in groups.items():
            values[name] = group(**{one.key: values.pop(one.name) for one in declared[name]})
        return function(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(function.__name__, cls=GroupedCommand, help=inspect.getdoc(function))(run)


_CONTEXT = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)


def _check_needs(context: typer.Context, options: Iterable[_GroupOption], values: Mapping[str, Any]) -> None:
    """Raise `OptionError` if options of the command line have no effect without others, which are not given."""
    idle: dict[str, list[str]] = {}
    for one in options:
        needed = [flag.replace("-", "_") for flag in re.findall(r"--([a-z-]+)", one.option.needs)]
        if needed and all(values[name] is None for name in needed) and origin(context, one.name) == "COMMANDLINE":
            idle.setdefault(one.option.needs, []).append(one.flag)
    for needs, flags in idle.items():
        alone = "has no effect by itself" if len(flags) == 1 else "have no effect by themselves"
        raise OptionError(f"{', '.join(flags)} {alone}: also give {needs}")


def origin(context: typer.Context, name: str) -> str:
    """Return where an option was given, such as ``"COMMANDLINE"``, or ``"DEFAULT_MAP"`` for a job file."""
    source = context.get_parameter_source(name)
    return "" if source is None else source.name


class GroupedCommand(TyperCommand):
    """A command whose help lists its options in groups, and whose errors set the exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; print an error in one line, and with --json, or ``json = true`` in a job file, as JSON."""
        try:
            with raise_on_sigterm():
                return super().invoke(ctx)
        except (ImageryError, KeyboardInterrupt) as error:  # typer would not print the notes of an interrupt
            fail(error, as_json=bool(ctx.params.get("json")))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, and the options group by group."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                is_argument = param.param_type_name == "argument"
                group = "Arguments" if is_argument else getattr(param, "rich_help_panel", None) or "Other"
                groups.setdefault(group, []).append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)
