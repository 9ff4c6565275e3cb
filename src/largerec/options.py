"""The base of every option group: frozen, and it refuses unknown keys with the nearest right one."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from largerec.errors import LargeRecError, nearest


class Options(BaseModel):
    """A frozen group of recipe options. Subclasses are declared beside the code that they steer.

    Raises:
        LargeRecError: a key is unknown (pydantic's own ValidationError stands for wrong types and ranges;
            ``recipe.py`` turns it into a LargeRecError that names the key).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for key in given:
                if key not in cls.model_fields:
                    allowed = ", ".join(sorted(cls.model_fields))
                    raise LargeRecError(
                        f"unknown option {key!r} in {cls.__name__}{nearest(str(key), cls.model_fields)} Allowed: {allowed}."
                    )
        return given
