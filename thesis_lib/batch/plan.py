"""What is to be executed: tasks of a profile of notebooks/runs.yml, every mistake found before anything starts.

The name of a profile and what was typed after it go in, `Task`s come out: a notebook, the parameters to inject, and the
file to write. Notebooks are read here and never executed.
"""

import ast
import itertools
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from thesis_lib.batch import values
from thesis_lib.batch.values import BatchError, known
from thesis_lib.batch.worker import one_line
from thesis_lib.core import files, identity, paths, stamp
from thesis_lib.core.preprocess import pictures_in

SETTINGS: dict[str, type | tuple[type, ...]] = {
    "about": str, "timeout_s": (int, float), "defaults": dict, "notebooks": dict, "only": list, "skip": list,
    "last": list, "every_category": list}
log = logging.getLogger("thesis_lib")
Parameter = tuple[Any, str, str]                    # default, type and help, as a notebook declares it


@dataclass(frozen=True)
class Task:
    """One execution: source, name of the executed copy, parameters to inject, where to, limit in seconds."""

    notebook: Path
    name: str
    parameters: dict[str, Any]
    output: Path
    timeout_s: float
    after: tuple[Path, ...] = ()    # records of the tasks whose results it collects: it runs last and when they did

    @property
    def effective(self) -> dict[str, Any]:
        """All parameters: those of the task, the notebook's own defaults for the rest."""
        defaults = {name: default for name, (default, _, _) in parameters_of(self.notebook).items()}
        return defaults | self.parameters

    @property
    def key(self) -> str:
        """Identity of an execution started now: cells, parameters, code and packages, data, what it collects."""
        cells = [[cell["cell_type"], cell["source"], _tags(cell)] for cell in _cells(self.notebook)]
        facts: list[Any] = [
            cells, self.effective, self.code, files_of(self.effective),
            [files.digest_of(file) for file in sorted(paths.reference().iterdir())],
            [identity.version_of(package) for package in stamp.PACKAGES],
            [(read_json(record) or {}).get("finished") for record in self.after]]
        return files.digest(json.dumps(facts, sort_keys=True))

    @property
    def code(self) -> dict[str, str]:
        """Module -> hash of what the cells import, directly and further on."""
        cells = [cell["source"] for cell in _cells(self.notebook) if cell["cell_type"] == "code"]
        try:
            return identity.code(*identity.imports("\n".join(cells)))
        except SyntaxError as error:
            raise BatchError(f"{self.notebook.name}: its cells are not plain Python ({error.msg}, line {error.lineno} "
                             "of all of them)") from None

    @property
    def record(self) -> Path:
        return self.output.with_suffix(".json")

    @property
    def failed_copy(self) -> Path:
        return self.output.with_suffix(".failed.ipynb")


def parameters_of(notebook: str | Path) -> dict[str, Parameter]:
    """name -> (default, type, help) of the one code cell tagged `parameters`; read, never executed.

    Each of its lines is `name: type = literal  # help`, and lines of comment below go on with the help; anything else
    raises BatchError: what is derived here would not follow an injected parameter.
    """
    where = f"{Path(notebook).name}: parameters cell"
    tagged = [cell for cell in _cells(notebook) if "parameters" in _tags(cell)]
    if len(tagged) != 1 or tagged[0]["cell_type"] != "code":
        raise BatchError(f"{where}: {len(tagged)} cells have this tag, it must be exactly one code cell")
    declared: dict[str, Parameter] = {}
    lines = tagged[0]["source"].splitlines()
    try:
        nodes = ast.parse(tagged[0]["source"]).body
    except SyntaxError as error:
        raise BatchError(f"{where}, line {error.lineno}: {error.msg}") from None
    for node in nodes:
        line = lines[node.end_lineno - 1]
        try:
            name, annotation = node.target.id, ast.unparse(node.annotation)
            default = ast.literal_eval(node.value)
        except (AttributeError, ValueError, TypeError):         # another statement, or a value that is no literal
            raise BatchError(f"{where}: write `name: type = literal  # help`, not `{line}`") from None
        if name in declared:
            raise BatchError(f"{where}: {name} is assigned twice")
        rest = line.encode()[node.end_col_offset:].decode()             # the offset counts bytes
        below = itertools.takewhile(lambda line: line.lstrip().startswith("#"), lines[node.end_lineno:])
        comment = " ".join([rest.partition("#")[2].strip(), *(line.strip(" #") for line in below)])
        declared[name] = values.typed(f"{where}: {name}", default, annotation), annotation, comment.strip()
    return declared


def plan(profile: str, *, only: str | Sequence[str] = (), overrides: Mapping[str, Any] | None = None,
         categories: Sequence[str] = (), notebooks: str | Path | None = None,
         outputs: str | Path | None = None) -> list[Task]:
    """Tasks of a profile; any mistake in runs.yml, notebooks, `only` and `overrides` raises BatchError here.

    Pictures that a profile names need not be here yet, since a batch may be planned for elsewhere: `run` asks for them.
    only: each "07", a full name or a unique prefix; default all.
    overrides: name -> text as typed after -p, or value; for the selected notebooks that declare the name. Where `only`
    is empty, a notebook keeps its own value in place of one that is right for others alone, and a warning says so.
    categories: of `every_category`, default those of the data folder.
    notebooks: folder with runs.yml, default paths.notebooks().
    outputs: folder of the executed copies, default paths.executed(profile).
    """
    # 1. The notebooks, and what their parameters cells declare.
    folder, overrides = Path(notebooks or paths.notebooks()).resolve(), overrides or {}
    sources = {file.stem: file for file in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not sources:
        raise BatchError(f"{folder}: no notebook with a name like 07_patchcore_original.ipynb")
    declared = {stem: parameters_of(file) for stem, file in sources.items()}
    # 2. The profile, and whether all that it names is there.
    profiles = _profiles(folder / "runs.yml")
    settings, where = _settings(profiles, profile), f"runs.yml, {profile}"
    everywhere = {name for parameters in declared.values() for name in parameters}
    for name in settings["defaults"]:
        known(name, everywhere, f"{where}, defaults: no notebook has the parameter")
    for stem in [*settings["notebooks"], *settings["only"], *settings["skip"], *settings["last"],
                 *settings["every_category"]]:
        known(stem, sources, f"{where}: there is no notebook")
    # 3. What was typed: which notebooks, and parameters that one of them has at least.
    picked = _pick(only, [stem for stem in settings["only"] or sources if stem not in settings["skip"]])
    selected = {name for stem in picked for name in declared[stem]}
    for name in overrides:
        known(name, selected, "-p: no selected notebook has the parameter")
    # 4. One task for each variant of each notebook; those that are not picked, too: a task waits for their records.
    target, tasks = Path(outputs or paths.executed(profile)).resolve(), []
    refused: dict[str, list[tuple[str, BatchError]]] = {}       # of what was typed: by which notebooks, and why
    taken: set[str] = set()
    for stem, file in sources.items():
        variants: list[dict[str, Any]] = []
        for given in _variants(stem, declared[stem], settings, where, categories, overrides):
            typed = {name: overrides[name] for name in declared[stem] if name in overrides and stem in picked}
            chosen: dict[str, Any] = {}
            for name, parameter in declared[stem].items():
                if name in typed:
                    text = values.from_text(typed[name], parameter[1])
                    try:
                        chosen[name] = _right(f"-p {name}, {stem}", name, text, parameter, profiles)
                        taken.add(name)
                    except BatchError as error:
                        refused.setdefault(name, []).append((stem, error))
                if name in given and name not in chosen:
                    chosen[name] = _right(f"{where}: {stem}: {name}", name, given[name], parameter, profiles)
            effective = {name: default for name, (default, _, _) in declared[stem].items()} | chosen
            values.check_together(f"-p, {stem}" if typed else f"{where}: {stem}", effective)
            if typed.keys() & {"data", "category", "categories"}:       # else `run` looks for the pictures
                values.check_pictures(f"-p, {stem}", effective)
            if chosen not in variants:                # -p can make two of them equal
                variants.append(chosen)
        tasks += [Task(file, stem + suffix, variant, target / f"{stem}{suffix}.ipynb", settings["timeout_s"])
                  for suffix, variant in zip(_suffixes(variants), variants, strict=True)]
    for name, errors in refused.items():
        if only or name not in taken:
            raise errors[0][1]
        for refusal in dict(errors).values():
            log.warning("%s; this notebook keeps its own", refusal)
    # 5. Those that collect come last, in their order, each after all before it.
    groups = [[task for task in tasks if task.notebook.stem not in settings["last"]]]
    groups += [[task for task in tasks if task.notebook.stem == stem] for stem in settings["last"]]
    ordered: list[Task] = []
    before: tuple[Path, ...] = ()
    for group in groups:
        ordered += [replace(task, after=before) for task in group]
        before += tuple(task.record for task in group)
    return [task for task in ordered if task.notebook.stem in picked]


def _variants(stem: str, declared: Mapping[str, Parameter], settings: Mapping[str, Any], where: str,
              categories: Sequence[str], overrides: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the profile gives a notebook for each execution of it: its defaults, and what stands at the notebook, one
    mapping or a list of them, each of these for every category where it is to be.
    """
    entry = settings["notebooks"].get(stem) or {}
    variants = entry if isinstance(entry, list) else [entry]
    for variant in variants:
        if not isinstance(variant, dict):
            raise BatchError(f"{where}: {stem}: {variant!r} is not a mapping of parameters")
    if stem in settings["every_category"]:
        known("category", declared, f"{where}, every_category: {stem} has no parameter")
        for_each = []
        for variant in variants:
            names = categories or _categories(settings["defaults"] | variant, overrides)
            for_each += [variant | {"category": name} for name in names]
        variants = for_each
    for variant in variants:
        for name in variant:
            known(name, declared, f"{where}: {stem} has no parameter")
    return [settings["defaults"] | variant for variant in variants]


def _cells(notebook: str | Path) -> list[dict[str, Any]]:
    """Cells as the file holds them, each with its source as one text."""
    content = read_json(notebook)
    if not isinstance(content, dict) or "cells" not in content:
        raise BatchError(f"{notebook}: not a notebook (format 4)")
    return [cell | {"source": "".join(cell["source"])} for cell in content["cells"]]


def _tags(cell: Mapping[str, Any]) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def _right(where: str, name: str, value: Any, parameter: Parameter, profiles: Mapping[str, Any]) -> Any:
    """The value of a parameter, of its type and one that its comment lists; a profile is one of runs.yml."""
    _, annotation, comment = parameter
    value = values.typed(where, value, annotation)
    if name == "profile" and isinstance(value, str):
        known(value, profiles, f"{where}: there is no profile")
    if name == "weights" and not values.choices(comment)[0]:
        comment = values.WEIGHTS
    return values.listed(where, value, comment)


def _profiles(file: Path) -> dict[str, dict[str, Any]]:
    """All that runs.yml holds, profile -> its settings."""
    try:
        profiles = yaml.safe_load(file.read_text(encoding="utf-8"))
        return {profile: dict(given.items()) for profile, given in profiles.items()}
    except OSError:
        raise BatchError(f"{file}: not found; it defines the profiles") from None
    except (yaml.YAMLError, TypeError, AttributeError) as error:
        raise BatchError(f"{file}: must map profiles to settings; {one_line(str(error))}") from None


def _settings(profiles: Mapping[str, Mapping[str, Any]], profile: str) -> dict[str, Any]:
    """The settings of a profile, checked, with those that it leaves out."""
    known(profile, profiles, "runs.yml: there is no profile")
    given = {name: value for name, value in profiles[profile].items() if value is not None}
    for name, value in given.items():
        known(name, SETTINGS, f"runs.yml, {profile}: there is no setting")
        fits = isinstance(value, SETTINGS[name])
        if not fits or (name == "timeout_s" and not value > 0):
            raise BatchError(f"runs.yml, {profile}: {name} cannot be {value!r}")
    if "timeout_s" not in given:
        raise BatchError(f"runs.yml, {profile}: timeout_s is missing (seconds for each notebook)")
    return {"defaults": {}, "notebooks": {}, "only": [], "skip": [], "last": [], "every_category": []} | given


def _pick(only: str | Sequence[str], stems: Sequence[str]) -> set[str]:
    """Names of the notebooks that `only` means, each the only one that begins so; nothing means all."""
    picked = set()
    asked = [only] if isinstance(only, str) else only
    for wanted in asked or stems:
        fitting = [wanted] if wanted in stems else [stem for stem in stems if stem.startswith(wanted)]
        if len(fitting) != 1:
            fits = ", ".join(fitting) or "nothing"
            raise BatchError(f"--only {wanted!r} fits {fits}; there are: {', '.join(stems)}")
        picked.add(fitting[0])
    return picked


def _categories(given: Mapping[str, Any], overrides: Mapping[str, Any]) -> list[str]:
    """Categories of the data folder; where it is not there the single one that the profile names."""
    from thesis_lib.data.folders import categories
    place = paths.data() / Path(str(overrides.get("data", given.get("data")))).expanduser()
    there = categories(place) if place.is_dir() else []
    return there or [given["category"]]


def _suffixes(variants: Sequence[Mapping[str, Any]]) -> list[str]:
    """'' for a single one, else the values in which they differ: '@granulate', '@seeds3-resnet34'."""
    if len(variants) == 1:
        return [""]
    names = dict.fromkeys(name for variant in variants for name in variant)             # a set in their order
    differing = [name for name in names if len({json.dumps(variant.get(name)) for variant in variants}) > 1]
    texts = []
    for variant in variants:
        parts = []
        for name in differing:
            if name in variant:
                parts.append(variant[name] if isinstance(variant[name], str) else f"{name}{variant[name]}")
        text = re.sub(r"[^\w.+]+", "-", "-".join(parts)).strip("-")[:60]
        texts.append(text or "default")
    clear = len(set(texts)) == len(texts)
    return [f"@{text}" if clear else f"@{number}-{text}" for number, text in enumerate(texts, 1)]


def files_of(parameters: Mapping[str, Any]) -> list[Any]:
    """What the parameters `data` and `weights` stand for on this disk: names and sizes, or size and time."""
    facts: list[Any] = []
    for value in filter(None, (parameters.get("data"), parameters.get("weights"))):
        place = paths.data() / Path(str(value)).expanduser()          # a path from / stays what it is
        made = place / "dataset.json"
        if place == paths.demo_data() and made.is_file():
            facts.append(made.read_text(encoding="utf-8"))
        elif place.is_dir():
            sizes = [(file.relative_to(place).as_posix(), file.stat().st_size)
                     for folder, _, names in os.walk(place, followlinks=True)
                     for file in (Path(folder, name) for name in names) if file.is_file()]
            facts.append(files.digest(json.dumps(sorted(sizes))))
        elif place.is_file():
            facts.append([place.stat().st_size, place.stat().st_mtime_ns])
    return facts


def pictures_below(folder: str) -> int:
    """Pictures of a data folder as the parameter `data` names it; 0 where it is not there (demo: before it is made)."""
    place = paths.data() / Path(folder).expanduser()
    return sum("ground_truth" not in file.relative_to(place).parts for file in pictures_in(place, below=True))


def read_json(file: str | Path) -> Any:
    """Content, or None where the file is missing or not whole."""
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
