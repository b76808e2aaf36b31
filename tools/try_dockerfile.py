"""Try the Dockerfile without Docker: run its steps in a clean Debian, start the app, and make previews.

    sudo python tools/try_dockerfile.py --work /tmp/try

debootstrap makes the Debian once, in the folder --work; each try begins with a copy of it. The steps are read
from the Dockerfile and run in order with chroot. Then the command is started, the health check run, a
grid of previews made over the network, and the app stopped. Only FROM differs: Debian 12 and Python 3.11.

It must run as root, for chroot, /proc and /dev. Pip is configured as on this machine.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.request import urlopen

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = "python3,python3-venv,ca-certificates"
HEALTHY_WITHIN_S = 600
STOPPED_WITHIN_S = 60
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Step:
    """An instruction of a Dockerfile: its name in capitals, and its arguments on one line."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The arguments as words, from a JSON list or as a shell splits them."""
        try:
            return list(json.loads(self.text))
        except ValueError:
            return shlex.split(self.text)


def read_dockerfile(text: str) -> list[Step]:
    """Parse the steps of a Dockerfile."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        Step(name.upper(), rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines())
    ]


def read_ignored(text: str) -> list[str]:
    """Parse the patterns of a .dockerignore."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Whether a path in the repository, or a folder above it, matches one of the patterns."""
    parts = path.split("/")
    paths = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    return any(
        fnmatch(each, pattern) or (pattern.startswith("**/") and fnmatch(each.split("/")[-1], pattern[3:]))
        for pattern in patterns
        for each in paths
    )


@dataclass
class Build:
    """The state of the image after the steps so far."""

    root: Path
    environment: dict[str, str]
    user: str = "0"
    folder: str = "/"
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    port: str = ""

    def do(self, step: Step, given: Mapping[str, str]) -> None:
        """Run a step; given: the values of build arguments."""
        match step.name:
            case "FROM" | "VOLUME":
                pass
            case "ARG":
                name, _, default = step.text.partition("=")
                self.environment[name] = given.get(name, default.strip('"'))
            case "ENV":
                for pair in step.words:
                    name, _, value = pair.partition("=")
                    self.environment[name] = self._filled(value)
            case "USER":
                self.user = step.text
            case "WORKDIR":
                self.folder = step.text
                folder = self._outside(self.folder)
                if not folder.exists():
                    folder.mkdir(parents=True)
                    os.chown(folder, int(self.user), int(self.user))
            case "COPY":
                self._copy(step)
            case "RUN":
                self.run(["/bin/sh", "-c", step.text])
            case "EXPOSE":
                self.port = step.text
            case "HEALTHCHECK":
                self.health = Step("CMD", step.text.partition("CMD ")[2]).words
            case "CMD":
                self.command = step.words
            case _:
                raise SystemExit(f"This command does not support {step.name} yet.")

    def inside(self, command: list[str]) -> list[str]:
        """Wrap a command to run in the image, as the current user and in the current folder."""
        ids = f"--userspec={self.user}:{self.user}"
        there = f"cd {shlex.quote(self.folder)} && exec {shlex.join(command)}"
        return ["chroot", ids, str(self.root), "/usr/bin/env", "-i", *self._pairs(), "/bin/sh", "-c", there]

    def run(self, command: list[str]) -> None:
        """Run a command in the image. Raises CalledProcessError if it fails."""
        subprocess.run(self.inside(command), check=True)

    def _pairs(self) -> list[str]:
        home = "/root" if self.user == "0" else "/home/app"
        return [f"{name}={value}" for name, value in ({"HOME": home} | self.environment).items()]

    def _filled(self, value: str) -> str:
        return re.sub(r"\$\{?(\w+)\}?", lambda name: self.environment.get(name[1], ""), value)

    def _outside(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _copy(self, step: Step) -> None:
        """Copy the files that neither .dockerignore nor .gitignore excludes."""
        source, target = [word for word in step.words if not word.startswith("--")]
        patterns = read_ignored((REPOSITORY / ".dockerignore").read_text())
        for path in tracked_files():
            if (source in (".", path)) and not is_ignored(path, patterns):
                copy = self._outside(self.folder) / target / path
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(REPOSITORY / path, copy)
        subprocess.run(["chown", "-R", f"{self.user}:{self.user}", self._outside(self.folder)], check=True)


def tracked_files() -> list[str]:
    """List the repository's files, with new ones that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return [path for path in listed.splitlines() if (REPOSITORY / path).is_file()]


def make_debian(work: Path, mirror: str) -> Path:
    """Return a fresh copy of a minimal Debian 12 with Python, which is made first if necessary."""
    debian, root = work / "debian", work / "built"
    if not (debian / "usr/bin/python3").exists():
        work.mkdir(parents=True, exist_ok=True)
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(debian)]
        subprocess.run([*command, *([mirror] if mirror else [])], check=True)
    if root.exists():
        remove(root)
    subprocess.run(["cp", "-a", debian, root], check=True)
    return root


def remove(root: Path) -> None:
    """Remove the build, unless something of this machine is still mounted in it."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    if inside := [mount for mount in mounts if mount.startswith(f"{root}/")]:
        raise SystemExit(f"{inside[0]} is still mounted: umount it first.")
    shutil.rmtree(root)


@contextmanager
def mounted(root: Path, folders: list[Path]) -> Iterator[None]:
    """Mount /proc, /dev and these folders of this machine in the root."""
    binds = [Path("/dev"), Path("/proc"), *folders]
    done: list[Path] = []
    try:
        for folder in binds:
            place = root / str(folder).lstrip("/")
            place.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--bind", str(folder), str(place)], check=True)
            done.append(place)
        yield
    finally:
        for place in reversed(done):
            subprocess.run(["umount", "--lazy", str(place)], check=False)


def configure_pip(root: Path) -> dict[str, str]:
    """Configure pip in the root as on this machine; returns variables for its environment."""
    parts = [Path("/etc/pip.conf"), Path.home() / ".pip/pip.conf", Path.home() / ".config/pip/pip.conf"]
    together = "\n".join(part.read_text() for part in parts if part.is_file())
    # A section may stand only once in a file.
    merged = "[global]\n" + "\n".join(line for line in together.splitlines() if line.strip() != "[global]")
    (root / "etc/pip.conf").write_text(merged + "\n")
    for name in ("resolv.conf", "hosts", "ssl/certs/ca-certificates.crt"):
        if (Path("/etc") / name).is_file():
            shutil.copy(Path("/etc") / name, root / "etc" / name)
    kept = re.compile(r"(PIP_|SSL_CERT|REQUESTS_CA|https?_proxy|no_proxy)", re.IGNORECASE)
    return {name: value for name, value in os.environ.items() if kept.match(name)}


def folders_of_pip(environment: Mapping[str, str], root: Path) -> list[Path]:
    """List folders of this machine that pip's configuration names, with packages on disk."""
    text = (root / "etc/pip.conf").read_text() + " ".join(environment.values())
    found = {Path(path) for path in re.findall(r"(?:file://|\s|=)(/[\w./-]+)", " " + text)}
    # With the folders beside them: an index names files there.
    near = {Path(*path.parts[:3]) for path in found}
    return sorted(path for path in near if path.is_dir() and path.parts[1] not in ("etc", "proc", "dev"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(state: str, is_so: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    """Wait until `is_so()`."""
    began = time.monotonic()
    while not is_so():
        if process.poll() is not None or time.monotonic() - began > HEALTHY_WITHIN_S:
            raise SystemExit(f"The app did not become {state}; its messages are above.")
        time.sleep(1)


def is_healthy(build: Build) -> bool:
    """Run the Dockerfile's health check."""
    return subprocess.run(build.inside(build.health), capture_output=True).returncode == 0


def is_ready(url: str) -> bool:
    """Return whether the app accepts work."""
    try:
        with urlopen(f"{url}readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def preview(url: str) -> list[dict[str, Any]]:
    """Make a grid as a program does; returns its records."""
    from gradio_client import Client

    files, records = Client(url, verbose=False).predict(
        prompt="snowy mountains at sunset", api_name="/preview"
    )
    if not all(Path(file).read_bytes().startswith(b"\x89PNG") for file in files):
        raise SystemExit("The app sent something other than PNG.")
    return records


def try_it(root: Path, given: Mapping[str, str]) -> dict[str, float]:
    """Build the image and use it; returns the seconds of each step."""
    pip = configure_pip(root)
    took: dict[str, float] = {}
    build = Build(root, {"PATH": PATH, "LANG": "C.UTF-8", **pip})
    with mounted(root, folders_of_pip(pip, root)):
        for step in read_dockerfile((REPOSITORY / "Dockerfile").read_text()):
            print(f"── {step.name} {step.text[:90]}", flush=True)
            began = time.perf_counter()
            build.do(step, given)
            took[f"{step.name} {step.text}"] = round(time.perf_counter() - began, 1)
        port = free_port()
        build.environment["DIFFUSION_PREVIEW_PORT"] = str(port)
        print("── the command, until it is healthy", flush=True)
        began = time.perf_counter()
        process = subprocess.Popen(build.inside(build.command))
        try:
            wait_until("healthy", lambda: is_healthy(build), process)
            took["healthy"] = round(time.perf_counter() - began, 1)
            owner = os.stat(f"/proc/{process.pid}").st_uid
            if owner != int(build.user):
                raise SystemExit(f"It runs as user {owner}, not {build.user}.")
            url = f"http://127.0.0.1:{port}/"
            wait_until("ready", lambda: is_ready(url), process)
            took["ready"] = round(time.perf_counter() - began, 1)
            began = time.perf_counter()
            records = preview(url)
            took["a grid of previews"] = round(time.perf_counter() - began, 1)
            print(f"── {len(records)} previews, seeds {[record['seed'] for record in records]}")
            process.terminate()
            code = process.wait(STOPPED_WITHIN_S)
            if code:
                raise SystemExit(f"The app ended with {code} after SIGTERM.")
            print("── the app stopped with code 0")
        finally:
            process.kill()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/try_dockerfile.py", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="folder to build in; 6 GB")
    parser.add_argument("--keep", action="store_true", help="keep the build")
    parser.add_argument("--mirror", default="", metavar="ADDRESS", help="Debian mirror")
    parser.add_argument(
        "--build-arg", action="append", default=[], metavar="NAME=VALUE", help="as for docker build"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the seconds of each step")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("This needs root, for chroot and mount.")
    try:
        root = make_debian(arguments.work.resolve(), arguments.mirror)
        took = try_it(root, dict(pair.split("=", 1) for pair in arguments.build_arg))
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is missing. On Debian: apt install debootstrap")
    except subprocess.CalledProcessError as error:
        sys.exit(f"A step failed with {error.returncode}; its messages are above.")
    if not arguments.keep:
        remove(root)
    for step, seconds in took.items():
        print(f"{seconds:7.1f} s  {step[:100]}")
    if arguments.json:
        arguments.json.write_text(json.dumps(took, indent=1) + "\n")


if __name__ == "__main__":
    main()
