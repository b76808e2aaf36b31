"""A small study for tests."""

from pathlib import Path

import pytest

from app.study.plan.definition import Study
from app.study.plan.study_file import read_study

TEXT = """
title = "Small"
consent = "Yes?"
practice = "a quiet lake"
time_cap_s = 600
give_up_after_s = 0
[analysis]
control = "full"
treatment = "quick"
quality = "satisfaction"
margin = 0.5
least_participants = 4
[[conditions]]
id = "full"
mode = "full"
count = 2
full_steps = 6
[[conditions]]
id = "quick"
mode = "preview"
solver = "ddim"
steps = 2
count = 2
full_steps = 6
[[tasks]]
id = "one"
prompt = "snowy mountains"
[[tasks]]
id = "two"
goal = "a lake at night"
[[ratings]]
id = "satisfaction"
question = "How is it?"
low = "bad"
high = "good"
[[ratings]]
id = "match"
question = "As expected?"
low = "no"
high = "yes"
[[closing]]
id = "age"
question = "Which group?"
choices = ["young", "old"]
[[closing]]
id = "remarks"
question = "Anything else?"
"""


@pytest.fixture(scope="session")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "study.toml"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def study(study_file: Path) -> Study:
    return read_study(study_file)
