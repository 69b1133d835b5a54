"""Parameters of a method or recipe as fields of a dataclass: their help, what they decide, and checks of values."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

from thesis_lib.core.errors import ThesisError

if TYPE_CHECKING:       # no module, only what type checkers know
    from _typeshed import DataclassInstance


def parameter(default: Any, help: str, *, identity: bool = True, neutral: bool | tuple = False,
              features: bool = False) -> Any:
    """Dataclass field with the text that `thesis evaluate METHOD --help` shows.

    identity False: the parameter cannot change a result, so a stored row stays valid when it differs.
    neutral: its default, or each of these values, changes nothing, so it is part of an identity only at another one. A
    parameter that comes later and is neutral leaves older rows valid.
    features True: it decides what `gather` returns, so that detectors equal in these can share it.
    """
    values = neutral if isinstance(neutral, tuple) else (default,) * neutral
    return field(default=default, metadata={"help": help, "identity": identity, "neutral": values,
                                            "features": features})


def values(record: "DataclassInstance") -> dict[str, Any]:
    """Effective value of every field of a dataclass, as a result row stores them."""
    return {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}


def deciding(kind: "DataclassInstance | type[DataclassInstance]", given: Mapping[str, Any]) -> dict[str, Any]:
    """What an identity is made of: the given values of a dataclass but those that are neutral."""
    neutral = {f.name: f.metadata.get("neutral", ()) for f in dataclasses.fields(kind)}
    return {name: value for name, value in given.items() if value not in neutral.get(name, ())}


def one_of(name: str, value: str, known: Iterable[str]) -> None:
    """ThesisError that lists what is known, for a parameter with another value."""
    if value not in known:
        raise ThesisError(f"{name}={value!r}: needs one of {', '.join(known)}")


def at_least(record: object, least: float, *names: str) -> None:
    """ThesisError for the first of these parameters that is below."""
    for name in names:
        if not getattr(record, name) >= least:
            raise ThesisError(f"{name}={getattr(record, name)}: needs at least {least}")


def above(record: object, bound: float, *names: str) -> None:
    """ThesisError for the first of these parameters that is not above."""
    for name in names:
        if not getattr(record, name) > bound:
            raise ThesisError(f"{name}={getattr(record, name)}: needs a number above {bound}")


def share(record: object, *names: str) -> None:
    """ThesisError for the first of these parameters that is not from 0 up to less than 1."""
    for name in names:
        if not 0 <= getattr(record, name) < 1:
            raise ThesisError(f"{name}={getattr(record, name)}: needs 0 up to less than 1")
