"""What the study file and the log have in common when pydantic reads them."""

from typing import ClassVar

from pydantic import ConfigDict


class Strict:
    """A base that has pydantic refuse unknown fields, infinity and NaN."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)
