"""The types that keys of a config have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

#: No config class takes a key that it does not know.
STRICT = ConfigDict(extra="forbid")


def _part_or_whole(number: float) -> float:
    """What Ray gives of a GPU."""
    if number > 1 and number % 1:
        raise ValueError("a part of 1, or a whole number")
    return number


Positive: TypeAlias = Annotated[int, Field(gt=0, lt=1 << 53)]
Natural: TypeAlias = Annotated[int, Field(ge=0, lt=1 << 53)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Finite: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
Text: TypeAlias = Annotated[str, Field(min_length=1)]
Texts: TypeAlias = Annotated[tuple[Text, ...], Field(min_length=1)]
#: A word of a list of yacs KEY VALUE pairs, whose numbers YAML reads as such.
Word: TypeAlias = Annotated[str, BeforeValidator(str)]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
#: How much of a GPU a worker takes.
Gpus: TypeAlias = Annotated[Finite, Field(ge=0), AfterValidator(_part_or_whole)]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersRange:
    """At most `max` workers; a run with fewer than `min` for a minute says so."""

    __pydantic_config__ = STRICT
    min: Positive
    max: Positive

    def __post_init__(self) -> None:
        if self.min > self.max:
            raise ValueError("a range whose min is not above its max")
