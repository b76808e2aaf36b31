"""A PostgreSQL server for tests, from Debian's package."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.study.log.store import StoreError, open_store


def postgres_programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL server of our own, run by an ordinary user; gives its URL. Skips where there is none."""
    programs = postgres_programs()
    if programs is None:
        reason = "PostgreSQL is not installed (on Debian: apt install postgresql)"
        if os.environ.get("REQUIRE_POSTGRES"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = (
        Path("/tmp") / f"preview-postgres-{os.getpid()}-{secrets.token_hex(4)}"
    )  # others cannot enter pytest's folders
    folder.mkdir()
    user: str | None = None
    if os.getuid() == 0:  # the server refuses to be root
        user = next(each.pw_name for each in pwd.getpwall() if each.pw_name in ("postgres", "nobody"))
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", "study", "-A", "trust", "-E", "UTF8", "--no-sync"],
        check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    process = subprocess.Popen(
        [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder],
        user=user, cwd=folder, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"postgresql://study@127.0.0.1:{port}/postgres"
    try:
        for _ in range(300):
            try:
                open_store(url).close()
                break
            except StoreError:
                time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
