"""Logins: a file with a name and a salted hash of the password on each line.

    python -m app.server.auth FILE add NAME       # asks for the password
    python -m app.server.auth FILE remove NAME
    python -m app.server.auth FILE list

A line is `name:scrypt:n:r:p:salt:hash`, salt and hash in hex; RFC 7914 explains the numbers.
"""

import argparse
import asyncio
import getpass
import hashlib
import hmac
import json
import os
import re
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

NAME = re.compile(r"[\w.@+-]{1,64}")
# Letters of a password.
MIN_LETTERS, MAX_LETTERS = 8, 1000


class AuthError(ValueError):
    """A file of logins, a name or a password can't be used; the message is for the operator."""


@dataclass(frozen=True)
class PasswordHash:
    """A password hashed by scrypt, with its cost parameters n, r and p and its salt."""

    n: int
    r: int
    p: int
    salt: bytes
    hash: bytes

    def __post_init__(self) -> None:
        if self.n < 2 or self.n & (self.n - 1) or min(self.r, self.p) < 1 or len(self.hash) != 32:
            raise ValueError("scrypt does not take these parameters")

    @classmethod
    def of(cls, password: str, n: int = 2**15, r: int = 8, p: int = 1) -> "PasswordHash":
        """Hash a password with a new salt."""
        salt = secrets.token_bytes(16)
        return cls(n, r, p, salt, _scrypt(password, n, r, p, salt))

    def matches(self, password: str) -> bool:
        """Whether this is the password's hash; takes the same time either way."""
        return hmac.compare_digest(_scrypt(password, self.n, self.r, self.p, self.salt), self.hash)


def _scrypt(password: str, n: int, r: int, p: int, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=256 * n * r, dklen=32)


class Logins:
    """Checks names and passwords; `app.server.login.LoginGuard` limits how often.

    Gradio awaits `check(name, password)`.
    """

    def __init__(self, users: Mapping[str, PasswordHash]) -> None:
        self._users = dict(users)
        self._nobody = PasswordHash.of(secrets.token_hex(16))  # unknown names take as long as known ones

    async def check(self, name: str, password: str) -> bool:
        """Return whether this is the name's password."""
        if len(password) > MAX_LETTERS:
            return False
        known = self._users.get(name)
        matches = await asyncio.to_thread((known or self._nobody).matches, password)
        return bool(known and matches)


def read(path: Path) -> dict[str, PasswordHash]:
    """Read the names and hashes of a file. Raises AuthError, naming the line, if they can't be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AuthError(
            f"{path} can't be read ({error}). Make it: python -m app.server.auth {path} add NAME"
        ) from error
    users = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            name, method, n, r, p, salt, digest = line.split(":")
            if method != "scrypt" or not NAME.fullmatch(name):
                raise ValueError
            users[name] = PasswordHash(int(n), int(r), int(p), bytes.fromhex(salt), bytes.fromhex(digest))
        except ValueError as error:
            raise AuthError(
                f"Line {number} of {path} is not a login. Remove it and add the person again."
            ) from error
    if not users:
        raise AuthError(f"{path} contains no logins. Add one: python -m app.server.auth {path} add NAME")
    return users


def write(path: Path, users: Mapping[str, PasswordHash]) -> None:
    """Write the file, readable by its owner only."""
    lines = [
        f"{name}:scrypt:{each.n}:{each.r}:{each.p}:{each.salt.hex()}:{each.hash.hex()}\n"
        for name, each in users.items()
    ]
    new = path.with_name(path.name + ".new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.writelines(lines)
    new.replace(path)


def ask_password() -> str:
    """Ask for a password twice or, without a terminal, read it from standard input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise AuthError("The two passwords differ. Nothing was changed.")
    return password


def add(path: Path, name: str, password: str) -> None:
    """Add a person, or change their password. Raises AuthError if name or password can't be used."""
    if not NAME.fullmatch(name):
        raise AuthError("A name has 1 to 64 letters, digits and the signs . _ @ + -")
    if not MIN_LETTERS <= len(password) <= MAX_LETTERS:
        raise AuthError(f"A password has {MIN_LETTERS} to {MAX_LETTERS} letters.")
    write(path, (read(path) if path.exists() else {}) | {name: PasswordHash.of(password)})


def remove(path: Path, name: str) -> None:
    """Remove a person. Raises AuthError if the file does not name them."""
    users = read(path)
    if name not in users:
        raise AuthError(f"There is no {name} in {path}.")
    del users[name]
    write(path, users)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m app.server.auth", description="Who may log in, with `python app.py --auth FILE`."
    )
    parser.add_argument("file", type=Path, help="the file; made by the first add")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, words in (("add", "add a person or change their password"), ("remove", "remove a person")):
        commands.add_parser(command, help=words).add_argument("name")
    commands.add_parser("list", help="list the names").add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        match arguments.command:
            case "add":
                add(arguments.file, arguments.name, ask_password())
                print(f"{arguments.name} can log in after a restart of the app.")
            case "remove":
                remove(arguments.file, arguments.name)
                print(f"{arguments.name} can't log in after a restart of the app.")
            case "list":
                names = sorted(read(arguments.file))
                print(json.dumps(names) if arguments.json else "\n".join(names))
    except AuthError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{arguments.file} can't be written ({error.strerror}).", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
