import asyncio
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from app.server import auth
from app.server.auth import AuthError, Logins, PasswordHash

PASSWORD = "four corners and a lake"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "logins"


def test_who_was_added_gets_in_and_nobody_else(file: Path) -> None:
    auth.add(file, "ada", PASSWORD)
    auth.add(file, "bob", "another password")

    async def ask() -> list[bool]:
        logins = Logins(auth.read(file))
        asked = [
            ("ada", PASSWORD),
            ("ada", "another password"),
            ("eve", PASSWORD),
            ("", ""),
            ("ada", "x" * 10**6),
        ]
        return [await logins.check(*each) for each in asked]

    assert asyncio.run(ask()) == [True, False, False, False, False]


def test_the_file_tells_no_password_and_is_for_its_owner_alone(file: Path) -> None:
    auth.add(file, "ada", PASSWORD)
    auth.add(file, "bob", PASSWORD)
    ada, bob = file.read_text().splitlines()
    assert PASSWORD not in ada
    assert ada.split(":")[-1] != bob.split(":")[-1]  # salted
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_adding_again_changes_the_password_and_removing_ends_it(file: Path) -> None:
    auth.add(file, "ada", PASSWORD)
    auth.add(file, "bob", PASSWORD)
    auth.add(file, "ada", "something else")
    assert auth.read(file)["ada"].matches("something else")
    auth.remove(file, "ada")
    assert set(auth.read(file)) == {"bob"}


@pytest.mark.parametrize(
    ("name", "password", "words"),
    [("a:b", PASSWORD, "A name has"), ("", PASSWORD, "A name has"), ("ada", "short", "8 to 1000 letters")],
)
def test_what_can_not_be_added_is_said(file: Path, name: str, password: str, words: str) -> None:
    with pytest.raises(AuthError, match=words):
        auth.add(file, name, password)
    assert not file.exists()


@pytest.mark.parametrize(
    "line",
    ["ada:" + PASSWORD, "ada:scrypt:3:8:1:00:" + "00" * 32, "ada:md5:2:8:1:00:00", "a b:scrypt:::::", "x"],
)
def test_a_wrong_line_is_named(file: Path, line: str) -> None:
    auth.add(file, "bob", PASSWORD)
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(AuthError, match="Line 2"):
        auth.read(file)


def test_no_file_and_an_empty_one_say_what_to_do(file: Path) -> None:
    with pytest.raises(AuthError, match=r"python -m app\.server\.auth"):
        auth.read(file)
    file.write_text("\n")
    with pytest.raises(AuthError, match="contains no logins"):
        auth.read(file)


def test_the_hash_is_the_one_of_the_standard() -> None:
    # RFC 7914, section 12, third vector, cut to 32 bytes
    salt = b"SodiumChloride"
    known = bytes.fromhex("7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2")
    assert PasswordHash(16384, 8, 1, salt, known).matches("pleaseletmein")
    assert not PasswordHash(16384, 8, 1, salt, known).matches("pleaseletmeout")


def test_the_command(file: Path) -> None:
    def run(*arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "app.server.auth", str(file), *arguments]
        return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=60)

    assert run("add", "ada", typed=PASSWORD + "\n").returncode == 0
    assert run("list", "--json").stdout == '["ada"]\n'
    wrong = run("remove", "eve")
    assert (wrong.returncode, wrong.stderr) == (2, f"There is no eve in {file}.\n")
    assert run("remove", "ada").returncode == 0
