"""The base of every option group: frozen, and it refuses unknown keys with the nearest right one."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from largerec.errors import LargeRecError, nearest


def read_toml(path: Path, what: str, *, missing: str, example: str) -> dict[str, Any]:
    """The document of a TOML file that is ``what``, such as a recipe. Errors end with ``missing`` or with ``example``.

    Raises:
        LargeRecError: the file is missing or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LargeRecError(f"there is no {what} {str(path)!r}{missing}") from None
    except (OSError, ValueError) as error:  # a folder, a name that no file can have, no text, no TOML
        raise LargeRecError(f"{path} is no TOML {what}: {error}. {example}") from None


def expanded(path: str | Path, option: str) -> Path:
    """A path with the home folder in place of ``~``; ``option`` says where it was given.

    Raises:
        LargeRecError: it begins with the home of someone who is not known here.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise LargeRecError(f"{option} {str(path)!r}: there is no such user's home here; write the path in full.") from None


def toml_value(text: str) -> Any:
    """A value as the command line has it: what TOML reads (numbers, true, lists, quoted text), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def toml_text(value: Any) -> str:
    """A plain value as TOML writes it: as JSON does, but for surrogates and U+007F."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_key(key: str) -> str:
    """A key as TOML writes it: in quotes where it has blanks, dots or other letters than a bare one may have."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_text(key)


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
