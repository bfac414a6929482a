"""Typed settings from a YAML file and command line flags: one pydantic model for each command."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as ParsingError

from npnet_runtime import __version__
from npnet_training.errors import SettingsError

WHOLE = "an element may hold commas"
"""Marks a tuple, as in `Annotated[tuple[str, ...], WHOLE]`: it is given by repeating its flag only."""


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown field, every field documented by the string below it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def to_yaml(self) -> str:
        """Text that `parse` reads back with `--config`."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


S = TypeVar("S", bound=Settings)


def parse(cls: type[S], prog: str, arguments: Sequence[str] | None = None, *, epilog: str | None = None) -> S:
    """Settings from `--config FILE` and flags, which win over the file.

    A field `a.b` is the flag `--a.b`, with `-` for `_`; a tuple is given by repeating its flag, or as `1,2`
    unless it is marked `WHOLE`.

    Args:
        cls: what to make.
        prog: name of the command.
        arguments: of the command line; None for those of the process.
        epilog: text below the options in `--help`.

    Raises:
        SettingsError: a flag or field is unknown, missing, of the wrong type or out of range.
        SystemExit: after `--help` and `--version`.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=cls.__doc__,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{prog} {__version__}")
    parser.add_argument("--config", type=Path, metavar="YAML", help="settings to start from")
    config, _ = _Config(add_help=False, allow_abbrev=False).parse_known_args(arguments)
    from_file = {} if config.config is None else read_yaml(config.config)
    whole: dict[str, list[str]] = {}

    def read_flags(root: argparse.ArgumentParser, given: Sequence[str] | None) -> dict[str, Any]:
        flags = vars(root.parse_args(given))
        marked = [
            name for name in flags if name in cls.model_fields and WHOLE in cls.model_fields[name].metadata
        ]
        whole.update({name: flags.pop(name) for name in marked})
        return flags

    class Cli(BaseSettings, cls):  # type: ignore[misc, valid-type]
        model_config = SettingsConfigDict(
            cli_avoid_json=True,
            cli_exit_on_error=False,
            cli_hide_none_type=True,
            cli_implicit_flags=True,
            cli_kebab_case=True,
            cli_use_class_docs_for_groups=True,
        )

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: Any, **__: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            # Not the environment: a setting must be on record.
            flags: Any = CliSettingsSource(settings_cls, root_parser=parser, parse_args_method=read_flags)
            return flags(args=list(arguments) if arguments is not None else True), InitSettingsSource(
                settings_cls, from_file
            )

    try:
        return cls.model_validate(Cli().model_dump(exclude={"config"}, exclude_unset=True) | whole)
    except (ValidationError, ParsingError) as error:
        raise SettingsError(f"{_explain(error)}\nsee {prog} --help") from error


def parse_size(text: str) -> tuple[int, int]:
    """Height and width in pixels from `1024x768`.

    Raises:
        ValueError: not of that form.
    """
    height, by, width = text.partition("x")
    if not (by and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise ValueError(f"expected HEIGHTxWIDTH in pixels, such as 1024x768, given {text!r}")
    return int(height), int(width)


def validate(cls: type[S], values: dict[str, Any], where: str) -> S:
    """Settings from plain values, as stored with a result.

    Raises:
        SettingsError: they do not fit; the message begins with `where`.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise SettingsError(f"{where}: {_explain(error)}") from error


def differences(expected: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """A line for each name in `given` whose value is not the expected one."""
    return [
        f"{name}: expected {expected.get(name)!r}, given {value!r}"
        for name, value in given.items()
        if expected.get(name) != value
    ]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        SettingsError: missing, not YAML, or no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"--config {path}: expected a YAML file ({error})") from error
    if not isinstance(values, dict):
        raise SettingsError(f"--config {path}: expected a mapping of settings, given {values!r}")
    return values


class _Config(argparse.ArgumentParser):
    """Finds `--config` before the other flags are known."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_argument("--config", type=Path)


def _explain(error: ValidationError | ParsingError) -> str:
    if isinstance(error, ParsingError):
        return str(error).removeprefix("error parsing CLI: ")
    lines = []
    for problem in error.errors(include_url=False):
        flag = "--" + ".".join(str(part) for part in problem["loc"]).replace("_", "-")
        given = "" if problem["type"] == "missing" else f", given {problem['input']!r}"
        own = problem["type"] == "value_error"  # raised by a check of ours, which pydantic announces as such
        said = str(problem["ctx"]["error"]) if own else problem["msg"]
        lines.append(f"{flag}: {said}{given}" if problem["loc"] else said)  # of several settings at once
    return "\n".join(lines)
