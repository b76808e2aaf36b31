"""What docs/api.md tells programs to do, done as written."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.jobs import metadata
from tests.conftest import Served

API = Path(__file__).parents[1] / "docs" / "api.md"


def example(language: str, url: str) -> str:
    (code,) = re.findall(rf"```{language}\n(.*?)```", API.read_text(encoding="utf-8"), re.DOTALL)
    return code.replace("http://127.0.0.1:7860/", url)


def test_the_python_example(served: Served, tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", example("python", served.url)], cwd=tmp_path, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    file, seed, seconds = answer.stdout.split("\n")[-2].split()
    parameters = metadata.read(Path(file).read_bytes())
    assert (parameters.prompt, parameters.settings["Seed"]) == ("snowy mountains at sunset", seed)
    assert float(seconds) > 0


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_curl_example(served: Served, tmp_path: Path) -> None:
    answer = subprocess.run(
        ["bash", "-euc", example("bash", served.url)], cwd=tmp_path, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    settings = metadata.read((tmp_path / "picture.png").read_bytes()).settings
    assert (settings["Seed"], settings["Steps"]) == ("7", "40")
