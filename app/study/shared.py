"""The errors of a study, and the base of the classes that pydantic reads from its files."""

from typing import ClassVar

from pydantic import ConfigDict


class StudyProblem(ValueError):
    """A mistake that the person running a study can fix; the message says how."""


class Strict:
    """A base that has pydantic refuse unknown fields, infinity and NaN."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)
