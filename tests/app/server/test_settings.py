import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from app.backends import BACKENDS
from app.catalogue import OFFLOADS
from app.server.settings import (
    FIELDS,
    HIDDEN,
    PREFIX,
    Settings,
    SettingsError,
    as_markdown,
    describe,
    read,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment without settings."""
    for name in ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_an_option_overrides_the_environment_the_file_and_the_default(
    file: Path, environment: pytest.MonkeyPatch
) -> None:
    file.write_text('port = 1003\nmodel = "file"\ndevice = "cpu"\n')
    assert read([]) == Settings()
    assert read(["--config", str(file)]).port == 1003
    for name, value in {"PORT": "1002", "MODEL": "variable", "CONFIG": str(file)}.items():
        environment.setenv(PREFIX + name, value)
    assert read(["--port", "1001"]).port == 1001
    settings = read([])
    assert (settings.port, settings.model, settings.device) == (1002, "variable", "cpu")


def test_our_own_variable_overrides_that_of_a_space(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    environment.setenv("GRADIO_SERVER_PORT", "many")
    with pytest.raises(SettingsError, match="GRADIO_SERVER_PORT: must be a whole number, not 'many'"):
        read([])
    environment.setenv(PREFIX + "PORT", "1001")
    assert (read([]).host, read([]).port) == ("0.0.0.0", 1001)
    environment.setenv(PREFIX + "HOST", "::1")
    assert read([]).host == "::1"


def test_an_empty_variable_sets_nothing(environment: pytest.MonkeyPatch) -> None:
    environment.setenv(PREFIX + "PORT", "")
    assert read([]) == Settings()


def test_settings_made_in_code_ignore_the_environment(environment: pytest.MonkeyPatch) -> None:
    environment.setenv(PREFIX + "PORT", "1001")
    assert Settings().port == 7860


@pytest.mark.parametrize("name", FIELDS)
def test_each_setting_can_be_given_in_every_way(
    name: str, file: Path, environment: pytest.MonkeyPatch
) -> None:
    values = {"backend": "ray", "data": "elsewhere", "auth": "logins", "root_path": "/below", "device": "cpu"}
    values |= {"log_format": "json", "log_level": "info", "mcp": "true", "metrics_token": "t" * 20}
    values |= {"replicas": "2", "ray_address": "auto", "rate": "700", "metrics_port": "9100", "grace": "3.5"}
    values |= {"study_enrolments": "7", "answer_wait": "12.5"}
    values |= {
        "framed_by": "https://example.org",
        "offload": "model",
        "safety_checker": "false",
        "compile": "false",
    }
    raw = values.get(name, "8123" if name == "port" else "some")
    beside = ["--backend", "ray"] if name in ("replicas", "ray_address") else []
    beside = ["--study", "some"] if name.startswith("study_") else beside
    flag = "--" + name.replace("_", "-")
    given = {"true": [flag], "false": [f"--no-{flag[2:]}"]}.get(raw, [flag, raw])
    by_flag = read([*beside, *given])
    assert getattr(by_flag, name) != FIELDS[name].default
    kinds = (int, float, bool)
    quoted = raw if isinstance(getattr(by_flag, name), kinds) else f'"{raw}"'
    file.write_text(f"{name} = {quoted}\n")
    assert by_flag == read([*beside, "--config", str(file)])
    environment.setenv(PREFIX + name.upper(), raw)
    assert by_flag == read(beside)


def test_everything_wrong_is_named_at_once(file: Path, environment: pytest.MonkeyPatch) -> None:
    file.write_text('colour = "red"\nrate = "many"\n')
    for name, value in {"DEVICE": "toaster", "TYPO": "1", "GRACE": "nan"}.items():
        environment.setenv(PREFIX + name, value)
    with pytest.raises(SettingsError) as caught:
        read(["--port", "99999", "--shine", "--config", str(file)])
    assert sorted(str(caught.value).splitlines()) == sorted(
        (
            "--port: must be from 1 to 65,535, not '99999'.",
            "--shine: there is no such option.",
            f"{PREFIX}DEVICE: must be one of auto, cpu, cuda, mps, not 'toaster'.",
            f"{PREFIX}TYPO: there is no such setting.",
            f"{PREFIX}GRACE: must be from 0 to 600, not 'nan'.",
            "colour in the file: there is no such setting.",
            "rate in the file: must be a whole number, not 'many'.",
        )
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port = ", "not TOML"),
        ("port = true", "port in the file: must be a whole number, not 'True'"),
        ("port = 80.5", "must be a whole number, not 80.5"),
        ("model = 3", "must be text, not 3"),
        ("data = 3", "must be a path, not 3"),
        ('mcp = "perhaps"', "must be true or false"),
        ("grace = true", "must be a number"),
        ("[port]\na = 1", "must be a whole number"),
        ("rate = 1", "100 or more"),
    ],
)
def test_a_wrong_file_is_explained(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(SettingsError, match=words):
        read(["--config", str(file)])


def test_a_missing_file_is_explained(file: Path) -> None:
    with pytest.raises(SettingsError, match="can't read"):
        read(["--config", str(file)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--replicas", "2"], "need --backend ray"),
        (["--root-path", "below"], "begin with a slash"),
        (["--metrics-port", "7860"], "must differ"),
        (["--metrics-token", "short"], "16 characters"),
        (["--port"], "expected one argument"),
    ],
)
def test_settings_that_do_not_go_together_are_explained(arguments: list[str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read(arguments)


def test_secrets_are_never_shown(file: Path) -> None:
    secret = "correct horse battery"
    settings = read(["--metrics-token", secret, "--port", "8000"])
    assert describe(settings) == f"port=8000, metrics_token={HIDDEN}"
    assert secret not in repr(settings)
    file.write_text("metrics_token = 12345678")
    with pytest.raises(SettingsError) as caught:
        read(["--config", str(file)])
    assert "12345678" not in str(caught.value)


def test_choices_are_what_the_rooms_below_know() -> None:
    assert get_args(FIELDS["backend"].annotation) == ("auto", *BACKENDS)
    assert get_args(FIELDS["offload"].annotation) == OFFLOADS


def test_the_docs_have_the_table_as_it_is() -> None:
    table = as_markdown()
    assert len(table.splitlines()) == 2 + len(FIELDS)
    assert table in (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")


def test_help_explains_every_option_without_slow_imports() -> None:
    code = (
        "import json, runpy, sys\n"
        "try:\n    runpy.run_path('app.py', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    print(json.dumps([end.code, sorted({'torch', 'gradio'} & {*sys.modules})]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    *text, last = done.stdout.splitlines()
    assert json.loads(last) == [0, []]
    words = " ".join(text).split()
    for name, field in FIELDS.items():
        assert field.description, "every setting has a docstring"
        assert f"--{name.replace('_', '-')}" in " ".join(words).replace(",", "")
