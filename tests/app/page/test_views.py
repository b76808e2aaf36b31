"""The page says which model draws, and whether a solver was learned for it."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from app.models import ImageModel
from app.page.views import status_view
from solver import LearnedSolver, Policy, make_plan
from solver.__main__ import COMMANDS


@pytest.mark.parametrize(
    ("learned", "said"),
    [
        (LearnedSolver(), True),
        (LearnedSolver((), Policy(2)), False),
        (LearnedSolver((make_plan("unipc", 4, {"shift": 1.0}),)), False),
    ],
)
def test_a_model_without_a_learned_solver_names_the_command(
    learned: LearnedSolver, said: bool, model: ImageModel
) -> None:
    backend: Any = SimpleNamespace(facts=replace(model.facts, learned=learned), healthy=True)
    line = status_view(backend)["model"]
    assert line.startswith(model.facts.name)
    assert ("no learned solver" in line and "consistency-solver learn" in line) == said
    assert "learn" in COMMANDS
