"""What tools/ decides: how a Dockerfile is read, and what an audit says."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


docker, audit = script("try_dockerfile"), script("audit")


def test_a_dockerfile_is_read_as_docker_reads_it() -> None:
    text = 'FROM a\n# no\nRUN one \\\n    && two\n\nCMD ["python", "a b"]\nHEALTHCHECK --x \\\n  CMD ["c"]\n'
    steps = docker.read_dockerfile(text)
    assert [step.name for step in steps] == ["FROM", "RUN", "CMD", "HEALTHCHECK"]
    assert steps[1].text == "one && two"
    assert steps[2].words == ["python", "a b"]


def test_ours_runs_as_a_user_listens_where_it_says_and_has_no_secrets(tmp_path: Path) -> None:
    build = docker.Build(tmp_path, {})
    build.run = lambda command: None
    build._copy = lambda step: None
    for step in docker.read_dockerfile((ROOT / "Dockerfile").read_text()):
        if step.name != "WORKDIR":
            build.do(step, {})
    assert build.user == "1000"
    assert build.environment["DIFFUSION_PREVIEW_PORT"] == build.port == "7860"
    assert build.command == ["python", "app.py"]
    assert build.health[:2] == ["python", "-m"]
    assert importlib.util.find_spec(build.health[2])


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("tests/app/server/test_api.py", True),
        ("tools/deploy.py", True),
        ("docs/page.md", True),
        ("app/page/__pycache__/a.pyc", True),
        ("app.py", False),
        ("checkpoints/recipe/scenes.py", True),
        ("checkpoints/landscapes/unet/config.json", False),
        ("README.md", False),
    ],
)
def test_what_is_left_out_of_the_image(path: str, ignored: bool) -> None:
    patterns = docker.read_ignored((ROOT / ".dockerignore").read_text())
    assert docker.is_ignored(path, patterns) is ignored


SAFE = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "X-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "code", "words"),
    [
        ([SAFE], 0, "These 1 packages have no known"),
        ([SAFE, BAD, UNKNOWN], 1, "b 2: X-1, fixed in 3"),
        ([SAFE, UNKNOWN], 3, "These could not be looked up: c"),
        ([UNKNOWN], 3, "Nothing was looked up"),
    ],
)
def test_what_was_not_looked_up_is_never_called_safe(packages: list, code: int, words: str) -> None:
    said, lines = audit.judge({"dependencies": packages})
    assert said == code
    assert words in lines[0]


def test_an_audit_without_a_service_says_so(tmp_path: Path) -> None:
    for output, code in ((json.dumps({"dependencies": [UNKNOWN]}), 3), ("no connection", 3)):
        program = tmp_path / "pip-audit"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\n")
        program.chmod(0o755)
        command = [sys.executable, str(ROOT / "tools" / "audit.py"), str(program)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == code
        assert "Nothing was looked up" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
