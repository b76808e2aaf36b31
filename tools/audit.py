"""Look up the packages that requirements.txt pins in a database of known vulnerabilities, by pip-audit.

    python tools/audit.py PATH/TO/pip-audit

Exit code: 0 if no vulnerability is known, 1 if one is, 3 if the database can't be reached. A package that was
not looked up is never called safe.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def judge(result: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Return the exit code and the lines to print for pip-audit's JSON."""
    packages: Sequence[Mapping[str, Any]] = result.get("dependencies", [])
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
            "The database of vulnerabilities can't be reached, or contains none of these packages. "
            "Nothing was looked up."
        ]
    if unknown:
        return 3, [
            f"These could not be looked up: {', '.join(unknown)}. The others have no known vulnerabilities."
        ]
    return 0, [f"These {len(packages)} packages have no known vulnerabilities."]


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/audit.py", description=__doc__.splitlines()[0])
    parser.add_argument("program", help="path of pip-audit")
    parser.add_argument("--requirements", type=Path, default=ROOT / "requirements.txt", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print pip-audit's JSON")
    arguments = parser.parse_args()
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    command = [arguments.program, *options, "--requirement", str(arguments.requirements)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        result = json.loads(done.stdout)
    except FileNotFoundError:
        print(f"There is no {arguments.program}. Install it: pip install pip-audit", file=sys.stderr)
        return 2
    except subprocess.TimeoutExpired:
        print("The database of vulnerabilities does not answer. Nothing was looked up.", file=sys.stderr)
        return 3
    except ValueError:
        reason = next(iter(done.stderr.strip().splitlines()[-1:]), "no message")
        print(
            f"pip-audit could not ask the database ({reason[:200]}). Nothing was looked up.", file=sys.stderr
        )
        return 3
    code, lines = judge(result)
    print(json.dumps(result) if arguments.json else "\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
