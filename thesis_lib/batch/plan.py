"""What is to be executed: tasks of a profile of notebooks/runs.yml, every mistake found before anything starts."""

import ast
import difflib
import json
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from thesis_lib.batch.worker import one_line
from thesis_lib.core import files, identity, paths, stamp
from thesis_lib.core.errors import ThesisError

TYPES = ("bool", "int", "float", "str", "list", "dict", "None")
SETTINGS = {"about": str, "timeout_s": (int, float), "defaults": dict, "notebooks": dict, "skip": list, "last": list,
            "every_category": list}


class BatchError(ThesisError):
    """Names the notebook, parameter or file that is wrong, and what would be right."""


@dataclass(frozen=True)
class Task:
    """One execution: source, name of the executed copy, parameters to inject, where to, limit in seconds."""

    notebook: Path
    name: str
    parameters: dict
    output: Path
    timeout_s: float
    after: tuple[Path, ...] = ()    # records of the tasks whose results it collects: it runs last and when they did

    @property
    def effective(self) -> dict:
        own = parameters_of(self.notebook)
        return {name: default for name, (default, _, _) in own.items()} | self.parameters

    @property
    def key(self) -> str:
        """Identity of an execution started now: cells, parameters, code and packages, data, what it collects."""
        cells = [[cell["cell_type"], cell["source"], _tags(cell)] for cell in _cells(self.notebook)]
        facts = [cells, self.effective, self.code, files_of(self.effective),
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


def parameters_of(notebook) -> dict[str, tuple]:
    """name -> (default, type, help) of the one code cell tagged `parameters`; read, never executed.

    Each of its lines is `name: type = literal  # help`; anything else raises BatchError: what is derived here
    would not follow an injected parameter.
    """
    where = f"{Path(notebook).name}: parameters cell"
    tagged = [cell for cell in _cells(notebook) if "parameters" in _tags(cell)]
    if len(tagged) != 1 or tagged[0]["cell_type"] != "code":
        raise BatchError(f"{where}: {len(tagged)} cells have this tag, it must be exactly one code cell")
    found, lines = {}, tagged[0]["source"].splitlines()
    try:
        nodes = ast.parse(tagged[0]["source"]).body
    except SyntaxError as error:
        raise BatchError(f"{where}, line {error.lineno}: {error.msg}") from None
    for node in nodes:
        line = lines[node.end_lineno - 1]
        try:
            name, annotation = node.target.id, ast.unparse(node.annotation)
            default = ast.literal_eval(node.value)
        except (AttributeError, ValueError, TypeError):
            raise BatchError(f"{where}: write `name: type = literal  # help`, not `{line}`") from None
        if name in found:
            raise BatchError(f"{where}: {name} is assigned twice")
        rest = line.encode()[node.end_col_offset:].decode()             # the offset counts bytes
        found[name] = (_typed(f"{where}: {name}", default, annotation), annotation,
                       rest.partition("#")[2].strip())
    return found


def plan(profile, *, only=(), overrides=None, categories=(), notebooks=None, outputs=None) -> list[Task]:
    """Tasks of a profile; any mistake in runs.yml, notebooks, `only` and `overrides` raises BatchError here.

    only: each "07", a full name or a unique prefix; default all.
    overrides: name -> text as typed after -p, or value; for the selected notebooks that declare the name.
    categories: of `every_category`, default those of the data folder.
    notebooks: folder with runs.yml, default paths.notebooks().
    outputs: folder of the executed copies, default paths.executed(profile).
    """
    folder, overrides = Path(notebooks or paths.notebooks()).resolve(), overrides or {}
    sources = {file.stem: file for file in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not sources:
        raise BatchError(f"{folder}: no notebook with a name like 07_patchcore_original.ipynb")
    declared = {stem: parameters_of(file) for stem, file in sources.items()}
    settings, where = _profile(folder / "runs.yml", profile), f"runs.yml, {profile}"
    for name in settings["defaults"]:
        _known(name, set().union(*declared.values()), f"{where}, defaults: no notebook has the parameter")
    for stem in [*settings["notebooks"], *settings["skip"], *settings["last"], *settings["every_category"]]:
        _known(stem, sources, f"{where}: there is no notebook")
    picked = _pick(only, [stem for stem in sources if stem not in settings["skip"]])
    for name in overrides:
        _known(name, set().union(*map(declared.get, picked)), "-p: no selected notebook has the parameter")
    outputs, tasks = Path(outputs or paths.executed(profile)).resolve(), []
    for stem, file in sources.items():
        entry, variants = settings["notebooks"].get(stem) or {}, []
        given_variants = entry if isinstance(entry, list) else [entry]
        for variant in given_variants:
            if not isinstance(variant, dict):
                raise BatchError(f"{where}: {stem}: {variant!r} is not a mapping of parameters")
        if stem in settings["every_category"]:
            _known("category", declared[stem], f"{where}, every_category: {stem} has no parameter")
            given_variants = [variant | {"category": name} for variant in given_variants
                              for name in categories or _categories(settings["defaults"] | variant, overrides)]
        for variant in given_variants:
            for name in variant:
                _known(name, declared[stem], f"{where}: {stem} has no parameter")
            given, typed = settings["defaults"] | variant, overrides if stem in picked else {}
            values = {name: _typed(f"-p {name}, {stem}", _from_text(typed[name], kind), kind) if name in typed
                      else _typed(f"{where}: {stem}: {name}", given[name], kind)
                      for name, (_, kind, _) in declared[stem].items() if name in given | typed}
            if values not in variants:                # -p can make two of them equal
                variants.append(values)
        tasks += [Task(file, stem + suffix, values, outputs / f"{stem}{suffix}.ipynb", settings["timeout_s"])
                  for suffix, values in zip(_suffixes(variants), variants, strict=True)]
    groups = [[task for task in tasks if task.notebook.stem not in settings["last"]],
              *([task for task in tasks if task.notebook.stem == stem] for stem in settings["last"])]
    ordered, before = [], ()
    for group in groups:
        ordered += [replace(task, after=before) for task in group]
        before += tuple(task.record for task in group)
    return [task for task in ordered if task.notebook.stem in picked]


def _cells(notebook) -> list[dict]:
    content = read_json(notebook)
    if not isinstance(content, dict) or "cells" not in content:
        raise BatchError(f"{notebook}: not a notebook (format 4)")
    return [cell | {"source": "".join(cell["source"])} for cell in content["cells"]]


def _tags(cell) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def _known(name, known, message) -> None:
    if name not in known:
        close = difflib.get_close_matches(str(name), known, 1)
        raise BatchError(f"{message} {name!r}; " + (f"did you mean {close[0]}?" if close else
                                                    f"there are: {', '.join(sorted(known)) or 'none'}"))


def _profile(file, profile) -> dict:
    try:
        runs = yaml.safe_load(file.read_text(encoding="utf-8"))
        _known(profile, runs, f"{file.name}: there is no profile")
        given = {name: value for name, value in runs[profile].items() if value is not None}
    except OSError:
        raise BatchError(f"{file}: not found; it defines the profiles") from None
    except (yaml.YAMLError, TypeError, AttributeError) as error:
        raise BatchError(f"{file}: must map profiles to settings; {one_line(str(error))}") from None
    for name, value in given.items():
        _known(name, SETTINGS, f"{file.name}, {profile}: there is no setting")
        if not isinstance(value, SETTINGS[name]) or (name == "timeout_s" and not value > 0):
            raise BatchError(f"{file.name}, {profile}: {name} cannot be {value!r}")
    if "timeout_s" not in given:
        raise BatchError(f"{file.name}, {profile}: timeout_s is missing (seconds for each notebook)")
    return {"defaults": {}, "notebooks": {}, "skip": [], "last": [], "every_category": []} | given


def _pick(only, stems) -> set[str]:
    picked = set()
    for wanted in ([only] if isinstance(only, str) else only) or stems:
        found = [wanted] if wanted in stems else [stem for stem in stems if stem.startswith(wanted)]
        if len(found) != 1:
            fits = ", ".join(found) or "nothing"
            raise BatchError(f"--only {wanted!r} fits {fits}; there are: {', '.join(stems)}")
        picked.add(found[0])
    return picked


def _kinds(annotation: str) -> set[str]:
    """Names of the alternatives: "list[str] | None" -> {"list", "None"}."""
    def walk(node):
        if isinstance(node, ast.BinOp):
            return walk(node.left) | walk(node.right)
        return {ast.unparse(node.value if isinstance(node, ast.Subscript) else node)}
    return walk(ast.parse(annotation, mode="eval").body)


def _from_text(value, annotation):
    """What was typed after -p: kept for a text parameter, else read as YAML."""
    kinds = _kinds(annotation)
    if not isinstance(value, str) or ("str" in kinds and not ("None" in kinds and value == "null")):
        return value
    with suppress(ValueError, yaml.YAMLError):
        loaded = yaml.safe_load(value)
        return float(loaded) if "float" in kinds and isinstance(loaded, str) else loaded  # YAML: 1e-3 is text
    return value


def _typed(where, value, annotation):
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


def _categories(given, overrides) -> list[str]:
    """Categories of the data folder; where it is not there the single one that the profile names."""
    from thesis_lib.data.folders import categories
    place = paths.data() / Path(str(overrides.get("data", given.get("data")))).expanduser()
    return (categories(place) if place.is_dir() else []) or [given["category"]]


def _suffixes(variants) -> list[str]:
    """'' for a single one, else the values in which they differ: '@granulate', '@seeds3-resnet34'."""
    if len(variants) == 1:
        return [""]
    names = [name for name in dict.fromkeys(name for values in variants for name in values)
             if len({json.dumps(values.get(name)) for values in variants}) > 1]
    texts = ["-".join(v[n] if isinstance(v[n], str) else f"{n}{v[n]}" for n in names if n in v)
             for v in variants]
    texts = [re.sub(r"[^\w.+]+", "-", text).strip("-")[:60] or "default" for text in texts]
    clear = len(set(texts)) == len(texts)
    return [f"@{text}" if clear else f"@{number}-{text}" for number, text in enumerate(texts, 1)]


def files_of(parameters) -> list:
    """What the parameters `data` and `weights` stand for on this disk: names and sizes, or size and time."""
    facts = []
    for value in filter(None, (parameters.get("data"), parameters.get("weights"))):
        place = paths.data() / Path(str(value)).expanduser()          # a path from / stays what it is
        made = place / "dataset.json"
        if place == paths.demo_data() and made.is_file():
            facts.append(made.read_text(encoding="utf-8"))
        elif place.is_dir():
            found = [(file.relative_to(place).as_posix(), file.stat().st_size)
                     for file in place.rglob("*") if file.is_file()]
            facts.append(files.digest(json.dumps(sorted(found))))
        elif place.is_file():
            facts.append([place.stat().st_size, place.stat().st_mtime_ns])
    return facts


def pictures_below(folder: str) -> int:
    """Pictures of a data folder as the parameter `data` names it; 0 where it is not there (demo: before it is made)."""
    place = paths.data() / Path(folder).expanduser()
    return sum(file.parent.name != "ground_truth" and file.parent.parent.name != "ground_truth"
               for file in place.rglob("*.[pjbtPJBT][npiNPI][gpfGPF]*"))


def read_json(file):
    """Content, or None where the file is missing or not whole."""
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
