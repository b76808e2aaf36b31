"""The app's settings: by option, environment variable or TOML file, in this order of precedence.

The fields of `Settings` are the only list of them. Options, --help, variables, the keys of the file and the
table in docs/deployment.md are generated from these fields.
"""

import argparse
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

PREFIX = "DIFFUSION_PREVIEW_"
HIDDEN = "(hidden)"
# Variables of a Hugging Face Space; those with our own prefix override them.
ALSO = {"host": "GRADIO_SERVER_NAME", "port": "GRADIO_SERVER_PORT"}
ORIGIN = re.compile(r"https?://[\w.*:\[\]-]+")


class SettingsError(ValueError):
    """Unusable settings; the message has one line for each problem."""


class Settings(BaseSettings):
    """The settings of app.py.

    The docstring of a field is its help, its title stands for its value there. `repr=False` marks a secret.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    host: str = Field(default="127.0.0.1", title="ADDRESS")
    """address to listen on; 0.0.0.0 accepts other machines too"""
    port: int = Field(default=7860, title="N", ge=1, le=65535)
    """port to listen on"""
    root_path: str = Field(default="", title="/PATH")
    """path of the page behind a reverse proxy, or its whole public address: https://example.org/preview"""
    data: Path = Field(default=Path("data"), title="FOLDER")
    """folder for everything that the app writes"""
    grace: float = Field(default=20.0, title="SECONDS", ge=0, le=600)
    """seconds that running jobs have to finish when the app is stopped"""

    model: str = "landscapes"
    """a name (see `python -m app.catalogue`), a folder in the diffusers layout, a .safetensors checkpoint, or
    a hub id"""
    configs: Path | None = Field(default=None, title="FOLDER")
    """for a single-file checkpoint: folder with the model's config files"""
    solver: Path | None = Field(default=None, title="FOLDER")
    """folder with solver weights, as `solver.convert` writes it, to use instead of the model's own"""
    preview_decoder: str = Field(default="auto", title="FOLDER")
    """folder with a small decoder (AutoencoderTiny) for previews; auto: the model's own, or the one published
    for it if it is on this machine; off: none"""
    safety_checker: bool = True
    """withhold pictures that the model's safety checker flags"""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """where to compute"""
    backend: Literal["auto", "local", "zerogpu", "ray"] = "auto"
    """what computes the pictures; auto: zerogpu on a ZeroGPU Space, otherwise local"""
    offload: Literal["none", "model"] = "none"
    """model: keep only one part of the model on the GPU at a time, which is slower and needs less memory"""
    compile: bool = True
    """on an NVIDIA GPU, compile the network in the background"""
    replicas: int | None = Field(default=None, title="N", ge=1)
    """with --backend ray: number of workers; default: one per GPU, or one"""
    ray_address: str | None = Field(default=None, title="ADDRESS")
    """with --backend ray: running cluster to join, such as auto; default: start one on this machine"""

    auth: Path | None = Field(default=None, title="FILE")
    """require a login; `python -m app.server.auth FILE add NAME` makes the file"""
    framed_by: str = Field(default="", title="ORIGINS")
    """sites that may show the page in a frame, such as https://example.org; default: none, on a Space
    https://huggingface.co"""
    rate: int | None = Field(default=None, title="STEPS", ge=100)
    """denoiser steps that one person may request per minute; default: no limit"""
    answer_wait: float = Field(default=30.0, title="SECONDS", ge=1, le=600)
    """seconds that a program has to open the stream of its answer; after that its request is cancelled"""
    mcp: bool = False
    """offer the app as a tool to programs, by the Model Context Protocol"""

    metrics_port: int | None = Field(default=None, title="N", ge=1, le=65535)
    """serve Prometheus metrics on this port, without a token"""
    metrics_host: str = Field(default="127.0.0.1", title="ADDRESS")
    """address that --metrics-port listens on"""
    metrics_token: str | None = Field(default=None, title="TOKEN", repr=False)
    """serve metrics at /metrics of the page, to clients that send this bearer token"""
    log_format: Literal["text", "json"] = "text"
    """write each log entry as a line of text or of JSON"""
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    """lowest level to log; info has a line for each request and each picture"""
    log: str | None = Field(default=None, title="LOG", repr=False)
    """record what visitors click and when, without their prompts: an SQLite file or postgresql://…"""

    study: Path | None = Field(default=None, title="FILE")
    """run this user study instead of the ordinary page"""
    study_log: str | None = Field(default=None, title="LOG", repr=False)
    """record the study's events here: an SQLite file or postgresql://…; default: study.sqlite in --data"""
    study_dataset: str | None = Field(default=None, title="OWNER/NAME")
    """mirror the study's events to this private dataset on the Hub"""
    study_enrolments: int = Field(default=30, title="N", ge=1)
    """participants of the study that one address may enrol per hour"""

    @field_validator(
        "port", "grace", "replicas", "rate", "answer_wait", "metrics_port", "study_enrolments", mode="before"
    )
    @classmethod
    def _reject_booleans(cls, value: Any) -> Any:
        return str(value) if isinstance(value, bool) else value  # pydantic would take `true` for 1

    @classmethod
    def settings_customise_sources(  # type: ignore[override]
        cls, settings_cls: type[BaseSettings], init_settings: Any, **_: Any
    ) -> tuple[Any, ...]:
        return (init_settings,)  # `read` combines the sources, to say which of them is wrong


FIELDS: Mapping[str, FieldInfo] = Settings.model_fields
# The headings of --help, by the first setting below each.
GROUPS = {
    "host": "server",
    "model": "model",
    "device": "computing",
    "auth": "access",
    "metrics_port": "metrics and logs",
    "study": "user studies",
}


def read(arguments: Sequence[str]) -> Settings:
    """Read the settings from a command line (without the program's name), the environment and a file.

    An option overrides an environment variable, which overrides the file that --config names, which overrides
    the default. Exits after --help.

    Raises:
        SettingsError: naming everything that is unknown, wrong, or does not go together.
    """
    options, unknown = _parser().parse_known_args(list(arguments))
    flags = vars(options)
    problems = [f"{each}: there is no such option." for each in unknown]
    config = flags.pop("config", None) or os.environ.get(f"{PREFIX}CONFIG")
    sources: tuple[tuple[Callable[[str], str], dict[str, Any]], ...] = (
        (lambda name: f"{name} in the file", _read_file(Path(config), problems) if config else {}),
        (_variable, _read_environment(problems)),
        (_flag, flags),
    )
    values: dict[str, Any] = {}
    for label, given in sources:
        try:
            values |= Settings(**given).model_dump(exclude_unset=True)
        except ValidationError as error:
            problems += [f"{label(str(each['loc'][0]))}: {_explain(each)}." for each in error.errors()]
    settings = Settings(**values)
    if problems := problems or _conflicts(settings):
        raise SettingsError("\n".join(problems))
    return settings


def _conflicts(settings: Settings) -> list[str]:
    """Describe settings that do not go together, and values that no type rules out."""
    token, root = settings.metrics_token, settings.root_path
    broken = {
        "--replicas and --ray-address need --backend ray.": (
            settings.backend != "ray" and (settings.replicas is not None or settings.ray_address)
        ),
        "--study-log, --study-dataset and --study-enrolments need --study.": (
            not settings.study
            and settings.model_fields_set & {"study_log", "study_dataset", "study_enrolments"}
        ),
        "--log is for the ordinary page; a study has --study-log.": settings.study and settings.log,
        "--mcp does not go with --study: a study is for people.": settings.study and settings.mcp,
        "--mcp does not go with --auth: agents cannot log in. Run a second app for them, on an address that "
        "only they can reach.": settings.mcp and settings.auth,
        "--framed-by takes origins such as https://example.org, with spaces between.": not all(
            ORIGIN.fullmatch(origin) for origin in settings.framed_by.split()
        ),
        f"--root-path must begin with a slash, as in /preview, not {root!r}.": (
            root and not root.startswith(("/", "http://", "https://"))
        ),
        "--metrics-port must differ from --port.": settings.metrics_port == settings.port,
        "--metrics-token must have at least 16 characters, or it can be guessed.": (
            token is not None and len(token) < 16
        ),
    }
    return [message for message, is_broken in broken.items() if is_broken]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    own = PREFIX + name.upper()
    return own if os.environ.get(own) else ALSO.get(name, own)


# What a value must be, by the beginning of the type of pydantic's error (int_parsing, int_from_float, …).
EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
}


def _explain(error: Mapping[str, Any]) -> str:
    """Describe the allowed values in place of a wrong one."""
    if error["type"] == "extra_forbidden":
        return "there is no such setting"
    field = FIELDS[str(error["loc"][0])]
    bounds = [getattr(each, "ge", getattr(each, "le", None)) for each in field.metadata]
    if choices := _choices(field):
        expected = "one of " + ", ".join(choices)
    elif error["type"].endswith("than_equal"):
        expected = f"from {bounds[0]:,} to {bounds[1]:,}" if len(bounds) > 1 else f"{bounds[0]:,} or more"
    else:
        expected = EXPECTED.get(error["type"].partition("_")[0], error["msg"])
    return f"must be {expected}" + (f", not {error['input']!r}" if field.repr else "")


def _read_environment(problems: list[str]) -> dict[str, Any]:
    known = {PREFIX + name.upper() for name in (*FIELDS, "config")}
    problems += [
        f"{variable}: there is no such setting."
        for variable in sorted(os.environ)
        if variable.startswith(PREFIX) and variable not in known
    ]
    of_space = {name: os.environ[variable] for name, variable in ALSO.items() if os.environ.get(variable)}
    return of_space | EnvSettingsSource(Settings)()


def _read_file(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        path.open().close()  # pydantic-settings takes a missing file for an empty one
        return TomlConfigSettingsSource(Settings, path)()
    except OSError as error:
        problems.append(f"--config: can't read {path} ({error.strerror}).")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"--config: {path} is not TOML ({error}).")
    return {}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise SettingsError(message[:1].upper() + message[1:] + ". --help explains the options.")


def _choices(field: FieldInfo) -> list[str]:
    return [each for each in get_args(field.annotation) if isinstance(each, str)]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        description="Preview a prompt in a few steps; choose a preview, and only that one is refined.",
        usage="python app.py [options]",
        epilog=f"Every option can also be set by an environment variable ({PREFIX}PORT for --port) or in the "
        "file of --config (port = 8000). An option overrides a variable, and a variable the file.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings")
    for name, field in FIELDS.items():
        if name in GROUPS:
            group = parser.add_argument_group(GROUPS[name])
        # Values are not checked here: `Settings` checks those of options like all others.
        choices = ",".join(_choices(field))
        options: dict[str, Any] = {"metavar": f"{{{choices}}}" if choices else field.title or name.upper()}
        if field.annotation is bool:
            options = {"action": argparse.BooleanOptionalAction}
        default = "" if field.default in (None, "", False) else f" ({field.default})"
        group.add_argument(_flag(name), help=f"{field.description}{default}".replace("%", "%%"), **options)
    return parser


def describe(settings: Settings) -> str:
    """List the settings that differ from their defaults, on one line and without secrets."""
    changed = [
        f"{name}={getattr(settings, name) if field.repr else HIDDEN}"
        for name, field in FIELDS.items()
        if getattr(settings, name) != field.default
    ]
    return ", ".join(changed) or "defaults"


def as_markdown() -> str:
    """The table of all settings for docs/deployment.md."""
    rows = ["| option | environment variable | default | meaning |", "|---|---|---|---|"]
    for name, field in FIELDS.items():
        variables = [f"`{each}`" for each in (PREFIX + name.upper(), ALSO.get(name)) if each]
        default = "" if field.default in (None, "") else f"`{str(field.default).lower()}`"
        meaning = " ".join((field.description or "").split())
        if choices := _choices(field):
            meaning += f" ({', '.join(f'`{choice}`' for choice in choices)})"
        rows.append(f"| `{_flag(name)}` | {', '.join(variables)} | {default} | {meaning} |")
    return "\n".join(rows)
