"""The package: what it needs is what the requirements files pin, and its wheel works from any folder."""

import json
import os
import site
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
FILES = {
    "requirements.txt": PROJECT["dependencies"],
    "requirements-study.txt": EXTRAS["study"],
    "requirements-ray.txt": EXTRAS["ray"],
    "requirements-mcp.txt": EXTRAS["mcp"],
    "requirements-rewards.txt": EXTRAS["rewards"],
}


def pins(file: str) -> list[Requirement]:
    """Return the pinned requirements of a file, without those that it includes."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-r "))]


@pytest.mark.parametrize("file", FILES)
def test_requirements_pin_what_the_package_depends_on(file: str) -> None:
    declared = {canonicalize_name(r.name): r for r in map(Requirement, FILES[file])}
    pinned = pins(file)
    assert {canonicalize_name(pin.name) for pin in pinned} == declared.keys()
    for pin in pinned:
        (specifier,) = pin.specifier
        assert specifier.operator == "==", f"{pin} is not pinned"
        assert declared[canonicalize_name(pin.name)].specifier.contains(specifier.version), pin
        assert declared[canonicalize_name(pin.name)].extras == pin.extras


def test_what_training_needs_is_pinned_for_development() -> None:
    pinned = {canonicalize_name(pin.name) for file in (*FILES, "requirements-dev.txt") for pin in pins(file)}
    assert {canonicalize_name(Requirement(line).name) for line in EXTRAS["train"]} <= pinned


def test_the_solver_alone_imports_neither_the_app_nor_the_embedded_model() -> None:
    code = (
        "import json, sys, solver; "
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"app", "checkpoints", "diffusers", "transformers", "gradio"} & set(json.loads(told.stdout))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from the files of the last commit, and install it alone; return the environment's bin."""
    folder = tmp_path_factory.mktemp("package")
    source, environment = folder / "source", folder / "environment"
    source.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "x"], cwd=source, input=archive, check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), "."]
    subprocess.run(build, cwd=source, check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(environment, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # What it depends on comes from the environment of this test, since fetching it takes minutes.
    packages = environment / "lib" / version / "site-packages"
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, "--python", str(environment / "bin" / "python"), *install], check=True)
    return environment / "bin"


def run(folder: Path, *command: str) -> str:
    """Run a command in a folder that is not the repository's; return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_installed_wheel_works_from_another_folder(installed: Path, tmp_path: Path) -> None:
    assert "--model" in run(tmp_path, str(installed / "diffusion-preview"), "--help")
    assert "ablate" in run(tmp_path, str(installed / "consistency-solver"), "--help")
    assert "--method" in run(tmp_path, str(installed / "consistency-solver"), "train", "--help")
    run(tmp_path, str(installed / "consistency-solver"), "export", "--to", "comfyui", "nodes")
    assert {"nodes.py", "sampling.py", "README.md"} <= {path.name for path in (tmp_path / "nodes").iterdir()}
    assert (tmp_path / "nodes" / "plans" / "landscapes.json").is_file()
    program = """
import torch
import app, solver
from app.jobs.job import Done
from app.jobs.request import build_jobs
from app.models import Choice, open_model
from app.worker import Worker
from app.worker.costs import Costs

print(solver.__file__, app.__file__)
model = open_model(Choice("landscapes", "cpu"))
worker = Worker(model, costs=Costs((1, 2), (0.1, 0.2), decode_s=0.01, encode_s=0.01))
(job,) = build_jobs(
    "preview", model.facts, prompt="a castle at dawn", steps=2, guidance=3, solver="consistency", seed=1
)
*_, last = worker.submit(job).events()
assert isinstance(last, Done), last
print(last.picture.size)
worker.close()
"""
    where, size = run(tmp_path, str(installed / "python"), "-c", program).splitlines()
    assert all(str(installed.parent) in path for path in where.split())
    assert size == "(256, 256)"


def test_an_unknown_command_names_those_that_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "solver", "trian"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "There is no command 'trian'; there are learn, pairs, train" in done.stderr
