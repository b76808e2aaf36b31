"""A TOML file with all of its errors of syntax at once, and the lines of what is in it."""

import re
import tomllib
from collections.abc import Collection, Mapping
from typing import Any

# A file with more errors of syntax than this is something else.
MAX_REPAIRS = 10
KEY = re.compile(r"\s*[\"']?([\w-]+)[\"']?\s*=")
HEADER = re.compile(r"\s*(\[\[?)\s*([\w.-]+)\s*\]")


def parse(text: str, lists: Collection[str]) -> tuple[dict[str, Any] | None, list[tuple[int, str]]]:
    """The file's values and its errors of syntax, by line; no values where it can't be read beyond them.

    A line that is no TOML is left out, so that what is wrong elsewhere can be told too; one that was to begin
    a table begins it. lists: the names of tables that are there several times.
    """
    lines = text.split("\n")
    faults: list[tuple[int, str]] = []
    for _ in range(MAX_REPAIRS):
        try:
            return tomllib.loads("\n".join(lines)), faults
        except tomllib.TOMLDecodeError as error:
            place = re.search(r"at line (\d+)", str(error))
            line = int(place[1]) if place else len(lines)
            words = re.sub(r" \(at .*\)", "", str(error))
            if line not in dict(faults):
                faults.append((line, f"this is not TOML ({words})."))
            if not lines[line - 1].strip():
                break
            lines[line - 1] = _repaired(lines[line - 1], lists)
    return None, faults[:1]


def _repaired(line: str, lists: Collection[str]) -> str:
    header = re.match(r"\s*\[+\s*([\w-]+)", line)
    if not header:
        return ""
    repaired = f"[[{header[1]}]]" if header[1] in lists else f"[{header[1]}]"
    return "" if repaired == line else repaired


def lines_of(text: str) -> dict[str, int]:
    """The line of every table and key, by a path such as `conditions.1.steps`."""
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
        elif key := KEY.match(line):
            found.setdefault(f"{prefix}.{key[1]}".lstrip("."), number)
        for quotes in ('"""', "'''"):
            if line.count(quotes) == 1:
                inside = quotes
    return found


def line_of(where: str, lines: Mapping[str, int]) -> int:
    """The line of a path, or of what it is in."""
    while where not in lines:
        where = where.rpartition(".")[0]
    return lines[where]
