"""What all models of the report's input share: they are lenient, and a number that is not there reads as NaN."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

NAN = float("nan")
Number = Annotated[float, BeforeValidator(lambda value: NAN if value is None else value)]


class Read(BaseModel):
    """Something read; keys that it does not know are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)
