"""The folder of --data has one user at a time, and nobody else reads it."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.server import data_folder

ROOT = Path(__file__).parents[3]
CLAIM = (
    "import sys, pathlib; from app.server import data_folder as d; lock = d.claim(pathlib.Path(sys.argv[1]))"
)


def claimed_elsewhere(data: Path, then: str = "pass") -> subprocess.Popen[str]:
    """Start a process that has claimed the folder when this returns."""
    code = f"{CLAIM}; {then}; print('has it', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(data)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "has it\n"
    return process


def test_a_second_process_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    other = claimed_elsewhere(tmp_path)
    try:
        for _ in range(2):  # asking does not take it away
            with pytest.raises(ValueError, match="is in use by") as caught:
                data_folder.claim(tmp_path)
        told = str(caught.value)
        assert (
            str(tmp_path) in told and f"process {other.pid} on " in told and "choose another --data" in told
        )
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_was_killed_leaves_the_folder_free(tmp_path: Path, number: signal.Signals) -> None:
    other = claimed_elsewhere(tmp_path)
    other.send_signal(number)
    other.wait()
    lock = data_folder.claim(tmp_path)
    assert lock and lock.is_locked
    lock.release()


def test_forks_that_end_leave_the_lock(tmp_path: Path) -> None:
    """A ZeroGPU Space forks for each request."""
    forks = "import os; [os.waitpid(p, 0) if (p := os.fork()) else sys.exit() for _ in range(2)]"
    other = claimed_elsewhere(tmp_path, forks)
    try:
        with pytest.raises(ValueError, match="is in use by"):
            data_folder.claim(tmp_path)
    finally:
        other.kill()
        other.wait()


def test_a_file_system_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unsupported)
    assert data_folder.claim(tmp_path) is None
    assert "can't be locked" in caplog.text


def test_only_the_owner_reads_a_new_folder(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        data_folder.make(tmp_path / "data")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert not data_folder.warning(tmp_path / "data")


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701])
def test_a_folder_that_others_can_read_is_left_as_it_is_and_told(tmp_path: Path, mode: int) -> None:
    data = tmp_path / "my data"
    data.mkdir()
    data.chmod(mode)
    data_folder.make(data)
    assert stat.S_IMODE(data.stat().st_mode) == mode
    command = data_folder.warning(data).rpartition(": ")[2]
    subprocess.run(command, shell=True, check=True)
    assert not data_folder.warning(data), "the command that is told mends it"


def test_a_folder_that_can_t_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="Choose another --data"):
        data_folder.make(tmp_path / "file")
