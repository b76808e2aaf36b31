"""Look up the packages that requirements.txt pins in a database of known vulnerabilities, by pip-audit.

    python tools/audit.py PATH/TO/pip-audit

Ends with 0 where nothing is known, with 1 where something is, and with 3 where the database can't be asked:
what was not looked up is never called safe.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def judge(told: Mapping[str, Any]) -> tuple[int, list[str]]:
    """The exit code, and what to say, of pip-audit's JSON."""
    packages: Sequence[Mapping[str, Any]] = told.get("dependencies", [])
    unknown = [each["name"] for each in packages if "skip_reason" in each]
    lines = []
    for each in packages:
        for found in each.get("vulns", ()):
            fixed = ", ".join(found["fix_versions"]) or "no version yet"
            lines.append(f"{each['name']} {each['version']}: {found['id']}, fixed in {fixed}")
    if lines:
        return 1, lines
    if len(unknown) == len(packages):
        return 3, [
            "The database of vulnerabilities can't be reached, or knows none of these packages. "
            "Nothing was looked up."
        ]
    if unknown:
        return 3, [f"Nothing is known of the others, but these could not be looked up: {', '.join(unknown)}."]
    return 0, [f"Nothing is known against these {len(packages)} packages."]


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/audit.py", description=__doc__.splitlines()[0])
    parser.add_argument("program", help="where pip-audit is")
    parser.add_argument("--requirements", type=Path, default=ROOT / "requirements.txt", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="say it as pip-audit does, in JSON")
    arguments = parser.parse_args()
    command = [
        arguments.program,
        "--no-deps",
        "--disable-pip",
        "--progress-spinner",
        "off",
        "--format",
        "json",
    ]
    try:
        done = subprocess.run(
            [*command, "--requirement", str(arguments.requirements)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        told = json.loads(done.stdout)
    except FileNotFoundError:
        print(f"There is no {arguments.program}. Install it: pip install pip-audit", file=sys.stderr)
        return 2
    except subprocess.TimeoutExpired:
        print("The database of vulnerabilities does not answer. Nothing was looked up.", file=sys.stderr)
        return 3
    except ValueError:
        reason = next(iter(done.stderr.strip().splitlines()[-1:]), "it said nothing")
        print(
            f"pip-audit could not ask the database ({reason[:200]}). Nothing was looked up.", file=sys.stderr
        )
        return 3
    code, lines = judge(told)
    print(json.dumps(told) if arguments.json else "\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
