"""Who may log in: a file with a line for each, holding a name and a salted hash of the password.

    python -m app.server.auth FILE add NAME       # asks for the password
    python -m app.server.auth FILE remove NAME
    python -m app.server.auth FILE list

A line is `name:scrypt:n:r:p:salt:hash`, the last two in hex; see RFC 7914 for the numbers.
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
SHORTEST = 8
LONGEST = 1000
# A wrong password is answered after this long, and so many are looked at at once: guessing is slow.
PAUSE_S = 1.0
AT_ONCE = 2


class AuthError(ValueError):
    """A file of logins, a name or a password that can't be used, in words."""


@dataclass(frozen=True)
class Hashed:
    """A password, hashed by scrypt with the cost numbers n, r and p, and a salt of its own."""

    n: int
    r: int
    p: int
    salt: bytes
    hash: bytes

    def __post_init__(self) -> None:
        if self.n < 2 or self.n & (self.n - 1) or min(self.r, self.p) < 1 or len(self.hash) != 32:
            raise ValueError("these are no numbers for scrypt")

    @classmethod
    def of(cls, password: str, n: int = 2**15, r: int = 8, p: int = 1) -> "Hashed":
        """Hash a password with a new salt."""
        salt = secrets.token_bytes(16)
        return cls(n, r, p, salt, _scrypt(password, n, r, p, salt))

    def fits(self, password: str) -> bool:
        """Whether this is the password's hash; takes as long either way."""
        return hmac.compare_digest(_scrypt(password, self.n, self.r, self.p, self.salt), self.hash)


def _scrypt(password: str, n: int, r: int, p: int, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=256 * n * r, dklen=32)


class Logins:
    """The names and hashes of a file; `await check(name, password)` is what Gradio asks."""

    def __init__(self, users: Mapping[str, Hashed]) -> None:
        self._users = dict(users)
        self._nobody = Hashed.of(secrets.token_hex(16))  # so that unknown names take as long as known ones
        self._looking = asyncio.Semaphore(AT_ONCE)

    async def check(self, name: str, password: str) -> bool:
        """Whether this name may come in with this password."""
        if len(password) > LONGEST:
            return False
        known = self._users.get(name)
        async with self._looking:
            fits = await asyncio.to_thread((known or self._nobody).fits, password)
            if not (known and fits):
                await asyncio.sleep(PAUSE_S)
        return bool(known and fits)


def read(path: Path) -> dict[str, Hashed]:
    """Names and hashes of a file. Raises AuthError, in words, where it is none, naming the line."""
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
            users[name] = Hashed(int(n), int(r), int(p), bytes.fromhex(salt), bytes.fromhex(digest))
        except ValueError as error:
            raise AuthError(f"Line {number} of {path} is no login. Remove it, and add it anew.") from error
    if not users:
        raise AuthError(
            f"Nobody could log in: {path} is empty. Add somebody: python -m app.server.auth {path} add NAME"
        )
    return users


def write(path: Path, users: Mapping[str, Hashed]) -> None:
    """Write the file anew, readable by its owner alone."""
    lines = [
        f"{name}:scrypt:{each.n}:{each.r}:{each.p}:{each.salt.hex()}:{each.hash.hex()}\n"
        for name, each in users.items()
    ]
    new = path.with_name(path.name + ".new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.writelines(lines)
    new.replace(path)


def ask_password() -> str:
    """A password from the keyboard, twice, or from a line of standard input where that is none."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise AuthError("These were two different passwords. Nothing was changed.")
    return password


def add(path: Path, name: str, password: str) -> None:
    """Add somebody, or give them another password. Raises AuthError, in words."""
    if not NAME.fullmatch(name):
        raise AuthError("A name has 1 to 64 letters, digits, and signs of . _ @ + -")
    if not SHORTEST <= len(password) <= LONGEST:
        raise AuthError(f"A password has {SHORTEST} to {LONGEST} letters.")
    write(path, (read(path) if path.exists() else {}) | {name: Hashed.of(password)})


def remove(path: Path, name: str) -> None:
    """Take somebody out. Raises AuthError, in words, where there is no such name."""
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
    for command, words in (("add", "add somebody, or change a password"), ("remove", "take somebody out")):
        commands.add_parser(command, help=words).add_argument("name")
    commands.add_parser("list", help="who is there").add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        match arguments.command:
            case "add":
                add(arguments.file, arguments.name, ask_password())
                print(f"{arguments.name} can log in. Restart the app to let them.")
            case "remove":
                remove(arguments.file, arguments.name)
                print(f"{arguments.name} can't log in any more, once the app is restarted.")
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
