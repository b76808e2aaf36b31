"""The study file: its definition, its labels, and the order of each participant's trials."""

from app.study.plan.definition import Condition, Study
from app.study.plan.order import Trial, trials
from app.study.plan.study_file import EXAMPLE, StudyError, read_study

__all__ = ["EXAMPLE", "Condition", "Study", "StudyError", "Trial", "read_study", "trials"]
