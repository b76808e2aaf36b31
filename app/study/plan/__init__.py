"""What a study file says: its definition and words, and in which order each participant does the trials."""

from app.study.plan.definition import Condition, Study
from app.study.plan.order import Trial, trials
from app.study.plan.study_file import EXAMPLE, StudyError, read_study

__all__ = ["EXAMPLE", "Condition", "Study", "StudyError", "Trial", "read_study", "trials"]
