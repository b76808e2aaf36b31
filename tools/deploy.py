"""Deploy this repository to a Hugging Face Space: python -m tools.deploy --space USER/NAME.

Without --yes it only lists the files. It sends the files that git tracks, as last committed, except those
only for development, and deletes all others from the Space. Links, files that git ignores and files that
look like secrets are never sent.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Beginnings of the paths that a Space does not need.
LEFT_OUT = (
    ".ci/",
    ".dockerignore",
    ".github/",
    ".npmrc",
    ".pre-commit-config.yaml",
    "Makefile",
    "eslint.config.js",
    "examples/",
    "integrations/",
    "package-lock.json",
    "package.json",
    "requirements-",
    "tests/",
    "tools/",
    "tsconfig.json",
)
NEEDED_BY_DOCKER = (".dockerignore",)
# Every version of this program has sent this file: a Space that has it was made by this program.
OURS = "checkpoints/landscapes/model_index.json"
NEW_SPACE = {"README.md", ".gitattributes"}
SDKS = ("gradio", "docker")
ZERO = "zero-"
PORT = 7860
SECRET_NAMES = re.compile(
    r"(^|/)(\.git|.*\.env|\.env\..*|.*\.(pem|key|p12|pfx|jks|kdbx|sqlite)|id_(rsa|dsa|ecdsa|ed25519)|logins|.*token"
    r"|\.netrc|\.pypirc|\.htpasswd|credentials(\.json)?|settings\.toml)(/|$)"
)
# A token of the hub, a private key, a line of the file of --auth.
SECRET_TEXTS = re.compile(
    rb"hf_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----|^[^\s:]+:scrypt:\d+:\d+:\d+:[0-9a-f]{16,}:",
    re.MULTILINE,
)
# Kinds of entries in git that are no files of this repository, by their modes.
NO_FILES = {"120000": "a symbolic link", "160000": "a repository of its own"}


class DeployError(RuntimeError):
    """The deployment is impossible; the message says why and what to do."""


@dataclass(frozen=True)
class Item:
    """A file to send: its path in the repository, and its content."""

    path: str
    content: bytes


def git(*arguments: str, given: str = "") -> bytes:
    """Return the output of a git command that is given this input. Raises DeployError if it fails."""
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, input=given.encode(), capture_output=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise DeployError(
            "This is not a git checkout, or git is missing. Only files that git tracks are sent."
        ) from error


def check_clean() -> None:
    """Raise DeployError if there are uncommitted changes."""
    changed = [line[3:] for line in git("status", "--porcelain").decode().splitlines()]
    if changed:
        shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise DeployError(f"There are uncommitted changes: {shown}. Commit or remove them, and try again.")


def items(sdk: str) -> list[Item]:
    """Read the files for a Space of that SDK from git, so that no link in the working tree is followed.

    Raises DeployError if one is no plain file, is ignored by git, or looks like a secret.
    """
    kept = NEEDED_BY_DOCKER if sdk == "docker" else ()
    hashes = {}
    for line in _lines("ls-files", "--stage"):
        about, _, path = line.partition("\t")
        mode, digest, _ = about.split()
        if path.startswith(LEFT_OUT) and path not in kept:
            continue
        if mode in NO_FILES:
            raise DeployError(
                f"{path} is {NO_FILES[mode]}. Nothing was sent. Put a file there, or remove it."
            )
        hashes[path] = digest
    for path in _lines("ls-files", "--cached", "--ignored", "--exclude-standard"):
        if path in hashes:
            raise DeployError(
                f"{path} is in git, though .gitignore names it. Nothing was sent. Change one of the two."
            )
    found = [Item(path, content) for path, content in zip(hashes, _contents(hashes.values()), strict=True)]
    for item in found:
        if SECRET_NAMES.search(item.path) or SECRET_TEXTS.search(item.content):
            raise DeployError(f"{item.path} looks like a secret. Nothing was sent. Remove it from git.")
    return [Item(each.path, card(each.content, sdk)) if each.path == "README.md" else each for each in found]


def _lines(*arguments: str) -> list[str]:
    return git(*arguments, "-z").decode(errors="surrogateescape").split("\0")[:-1]


def _contents(hashes: Iterable[str]) -> Iterator[bytes]:
    """Yield what git has under each hash."""
    output, start = git("cat-file", "--batch", given="".join(f"{each}\n" for each in hashes)), 0
    while start < len(output):
        end = output.index(b"\n", start) + 1
        size = int(output[start:end].split()[2])
        yield output[end : end + size]
        start = end + size + 1


def card(readme: bytes, sdk: str) -> bytes:
    """Return the README with front matter for a Space of that SDK; its own is for Gradio."""
    if sdk == "gradio":
        return readme
    top, _, rest = readme.decode().removeprefix("---\n").partition("\n---\n")
    own = ("sdk:", "sdk_version:", "python_version:", "app_file:")
    lines = [line for line in top.splitlines() if not line.startswith(own)]
    return "\n".join(["---", *lines, f"sdk: {sdk}", f"app_port: {PORT}", "---", rest]).encode()


def upload(space: str, sdk: str, hardware: str | None, private: bool, files: Sequence[Item]) -> str:
    """Create the Space if necessary, send the files in one commit, and return its address.

    Raises DeployError if the hub refuses or can't be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import get_token

    if not get_token():
        raise DeployError(
            "There is no token. Make one with write access at https://huggingface.co/settings/tokens, and "
            "log in with `hf auth login`, or set HF_TOKEN."
        )
    api = HfApi()
    try:
        api.whoami()
        there = set()
        if api.repo_exists(space, repo_type="space"):
            there = set(api.list_repo_files(space, repo_type="space"))
            if OURS not in there and there - NEW_SPACE:
                raise DeployError(
                    f"The Space {space} exists and contains something else. Choose another name."
                )
        url = api.create_repo(space, repo_type="space", space_sdk=sdk, private=private, exist_ok=True)
        gone = sorted(there - {each.path for each in files} - {".gitattributes"})
        operations: list[Any] = [CommitOperationAdd(each.path, each.content) for each in files]
        operations += [CommitOperationDelete(path) for path in gone]
        api.create_commit(
            space,
            operations,
            commit_message=f"Diffusion Preview {git('rev-parse', '--short', 'HEAD').decode().strip()}",
            repo_type="space",
        )
        if hardware:
            api.request_space_hardware(space, hardware)  # type: ignore[arg-type]
    except DeployError:
        raise
    except Exception as error:
        raise DeployError(explain(error, space)) from error
    return str(url)


def explain(error: Exception, space: str) -> str:
    """Return a message on an error of the hub, and what to do."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    user = space.partition("/")[0]
    if isinstance(error, HFValidationError):
        return f"{space} is not a valid name of a Space: USER/NAME, with letters, digits, - _ and dots."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set. Unset it, and try again."
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return {
            401: "The hub does not know this token. Make another, and log in with `hf auth login`.",
            402: "The hub asks for payment: a subscription for free hardware, or credits for the other.",
            403: f"This token may not write to {user}'s Spaces. Use a token of {user} with write access.",
            404: f"There is no {user} on the hub, or this token may not see {space}.",
            409: f"{space} is in conflict with a repository of the hub. Choose another name, or try again.",
            413: "The files are too large for the hub.",
            429: "The hub has received too many requests. Try again in a few minutes.",
        }.get(
            error.response.status_code,
            f"The hub answered with an error ({error.response.status_code}). Try again later.",
        )
    if isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "httpcore")):
        return f"The hub can't be reached ({error or type(error).__name__}). Is there a network?"
    return f"The hub's client failed ({type(error).__name__}: {error})."


def hardware_choices() -> list[str]:
    from huggingface_hub import SpaceHardware

    return [each.value for each in SpaceHardware]


def listing(files: Sequence[Item]) -> Iterator[str]:
    """Yield a line for each file, and the total."""
    for each in files:
        yield f"{len(each.content):>12,}  {each.path}"
    yield f"{sum(len(each.content) for each in files):>12,}  bytes in {len(files)} files"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.deploy", description=__doc__.splitlines()[0])
    parser.add_argument("--space", required=True, metavar="USER/NAME", help="the Space; created if necessary")
    parser.add_argument("--sdk", default="gradio", choices=SDKS, help="how the Space runs it (%(default)s)")
    parser.add_argument(
        "--hardware",
        metavar="NAME",
        help="request this hardware, such as zero-a10g (ZeroGPU), cpu-basic or t4-small; it may cost money",
    )
    parser.add_argument("--private", action="store_true", help="make a new Space private")
    parser.add_argument("--yes", action="store_true", help="send the files; without this, only list them")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", options.space, re.ASCII):
        parser.error("--space has the form USER/NAME")
    if options.hardware and options.hardware not in hardware_choices():
        parser.error(f"unknown hardware {options.hardware}; choose from {', '.join(hardware_choices())}")
    if options.sdk == "docker" and (options.hardware or "").startswith(ZERO):
        parser.error("ZeroGPU works only with --sdk gradio")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        files = items(options.sdk)
        if options.json:
            sizes = {each.path: len(each.content) for each in files}
            print(
                json.dumps({"space": options.space, "sdk": options.sdk, "sent": options.yes, "files": sizes})
            )
        else:
            print("\n".join(listing(files)))
        if not options.yes:
            print(f"Nothing was sent. --yes sends this to the Space {options.space}.", file=sys.stderr)
            return 0
        check_clean()
        url = upload(options.space, options.sdk, options.hardware, options.private, files)
        print(f"Done: {url}", file=sys.stderr)
    except DeployError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
