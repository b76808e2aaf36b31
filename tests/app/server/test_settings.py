from dataclasses import fields
from pathlib import Path

import pytest

from app.server.settings import (
    HIDDEN,
    PREFIX,
    TABLE,
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


def test_a_flag_goes_before_the_environment_before_the_file_before_the_default(file: Path) -> None:
    file.write_text('port = 1003\nmodel = "file"\ndevice = "cpu"\n')
    environment = {PREFIX + "PORT": "1002", PREFIX + "MODEL": "variable", PREFIX + "CONFIG": str(file)}
    assert read(["--port", "1001"], environment).port == 1001
    settings = read([], environment)
    assert (settings.port, settings.model, settings.device) == (1002, "variable", "cpu")
    assert read(["--config", str(file)], {}).port == 1003
    assert read([], {}) == Settings()


def test_what_a_space_sets_counts_after_our_own_name() -> None:
    assert read([], {"GRADIO_SERVER_NAME": "0.0.0.0"}).host == "0.0.0.0"
    assert read([], {"GRADIO_SERVER_NAME": "0.0.0.0", PREFIX + "HOST": "::1"}).host == "::1"


def test_an_empty_variable_sets_nothing() -> None:
    assert read([], {PREFIX + "PORT": ""}).port == Settings().port


@pytest.mark.parametrize("name", TABLE)
def test_each_setting_can_be_said_in_every_way(name: str, file: Path) -> None:
    values = {"backend": "ray", "data": "elsewhere", "auth": "logins", "root_path": "/below", "device": "cpu"}
    values |= {"log_format": "json", "log_level": "info", "mcp": "true", "metrics_token": "t" * 20}
    values |= {"replicas": "2", "ray_address": "auto", "rate": "700", "metrics_port": "9100", "grace": "3.5"}
    values |= {"offload": "model", "safety_checker": "false", "compile": "false"}
    raw = values.get(name, "8123" if name == "port" else "some")
    beside = ["--backend", "ray"] if name in ("replicas", "ray_address") else []
    beside = ["--study", "some"] if name in ("study_log", "study_dataset") else beside
    flag = "--" + name.replace("_", "-")
    said = {"true": [flag], "false": [f"--no-{flag[2:]}"]}.get(raw, [flag, raw])
    by_flag = read([*beside, *said], {})
    assert getattr(by_flag, name) != TABLE[name].default
    assert by_flag == read(beside, {PREFIX + name.upper(): raw})
    kinds = (int, float, bool)
    quoted = raw if isinstance(getattr(by_flag, name), kinds) else f'"{raw}"'
    file.write_text(f"{name} = {quoted}\n")
    assert by_flag == read([*beside, "--config", str(file)], {})


def test_all_that_is_wrong_is_named_at_once(file: Path) -> None:
    file.write_text('colour = "red"\nrate = "many"\n')
    with pytest.raises(SettingsError) as caught:
        read(
            ["--port", "99999", "--shine", "--config", str(file)],
            {PREFIX + "DEVICE": "toaster", PREFIX + "TYPO": "1", PREFIX + "GRACE": "nan"},
        )
    lines = str(caught.value).splitlines()
    assert len(lines) == 7
    for words in (
        "--port: 99999 is not from 1 to 65,535",
        "--shine: there is no such option",
        f"{PREFIX}DEVICE: 'toaster' is none of auto, cpu",
        f"{PREFIX}TYPO: there is no such setting",
        f"{PREFIX}GRACE: 'nan' is not a number",
        "colour in the file: there is no such setting",
        "rate in the file: 'many' is not a whole number",
    ):
        assert sum(words in line for line in lines) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port = ", "not TOML"),
        ("port = true", "not a whole number"),
        ("port = 80.5", "not a whole number"),
        ("model = 3", "not text"),
        ('mcp = "perhaps"', "not true or false"),
        ("[port]\na = 1", "not a whole number"),
        ("rate = 1", "100 or more"),
    ],
)
def test_a_wrong_file_is_said_in_words(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(SettingsError, match=words):
        read(["--config", str(file)], {})


def test_a_missing_file_is_said_in_words(file: Path) -> None:
    with pytest.raises(SettingsError, match="can't be read"):
        read(["--config", str(file)], {})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--replicas", "2"], "go with --backend ray"),
        (["--root-path", "below"], "begin with a slash"),
        (["--metrics-port", "7860"], "must differ"),
        (["--metrics-token", "short"], "16 letters"),
        (["--port"], "expected one argument"),
    ],
)
def test_what_does_not_go_together_is_said_in_words(arguments: list[str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read(arguments, {})


def test_secrets_are_not_shown() -> None:
    secret = "correct horse battery"
    told = describe(read(["--metrics-token", secret, "--port", "8000"], {}))
    assert told == f"port=8000, metrics_token={HIDDEN}"


def test_the_docs_have_the_table_as_it_is() -> None:
    table = as_markdown()
    assert len(table.splitlines()) == 2 + len(fields(Settings))
    assert table in (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
