"""What goes to a Space, and what is said when it can't; against the hub's client with its own errors."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import RepoCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from app.server import auth
from tools import deploy
from tools.deploy import DeployError, Item

ROOT = Path(__file__).parents[2]
TEN_MB = 10_000_000
SPACE = "ada/preview"


def requirement(name: str) -> str:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{name}=="))


def test_no_tracked_file_needs_more_than_plain_git() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / path for path in listed.splitlines()]
    assert len(paths) > 100
    assert [path for path in paths if path.is_file() and path.stat().st_size > TEN_MB] == []


def test_the_repository_is_a_space_as_it_is() -> None:
    card = RepoCard((ROOT / "README.md").read_text(encoding="utf-8")).data.to_dict()
    assert card["sdk"] == "gradio"
    assert card["sdk_version"] == requirement("gradio")
    assert card["python_version"] == "3.12.12"
    assert (ROOT / card["app_file"]).is_file()
    assert len(card["short_description"]) <= 60
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    (torch,) = (line for line in lines if line.startswith("torch==") and '>= "3.12"' in line)
    assert torch.startswith(("torch==2.8.0;", "torch==2.9.1;", "torch==2.10.0;", "torch==2.11.0;"))
    assert not any(line.startswith("spaces") for line in lines)  # it is there where it is of use


def test_a_docker_space_has_the_same_card_but_for_how_it_runs() -> None:
    readme = (ROOT / "README.md").read_bytes()
    assert deploy.card(readme, "gradio") == readme
    docker = deploy.card(readme, "docker").decode()
    before, after = RepoCard(readme.decode()).data.to_dict(), RepoCard(docker).data.to_dict()
    assert (after["sdk"], after["app_port"]) == ("docker", 7860)
    assert before["title"] == after["title"]
    assert "python_version" not in after
    assert readme.decode().partition("\n---\n")[2] == docker.partition("\n---\n")[2]
    exposed = next(line for line in (ROOT / "Dockerfile").read_text().splitlines() if "EXPOSE" in line)
    assert exposed == f"EXPOSE {after['app_port']}"


@pytest.mark.parametrize("sdk", deploy.SDKS)
def test_what_goes_is_what_the_app_needs(sdk: str) -> None:
    paths = {item.path for item in deploy.items(sdk)}
    needed = {"app.py", "README.md", "LICENSE", "requirements.txt", deploy.OURS, "Dockerfile"}
    assert needed <= paths
    assert any(path.startswith("checkpoints/landscapes/unet/") for path in paths)
    assert not any(path.startswith(("tests/", ".ci/", "tools/", "data/", ".venv/")) for path in paths)
    assert (".dockerignore" in paths) == (sdk == "docker")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkout."""
    (tmp_path / "README.md").write_text("---\nsdk: gradio\n---\n# Preview\n")
    (tmp_path / "app.py").write_text("print()\n")
    (tmp_path / deploy.OURS).parent.mkdir(parents=True)
    (tmp_path / deploy.OURS).write_text("")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(deploy, "ROOT", tmp_path)
    return tmp_path


@dataclass
class Hub:
    """The hub's client with a Space in memory. errors: by method, what it raises."""

    files: set[str] | None = None
    errors: dict[str, Exception] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    sent: dict[str, bytes] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    hardware: str = ""

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.errors:
            raise self.errors[name]

    def whoami(self) -> dict[str, str]:
        self._called("whoami")
        return {"name": "ada"}

    def repo_exists(self, space: str, *, repo_type: str) -> bool:
        self._called("repo_exists")
        return self.files is not None

    def list_repo_files(self, space: str, *, repo_type: str) -> list[str]:
        return sorted(self.files or ())

    def create_repo(self, space: str, **options: Any) -> str:
        self._called("create_repo")
        return f"https://huggingface.co/spaces/{space}"

    def create_commit(self, space: str, operations: list[Any], **options: Any) -> None:
        self._called("create_commit")
        for operation in operations:
            if isinstance(operation, huggingface_hub.CommitOperationAdd):
                with operation.as_file() as content:
                    self.sent[operation.path_in_repo] = content.read()
            else:
                self.deleted.append(operation.path_in_repo)

    def request_space_hardware(self, space: str, hardware: str) -> None:
        self._called("request_space_hardware")
        self.hardware = hardware


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, repository: Path) -> Hub:
    hub = Hub()
    for name in ("whoami", "repo_exists", "list_repo_files", "create_repo", "create_commit"):
        monkeypatch.setattr(
            huggingface_hub.HfApi, name, lambda self, *a, _n=name, **o: getattr(hub, _n)(*a, **o)
        )
    monkeypatch.setattr(
        huggingface_hub.HfApi, "request_space_hardware", lambda self, *a: hub.request_space_hardware(*a)
    )
    monkeypatch.setenv("HF_TOKEN", "of a test")
    return hub


def test_without_yes_nothing_is_asked_of_the_hub(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy.main(["--space", SPACE, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["files"]) == {"README.md", "app.py", deploy.OURS}
    assert told["sent"] is False
    assert hub.calls == []


def test_with_yes_it_is_sent_in_one_commit(hub: Hub, repository: Path) -> None:
    assert deploy.main(["--space", SPACE, "--yes", "--hardware", "zero-a10g"]) == 0
    assert hub.sent["app.py"] == b"print()\n"
    assert hub.calls == ["whoami", "repo_exists", "create_repo", "create_commit", "request_space_hardware"]
    assert hub.hardware == "zero-a10g"


def test_a_later_one_removes_what_is_gone(hub: Hub) -> None:
    hub.files = {deploy.OURS, "old.py", "README.md", ".gitattributes"}
    assert deploy.main(["--space", SPACE, "--yes"]) == 0
    assert hub.deleted == ["old.py"]


def test_an_empty_space_is_filled_but_another_one_is_left_alone(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files = {"README.md", ".gitattributes"}
    assert deploy.main(["--space", SPACE, "--yes"]) == 0
    hub.files, hub.calls = {"README.md", "diary.txt"}, []
    assert deploy.main(["--space", SPACE, "--yes"]) == 1
    assert "something else" in capsys.readouterr().err
    assert "create_commit" not in hub.calls


def answered(status: int) -> HfHubHTTPError:
    response = httpx2.Response(status, request=httpx2.Request("POST", "https://example.org"))
    kind = RepositoryNotFoundError if status == 404 else HfHubHTTPError
    return kind(f"{status} for you", response=response)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ("whoami", answered(401), "does not know this token"),
        ("create_repo", answered(402), "payment"),
        ("create_repo", answered(403), "may not write to ada's Spaces"),
        ("create_commit", answered(404), "There is no ada on the hub"),
        ("create_repo", answered(409), "Choose another name"),
        ("create_commit", answered(429), "few minutes"),
        ("create_commit", answered(500), "(500)"),
        ("whoami", httpx2.ConnectError("no route to host"), "can't be reached"),
        ("create_commit", httpx2.ReadTimeout("timed out"), "can't be reached"),
        ("repo_exists", OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        ("repo_exists", HFValidationError("bad"), "is not a valid name of a Space"),
        ("create_commit", RuntimeError("odd"), "client failed (RuntimeError: odd)"),
    ],
)
def test_what_the_hub_says_is_answered_with_a_message(
    hub: Hub, call: str, error: Exception, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.errors[call] = error
    assert deploy.main(["--space", SPACE, "--yes"]) == 1
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told


def test_no_token(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("huggingface_hub.utils.get_token", lambda: None)
    assert deploy.main(["--space", SPACE, "--yes"]) == 1
    assert "There is no token" in capsys.readouterr().err
    assert hub.calls == []


def test_what_is_not_committed_is_not_sent(
    hub: Hub, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "app.py").write_text("print('changed')\n")
    assert deploy.main(["--space", SPACE, "--yes"]) == 1
    assert "uncommitted changes: app.py" in capsys.readouterr().err
    assert hub.calls == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (".env", "A=b"),
        ("deep/server.key", "x"),
        ("notes.md", "hf_" + "a" * 34),
        ("other.txt", "-----BEGIN OPENSSH " + "PRIVATE KEY-----"),
        ("production.env", "A=b"),
        (".env.local", "A=b"),
        ("deep/id_ed25519", "x"),
        ("data/study.sqlite", "x"),
        ("people", "ada:scrypt:32768:8:1:" + "0f" * 16 + ":" + "a0" * 32),
        ("late.txt", "\n\nada:scrypt:32768:8:1:" + "0f" * 16 + ":" + "a0" * 32),
    ],
)
def test_secrets_are_never_sent(repository: Path, path: str, text: str) -> None:
    (repository / path).parent.mkdir(exist_ok=True)
    (repository / path).write_text(text)
    subprocess.run(["git", "add", "-f", path], cwd=repository, check=True)
    with pytest.raises(DeployError, match=f"{re.escape(path)} looks like a secret"):
        deploy.items("gradio")


def test_a_written_logins_file_is_known_by_its_lines(repository: Path) -> None:
    auth.add(repository / "people.txt", "ada", "a long password")
    subprocess.run(["git", "add", "."], cwd=repository, check=True)
    with pytest.raises(DeployError, match=r"people\.txt looks like a secret"):
        deploy.items("gradio")


@pytest.mark.parametrize("inside", [True, False])
def test_a_link_is_not_followed(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, inside: bool
) -> None:
    outside = tmp_path_factory.mktemp("home") / "diary"
    outside.write_text("dear diary")
    (repository / "notes").symlink_to("app.py" if inside else outside)
    subprocess.run(["git", "add", "."], cwd=repository, check=True)
    with pytest.raises(DeployError, match="notes is a symbolic link"):
        deploy.items("gradio")


def test_what_takes_the_place_of_a_file_is_not_read(
    hub: Hub, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (outside := tmp_path_factory.mktemp("home")).joinpath("model_index.json").write_text("dear diary")
    folder = (repository / deploy.OURS).parent
    shutil.rmtree(folder)
    folder.symlink_to(outside)
    assert {item.path: item.content for item in deploy.items("gradio")}[deploy.OURS] == b""
    assert deploy.main(["--space", SPACE, "--yes"]) == 1
    assert hub.calls == []


def test_a_repository_inside_is_refused(repository: Path) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    commit = ["-C", "inner", *identity, "commit", "-q", "--allow-empty", "-m", "all"]
    commands = (["init", "-q", "inner"], commit, ["add", "inner"])
    for command in commands:
        subprocess.run(["git", *command], cwd=repository, check=True, capture_output=True)
    with pytest.raises(DeployError, match="inner is a repository of its own"):
        deploy.items("gradio")


def test_a_tracked_file_that_git_ignores_is_refused(repository: Path) -> None:
    (repository / ".gitignore").write_text("data/\n")
    (repository / "data").mkdir()
    for name in ("made by hand.json", "untracked"):
        (repository / "data" / name).write_text("{}")
    subprocess.run(["git", "add", "-f", "data/made by hand.json"], cwd=repository, check=True)
    with pytest.raises(DeployError, match=r"data/made by hand\.json is in git, though"):
        deploy.items("gradio")


def test_an_odd_name_and_odd_content_go_as_they_are(repository: Path) -> None:
    for name, content in (("ä \n b", b"a\n\nb"), ("binary", bytes(range(256))), ("empty", b"")):
        (repository / name).write_bytes(content)
        subprocess.run(["git", "add", name], cwd=repository, check=True)
        assert {item.path: item.content for item in deploy.items("gradio")}[name] == content


def test_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "ROOT", tmp_path)
    with pytest.raises(DeployError, match="not a git checkout"):
        deploy.items("gradio")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--space", "preview"],
        ["--space", SPACE, "--hardware", "abacus"],
        ["--space", SPACE, "--sdk", "docker", "--hardware", "zero-a10g"],
    ],
)
def test_wrong_arguments_end_with_a_message(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        deploy.main(arguments)
    assert caught.value.code == 2


def test_the_list_has_each_size_and_the_sum() -> None:
    *lines, last = deploy.listing([Item("a", b"x" * 1500), Item("b", b"")])
    assert [line.split() for line in lines] == [["1,500", "a"], ["0", "b"]]
    assert last.split() == ["1,500", "bytes", "in", "2", "files"]
