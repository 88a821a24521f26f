"""What every section of a recipe is: strict, frozen, without unknown keys.

Contract: the base class and the bounded numbers that sections are written in. Not here: the
sections (`config`, `learning`, `own`).
"""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0.0)]
Amount = Annotated[float, Field(ge=0.0)]


class Section(BaseModel):
    """Base of all sections: strict types, no unknown keys, no mutation."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True
    )

    SILENT: ClassVar[tuple[str, ...]] = ()
    """Keys that leave no trace at their default: what was made before they were known stands."""

    @model_serializer(mode="wrap")
    def _dumped(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields, values = type(self).model_fields, dump(self)
        silent = [key for key in self.SILENT if getattr(self, key) == fields[key].default]
        return {key: value for key, value in values.items() if key not in silent}
