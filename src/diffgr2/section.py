"""What every section of a recipe is: strict, frozen, without unknown keys.

Contract: the base class and the bounded numbers that sections are written in. Not here: the
sections (`config`, `learning`, `own`).
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0.0)]
Amount = Annotated[float, Field(ge=0.0)]


class Section(BaseModel):
    """Base of all sections: strict types, no unknown keys, no mutation."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
