"""Everything that can be set: by flag, by environment variable, or in a file, in this order.

The fields of `Settings` are the only list of it: --help, the names in the environment, what a file may hold
and the table in docs/deployment.md are all made from them.
"""

import argparse
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from app.backends import BACKENDS
from app.catalogue import OFFLOADS

PREFIX = "DIFFUSION_PREVIEW_"
CONFIG = "config"
LEVELS = ("debug", "info", "warning", "error")
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
HIDDEN = "(hidden)"


class SettingsError(ValueError):
    """Settings that can't be used; one line for each that is wrong, in words."""


def _setting(default: Any, words: str, sample: str = "", **more: Any) -> Any:
    """A field of `Settings`: its default, what it means, and a sample of its value for --help.

    more: `choices`; `low` and `high`, the range of a number; `also`, another environment variable that sets
    it; `secret`, never shown.
    """
    return field(default=default, metadata={"words": words, "sample": sample, **more})


@dataclass(frozen=True)
class Settings:
    """What app.py can be told. Raises SettingsError where settings do not go together."""

    host: str = _setting(
        "127.0.0.1",
        "address to listen on; 0.0.0.0 for other machines too",
        "ADDRESS",
        also="GRADIO_SERVER_NAME",  # a Space sets it
    )
    port: int = _setting(7860, "port to listen on", "N", low=1, high=65535, also="GRADIO_SERVER_PORT")
    root_path: str = _setting("", "the path, behind a proxy, that the page is found under", "/PATH")
    model: str = _setting(
        "landscapes",
        "a name (see `python -m app.catalogue`), a folder in the diffusers layout, a .safetensors "
        "checkpoint, or a hub id",
    )
    configs: Path | None = _setting(
        None, "for a single-file checkpoint: a folder with the configs that go with it", "FOLDER"
    )
    solver: Path | None = _setting(
        None, "solver weights to use in place of the model's own, as `solver.convert` writes", "FOLDER"
    )
    safety_checker: bool = _setting(True, "hold back what the model's safety checker flags")
    offload: str = _setting(
        "none", "model: one part of the model on the GPU at a time; slower", choices=OFFLOADS
    )
    compile: bool = _setting(True, "on an NVIDIA GPU, compile the network in the background")
    preview_decoder: str = _setting(
        "auto",
        "a folder with a small decoder (AutoencoderTiny) that draws previews; auto takes the model's own, or "
        "the one published for it if it is on this machine; off takes none",
        "FOLDER",
    )
    device: str = _setting("auto", "where to compute", choices=("auto", "cpu", "cuda", "mps"))
    backend: str = _setting(
        "auto",
        "what makes the pictures; auto is zerogpu on a ZeroGPU Space, else local",
        choices=("auto", *BACKENDS),
    )
    replicas: int | None = _setting(
        None, "with --backend ray: how many workers (one per GPU, or one)", "N", low=1
    )
    ray_address: str | None = _setting(
        None,
        "with --backend ray: a running cluster to join, such as auto (a new one on this machine)",
        "ADDRESS",
    )
    data: Path = _setting(Path("data"), "all that is written goes here", "DIR")
    mcp: bool = _setting(False, "let programs use the app as a tool, by the Model Context Protocol")
    auth: Path | None = _setting(
        None, "ask for a login; the file is made by `python -m app.server.auth FILE add NAME`", "FILE"
    )
    rate: int | None = _setting(
        None, "denoiser steps that one person may have per minute; the more follow later", "STEPS", low=100
    )
    metrics_port: int | None = _setting(
        None, "serve Prometheus metrics there, on 127.0.0.1 or --metrics-host", "N", low=1, high=65535
    )
    metrics_host: str = _setting("127.0.0.1", "address that --metrics-port is opened on", "ADDRESS")
    metrics_token: str | None = _setting(
        None, "serve metrics under /metrics of the page, to whoever sends this bearer token", secret=True
    )
    study: Path | None = _setting(None, "run this user study instead of the ordinary page", "FILE")
    study_log: str | None = _setting(
        None,
        "the study's events: an SQLite file (study.sqlite in --data), or postgresql://…",
        "LOG",
        secret=True,
    )
    study_dataset: str | None = _setting(
        None, "mirror the study's events to this private dataset on the Hub", "OWNER/NAME"
    )
    log: str | None = _setting(
        None,
        "write down what visitors click, and when, without their words: as --study-log",
        "LOG",
        secret=True,
    )
    log_format: str = _setting("text", "a line of text, or of JSON, for each entry", choices=("text", "json"))
    log_level: str = _setting("warning", "from which level on to log; info tells of each job", choices=LEVELS)
    grace: float = _setting(
        20.0, "seconds that running jobs get to finish when the app is stopped", "S", low=0, high=600
    )

    def __post_init__(self) -> None:
        wrong = []
        if self.backend != "ray" and (self.replicas is not None or self.ray_address):
            wrong.append("--replicas and --ray-address go with --backend ray.")
        if not self.study and (self.study_log or self.study_dataset):
            wrong.append("--study-log and --study-dataset go with --study.")
        if self.study and self.log:
            wrong.append("--log is of the ordinary page; a study has --study-log.")
        if self.study and self.mcp:
            wrong.append("--mcp does not go with --study: a study is for people.")
        if self.root_path and not self.root_path.startswith(("/", "http://", "https://")):
            wrong.append(f"--root-path must begin with a slash, as in /preview, not {self.root_path!r}.")
        if self.metrics_port == self.port:
            wrong.append("--metrics-port must differ from --port.")
        if self.metrics_token is not None and len(self.metrics_token) < 16:
            wrong.append("--metrics-token must have 16 letters or more, or it can be guessed.")
        if wrong:
            raise SettingsError("\n".join(wrong))


TABLE = {each.name: each for each in fields(Settings)}


def _kind(name: str) -> type:
    """The type of a setting's value, when it has one."""
    hint = get_type_hints(Settings)[name]
    return next((each for each in get_args(hint) if each is not NoneType), hint)


def read(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings from a command line (without the program's name) and the environment.

    A flag goes before an environment variable, this before the file that --config names, and this before the
    default. Raises SettingsError, naming all that is unknown or wrong; exits after --help.
    """
    flags = vars(_parser().parse_args(list(arguments)))
    wrong: list[str] = flags.pop("unknown", [])
    config = flags.pop(CONFIG, None) or environment.get(PREFIX + CONFIG.upper())
    values: dict[str, Any] = {}
    for source, raw in (
        (_flag, flags),
        (_variable, _from_environment(environment, wrong)),
        (_key, _from_file(Path(config), wrong) if config else {}),
    ):
        for name, value in raw.items():
            try:
                values.setdefault(name, _value(name, value))
            except ValueError as error:
                wrong.append(f"{source(name)}: {error}")
    if not wrong:
        return Settings(**values)
    raise SettingsError("\n".join(wrong))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _key(name: str) -> str:
    return f"{name} in the file"


def _value(name: str, raw: object) -> Any:
    """A setting's value from text, or from what TOML has. Raises ValueError, in words."""
    kind, about = _kind(name), TABLE[name].metadata
    value = _convert(kind, raw)
    if value is None:
        raise ValueError(f"{raw!r} is not {_NAMES[kind]}.")
    if "choices" in about and value not in about["choices"]:
        raise ValueError(f"{raw!r} is none of {', '.join(about['choices'])}.")
    low, high = about.get("low"), about.get("high")
    if (low is not None and value < low) or (high is not None and value > high):
        span = f"from {low:,} to {high:,}" if high is not None else f"{low:,} or more"
        raise ValueError(f"{raw} is not {span}.")
    return value


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


def _convert(kind: type, raw: object) -> Any:
    """`raw` as a `kind`, or None where it is nothing such."""
    if kind is bool:
        word = str(raw).strip().lower()
        return word in TRUE if word in TRUE + FALSE else None
    if isinstance(raw, bool) or (kind in (str, Path) and not isinstance(raw, str)):
        return None
    if kind is int and isinstance(raw, float):
        return None
    try:
        value = kind(raw)
    except (ValueError, TypeError):
        return None
    return None if kind is float and value != value else value


def _from_environment(environment: Mapping[str, str], wrong: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, each in TABLE.items():
        for variable in (_variable(name), each.metadata.get("also", "")):
            if environment.get(variable):
                values.setdefault(name, environment[variable])
    known = {_variable(name) for name in (*TABLE, CONFIG)}
    wrong += [
        f"{variable}: there is no such setting."
        for variable in sorted(environment)
        if variable.startswith(PREFIX) and variable not in known
    ]
    return values


def _from_file(path: Path, wrong: list[str]) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        wrong.append(f"--config: {path} can't be read ({error.strerror}).")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        wrong.append(f"--config: {path} is not TOML ({error}).")
    else:
        wrong += [f"{_key(name)}: there is no such setting." for name in values if name not in TABLE]
        return {name: value for name, value in values.items() if name in TABLE}
    return {}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as SettingsError, together with what else is."""

    def error(self, message: str) -> Any:
        raise SettingsError(message[:1].upper() + message[1:] + ". --help explains the options.")

    def parse_args(self, *args: Any, **options: Any) -> Any:
        values, unknown = self.parse_known_args(*args, **options)
        values.unknown = [f"{each}: there is no such option." for each in unknown]
        return values


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python app.py",
        description="Quick previews of a prompt; pick one, and only that one is finished.",
        epilog=f"Each option can also be set by an environment variable ({PREFIX}PORT for --port), or in the "
        "file of --config (port = 8000). A flag goes first, then the variable, then the file.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="a TOML file with settings")
    for name, each in TABLE.items():
        about = each.metadata
        default = "" if each.default in (None, "", False) else f" ({each.default})"
        # What a value must be is checked in one place for flags, variables and file: `_value`.
        options: dict[str, Any] = {"metavar": about["sample"] or name.rpartition("_")[2].upper()}
        if "choices" in about:
            options["metavar"] = "{" + ",".join(about["choices"]) + "}"
        if _kind(name) is bool:
            options = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(_flag(name), help=(about["words"] + default).replace("%", "%%"), **options)
    return parser


def describe(settings: Settings) -> str:
    """The settings that differ from their defaults, for one line; secrets are hidden."""
    told = []
    for name, each in TABLE.items():
        value = getattr(settings, name)
        if value != each.default:
            told.append(f"{name}={HIDDEN if each.metadata.get('secret') else value}")
    return ", ".join(told) or "all settings as they come"


def as_markdown() -> str:
    """The table of all settings, for the docs."""
    rows = ["| flag | environment | default | meaning |", "|---|---|---|---|"]
    for name, each in TABLE.items():
        about = each.metadata
        choices = (
            f" ({', '.join(f'`{choice}`' for choice in about['choices'])})" if "choices" in about else ""
        )
        default = "" if each.default in (None, "") else f"`{str(each.default).lower()}`"
        also = f", `{about['also']}`" if "also" in about else ""
        rows.append(
            f"| `{_flag(name)}` | `{_variable(name)}`{also} | {default} | {about['words']}{choices} |"
        )
    return "\n".join(rows)
