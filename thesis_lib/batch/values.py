"""What a parameter of a notebook may be: of its type, one of those that its comment lists, and there on this disk.

A value and what the parameters cell says of it go in; the value comes out, or a BatchError that names what is nearest.
"""

import ast
import difflib
import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from thesis_lib.core import paths
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import Preprocess

TYPES = ("bool", "int", "float", "str", "list", "dict", "None")
# A comment lists what is right: `eager | fast | int8`, N for a number, and perhaps a last one in words: `| a folder`.
WORD = r"[\w%]+(?:\.\w+)*"
LISTED = re.compile(rf"((?:{WORD} \| )+)(?:(an? [^;,()]+)|({WORD}))")
NUMBER = r"\d+(?:\.\d+)?"
WEIGHTS = "bundled | imagenet | random | a .safetensors file"       # where the comment of `weights` lists nothing


class BatchError(ThesisError):
    """Names the notebook, parameter or file that is wrong, and what would be right."""


def known(name: str, names: Collection[str], message: str) -> None:
    """BatchError with the nearest name, or all of them, for one that is not known."""
    if name not in names:
        close = difflib.get_close_matches(str(name), names, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(sorted(names)) or 'none'}"
        raise BatchError(f"{message} {name!r}; {hint}")


def from_text(value: Any, annotation: str) -> Any:
    """What was typed after -p: kept for a text parameter, else read as YAML."""
    kinds = _kinds(annotation)
    none = "None" in kinds and value == "null"
    if not isinstance(value, str) or ("str" in kinds and not none):
        return value
    with suppress(ValueError, yaml.YAMLError):
        loaded = yaml.safe_load(value)
        return float(loaded) if "float" in kinds and isinstance(loaded, str) else loaded  # YAML: 1e-3 is text
    return value


def typed(where: str, value: Any, annotation: str) -> Any:
    """The value, a whole number as float where that is wanted; BatchError where it is not of the type, or not JSON."""
    kinds, kind = _kinds(annotation), "None" if value is None else type(value).__name__  # bool is no int
    if not kinds <= set(TYPES):
        raise BatchError(f"{where}: type {annotation} is not made of {', '.join(TYPES)}")
    if kind == "int" and "int" not in kinds and "float" in kinds:
        value, kind = float(value), "float"
    try:
        plain = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        plain = False
    if kind not in kinds or not plain:
        raise BatchError(f"{where}: must be {annotation}, not {value!r} ({kind})")
    return value


def choices(comment: str) -> tuple[list[str], str | None]:
    """The words that a comment lists, and the last one where it is said in words: a file or a folder.

    >>> choices("of the sweeps: eager | fast | int8; int8 is calibrated")
    (['eager', 'fast', 'int8'], None)
    >>> choices("bundled | random | a .safetensors file, of the teacher")
    (['bundled', 'random'], 'a .safetensors file')
    """
    match = LISTED.search(comment)
    if match is None:
        return [], None
    words, in_words, last = match.groups()
    return [*words.split(" | ")[:-1], *filter(None, [last])], in_words and in_words.strip()


def listed(where: str, value: Any, comment: str) -> Any:
    """The value, a file or folder by its whole path; BatchError where the comment lists others. Of a list its items."""
    words, in_words = choices(comment)
    if not words or value is None:
        return value
    if isinstance(value, list):
        return [listed(where, item, comment) for item in value]
    if any(re.fullmatch(re.escape(word).replace("N", NUMBER), str(value)) for word in words):
        return value
    if in_words and _there(str(value), in_words):
        return str(Path(value).expanduser().resolve())          # a notebook runs in another folder
    right = " | ".join([*words, f"{in_words} that exists"] if in_words else words)
    close = difflib.get_close_matches(str(value), words, 1)
    raise BatchError(f"{where}: needs {right}, not {value!r}" + (f"; did you mean {close[0]}?" if close else ""))


def check_together(where: str, given: Mapping[str, Any]) -> None:
    """BatchError for values that are right by themselves and not together: sides of pictures, a network and weights."""
    if isinstance(given.get("image_size"), int):
        try:
            Preprocess(image_size=given["image_size"], crop=given.get("crop") or None)
        except ThesisError as error:
            raise BatchError(f"{where}: {error}") from None
    if given.get("weights") == "bundled" and "backbone" in given:
        bundled = [file.stem.rpartition("_")[0] for file in sorted(paths.weights().glob("*.safetensors"))]
        known(given["backbone"], bundled, f"{where}: weights=bundled: there are none for")


def check_pictures(where: str, given: Mapping[str, Any]) -> None:
    """BatchError where the folder `data` or a category of it is not there; the demo set is made when it is needed."""
    if "data" not in given:
        return
    from thesis_lib.data.folders import some_categories
    from thesis_lib.data.synthetic import CATEGORIES
    name, there = str(given["data"]), list(CATEGORIES)
    if name != "demo":
        place = paths.data() / Path(name).expanduser()          # a path from / stays what it is
        if not place.is_dir():
            beside = [folder.name for folder in paths.data().glob("[!.]*") if folder.is_dir()]
            known(name, {*beside, "demo"}, f"{where}: data: {paths.data()} has no folder")
        there = some_categories(place)
    for category in (given.get("category"), *(given.get("categories") or ())):
        if category is not None:
            known(category, there, f"{where}: data={name} has no category")


def _there(value: str, in_words: str) -> bool:
    """Whether it is the file with this ending, or the folder, that a comment says in words."""
    place = Path(value).expanduser()
    ending = re.search(r"\.\w+", in_words)
    return place.is_file() and place.suffix == ending[0] if ending else place.is_dir()


def _kinds(annotation: str) -> set[str]:
    """Names of the alternatives: "list[str] | None" -> {"list", "None"}."""
    def walk(node: ast.expr) -> set[str]:
        if isinstance(node, ast.BinOp):
            return walk(node.left) | walk(node.right)
        return {ast.unparse(node.value if isinstance(node, ast.Subscript) else node)}

    return walk(ast.parse(annotation, mode="eval").body)
