"""What the study's rooms have in common: its errors, and how pydantic reads its files."""

from typing import ClassVar

from pydantic import ConfigDict


class StudyProblem(ValueError):
    """Something that whoever runs a study can mend; the message says what is wrong and what to do."""


class Strict:
    """A base that has pydantic refuse unknown fields, infinity and NaN."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)
