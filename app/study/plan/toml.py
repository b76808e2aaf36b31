"""Read TOML with all of its syntax errors at once, and with the line of each key."""

import re
import tomllib
from collections.abc import Collection, Mapping
from typing import Any

# A file with more syntax errors than this is not TOML at all.
MAX_REPAIRS = 10
KEY = re.compile(r"\s*[\"']?([\w-]+)[\"']?\s*=")
HEADER = re.compile(r"\s*(\[\[?)\s*([\w.-]+)\s*\]")


def parse(text: str, lists: Collection[str]) -> tuple[dict[str, Any] | None, list[tuple[int, str]]]:
    """Return the file's values, or None if it can't be repaired, and its syntax errors with their lines.

    A wrong line is left out, so that errors elsewhere are found too; a broken header still begins its table.

    Args:
        lists: names of tables that may be repeated.
    """
    lines = text.split("\n")
    faults: list[tuple[int, str]] = []
    for _ in range(MAX_REPAIRS):
        try:
            return tomllib.loads("\n".join(lines)), faults
        except tomllib.TOMLDecodeError as error:
            place = re.search(r"at line (\d+)", str(error))
            line = int(place[1]) if place else len(lines)
            reason = re.sub(r" \(at .*\)", "", str(error))
            if line not in dict(faults):
                faults.append((line, f"this is not valid TOML ({reason})."))
            if not lines[line - 1].strip():
                break
            lines[line - 1] = _repair(lines[line - 1], lists)
    return None, faults[:1]


def _repair(line: str, lists: Collection[str]) -> str:
    header = re.match(r"\s*\[+\s*([\w-]+)", line)
    if not header:
        return ""
    repaired = f"[[{header[1]}]]" if header[1] in lists else f"[{header[1]}]"
    return "" if repaired == line else repaired


def key_of(line: str) -> str:
    """Return the key that a line sets, or "" if it sets none."""
    key = KEY.match(line)
    return key[1] if key else ""


def lines_of(text: str) -> dict[str, int]:
    """Return the line of every table and key, by a path such as `conditions.1.steps`."""
    found: dict[str, int] = {"": 1}
    counts: dict[str, int] = {}
    prefix, inside = "", ""
    for number, line in enumerate(text.split("\n"), 1):
        if inside:
            inside = "" if inside in line else inside
            continue
        if table := HEADER.match(line):
            prefix = table[2]
            if table[1] == "[[":
                counts[prefix] = counts.get(prefix, -1) + 1
                found.setdefault(prefix, number)
                prefix = f"{prefix}.{counts[prefix]}"
            found.setdefault(prefix, number)
        elif key := key_of(line):
            found.setdefault(f"{prefix}.{key}".lstrip("."), number)
        for quotes in ('"""', "'''"):
            if line.count(quotes) == 1:
                inside = quotes
    return found


def line_of(where: str, lines: Mapping[str, int]) -> int:
    """Return the line of a path, or of the nearest table around it."""
    while where not in lines:
        where = where.rpartition(".")[0]
    return lines[where]
