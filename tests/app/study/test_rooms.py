"""The study's rooms import downwards only, and a study file is read without the libraries of its report."""

import ast
import subprocess
import sys
from pathlib import Path

import app.study

STUDY = Path(app.study.__file__).parent
BELOW = {"plan": set[str](), "log": {"plan"}, "page": {"plan", "log"}, "report": {"plan", "log"}}


def test_rooms_import_only_rooms_below_them() -> None:
    seen = set()
    for file in STUDY.glob("*/*.py"):
        room = file.parent.name
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            parts = (node.module or "").split(".") if isinstance(node, ast.ImportFrom) else []
            if parts[:2] == ["app", "study"] and len(parts) > 2 and parts[2] in BELOW:
                seen.add((room, parts[2]))
                assert parts[2] == room or parts[2] in BELOW[room], f"{file.name} imports {parts[2]}"
    assert {("log", "plan"), ("page", "log"), ("report", "log")} <= seen


def test_the_start_of_the_app_needs_none_of_the_reports_libraries() -> None:
    program = (
        "import sys, app.study.plan, app.study.log.events\n"
        "print({'pandas', 'sqlalchemy', 'pyarrow', 'statsmodels', 'lifelines'} & {*sys.modules})"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=STUDY.parents[1], capture_output=True, text=True
    )
    assert ran.stdout.strip() == "set()", ran.stdout + ran.stderr
