"""Apply a study's conditions to the page's form."""

from app.backends.base import Backend
from app.jobs.job import Job, RequestError
from app.page.click import Form
from app.study.plan import Condition, Study, StudyError


def form_of(condition: Condition, prompt: str, backend: Backend) -> Form:
    """Return the form that gives the condition's pictures on the ordinary page."""
    solver, steps = condition.shown
    return Form(
        prompt,
        count=condition.count,
        steps=steps,
        solver=solver,
        guidance=backend.facts.guidance,
        full_steps=condition.full_steps,
    )


def check_conditions(study: Study, backend: Backend) -> None:
    """Raise StudyError, one line each, for conditions that the model can't make pictures for."""
    faults = []
    facts = backend.facts
    size = (facts.width, facts.height)
    for condition in study.conditions:
        for solver, steps in sorted({condition.shown, condition.final}):
            try:
                facts.plan(Job("preview", "a", 0, steps, facts.name, *size, facts.guidance, solver))
            except RequestError as error:
                faults.append(f"condition {condition.id!r}: {error}")
    if faults:
        raise StudyError("\n".join(faults))
