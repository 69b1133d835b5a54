"""What a stored number depends on: the code that it ran through, parsed, and the versions of the packages below that.

Names of modules, or a class and some of its methods, go in; hashes come out, one for each module or one over all. A
comment, a docstring or a line of another method changes no number, so it must not stale one. Modules are named as
Python does ("thesis_lib.patches.search"); their code counts with all that they import, directly and further on.
"""

import ast
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

from thesis_lib.core import paths

# Modules that cannot change a number: they store, report and refuse. The demo pictures count by their bytes, and of the
# registry of methods only the one that is asked for counts, which whoever asks names itself.
NEUTRAL = frozenset({f"thesis_lib.{module}" for module in (
    "core.paths", "core.files", "core.results", "core.stamp", "core.identity", "core.progress", "core.errors",
    "core.memory", "core.parameters", "data.synthetic", "data.scenes", "methods.registry")})
PACKAGES = {"torch": "torch", "torchvision": "torchvision", "numpy": "numpy", "scipy": "scipy", "PIL": "pillow",
            "faiss": "faiss-cpu", "sklearn": "scikit-learn"}         # imported as -> installed as; see `versions`
SKIPPED = {"ctx", "kind", "type_comment", "type_ignores"}           # fields of a syntax tree that say nothing


@cache
def version_of(package: str) -> str | None:
    """Installed version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def key(*roots: str) -> str:
    """One hash over `code` and `versions` of these modules, 16 hexadecimal digits."""
    return _hash(json.dumps([code(*roots), versions(*roots)], sort_keys=True))


def code(*roots: str) -> dict[str, str]:
    """Module -> hash of its parsed code, for the roots and all that they import; without the NEUTRAL ones."""
    return {module: _parsed(module).hash for module in modules(*roots)}


def versions(*roots: str) -> dict[str, str | None]:
    """Versions of the packages that these modules compute with. ONNX Runtime counts where an engine uses it: see
    `engines.record`.
    """
    imported: set[str] = set()
    for module in modules(*roots):
        imported |= _parsed(module).packages
    return {PACKAGES[name]: version_of(PACKAGES[name]) for name in sorted(imported)}


def modules(*roots: str) -> list[str]:
    """The roots and what they import within their own packages, directly and further on, sorted."""
    reached: set[str] = set()
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        if module not in reached and module not in NEUTRAL:
            reached.add(module)
            waiting += _parsed(module).imports
    return sorted(reached)


def imports(source: str) -> list[str]:
    """Modules of thesis_lib that a piece of code imports, a notebook's cells for example."""
    return sorted(_Parsed(ast.parse(source), "").imports)


def steps(kind: type, names: Iterable[str]) -> dict[str, str]:
    """As `code`, for some methods of a class alone: what else stands in their modules does not count.

    Counted are the methods, what they name of `self`, in their own module or in that of a base class, and the other
    modules that they take names from.
    """
    counted: dict[str, dict[str, str]] = {}     # module -> definition -> hash
    whole: set[str] = set()                     # modules that names come from: they count as they are
    waiting: list[tuple[str, str]] = []         # (module, definition) still to be read
    of_bases = {base.__module__ for base in kind.__mro__}       # of these single definitions count

    def ask(method: str) -> None:
        """A method or property of the class, wherever it inherits it from."""
        if (owner := _owner(kind, method)) is not None:
            waiting.append((owner.__module__, f"{owner.__name__}.{method}"))

    for name in names:
        ask(name)
    while waiting:
        # 1. A definition counts once, by its own code.
        module, label = waiting.pop()
        parsed = _parsed(module)
        if label in counted.setdefault(module, {}) or label not in parsed.definitions:      # a field is no definition
            continue
        definition = parsed.definitions[label]
        counted[module][label] = _hash(_canonical(definition))
        # 2. What it names: methods of `self`; names from elsewhere, whose modules count; names of its own module.
        for node in ast.walk(definition):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                ask(node.attr)
            elif isinstance(node, ast.Name) and node.id in parsed.origins:
                origin, name_there = parsed.origins[node.id]
                if name_there is not None and origin in of_bases:
                    waiting.append((origin, name_there))
                else:
                    whole.add(origin)
            elif isinstance(node, ast.Name):
                waiting.append((module, node.id))
    # 3. One hash for each module of which only parts count; the other modules by all of their code and imports.
    parts = {module: _hash(json.dumps(hashes, sort_keys=True)) for module, hashes in counted.items() if hashes}
    return code(*(whole - set(parts))) | parts


def unlike(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of the modules whose code differs, or that only one of both has."""
    return sorted(name for name in {**before, **now} if before.get(name) != now.get(name))


class _Parsed:
    """One module: hash of its code, what it imports, and its definitions by name."""

    def __init__(self, tree: ast.Module, module: str) -> None:
        followed = {"thesis_lib", module.partition(".")[0]}     # top packages whose modules count by their code
        self.hash = _hash(_canonical(tree))
        self.packages: set[str] = set()         # of PACKAGES, that it imports
        self.imports: set[str] = set()          # modules of its own package and of thesis_lib
        self.origins: dict[str, tuple[str, str | None]] = {}    # name -> one of these, name there; None: itself
        for target, name, bound in _imported(tree, module):
            top = target.partition(".")[0]
            if top in followed:
                self.origins[bound] = _defining(target, name)
                self.imports.add(self.origins[bound][0])
            elif top in PACKAGES:
                self.packages.add(top)

        self.definitions: dict[str, ast.AST] = {}
        for node in tree.body:
            for name in _bound(node):
                self.definitions[name] = node
            if isinstance(node, ast.ClassDef):
                self._define_methods(node)

    def _define_methods(self, kind: ast.ClassDef) -> None:
        """What a class defines, but for its fields: those are set by a parameter."""
        for part in kind.body:
            if not isinstance(part, ast.AnnAssign):
                for name in _bound(part):
                    self.definitions[f"{kind.name}.{name}"] = part


def _parsed(module: str) -> _Parsed:
    """The module as it stands in its file now."""
    file = _file(module)
    if file is None:                            # of a class that was typed in
        return _Parsed(ast.parse(""), module)
    stat = file.stat()
    return _read(module, file, stat.st_mtime_ns, stat.st_size)


@cache
def _read(module: str, file: Path, changed: int, size: int) -> _Parsed:
    """Once for every state of a file."""
    return _Parsed(ast.parse(file.read_bytes()), module)


@cache
def _file(module: str) -> Path | None:
    """Where a module's source lies; nothing is imported to know it."""
    top, *below = module.split(".")
    if top == "thesis_lib":
        package = paths.PACKAGE
    else:
        origin = getattr(sys.modules.get(top), "__file__", None)
        if origin is None and top not in sys.modules:
            spec = importlib.util.find_spec(top)
            origin = spec.origin if spec else None
        if origin is None:                      # "__main__" of a notebook
            return None
        if not below:
            return Path(origin)
        package = Path(origin).parent
    place = package.joinpath(*below)
    candidates = (place / "__init__.py", place.with_suffix(".py"))
    return next((file for file in candidates if file.is_file()), None)


def _imported(tree: ast.AST, module: str) -> Iterator[tuple[str, str | None, str]]:
    """(module, name taken from it or None, name it is bound to) of every import that runs, inside functions, too."""
    for node in _running(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None, alias.asname or alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[:-node.level] if node.level else []
            target = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((target, alias.name, alias.asname or alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from ((str(name.value), None, "") for name in node.args[:1] if isinstance(name, ast.Constant))


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those below `if TYPE_CHECKING`."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            waiting += ast.iter_child_nodes(node)


def _defining(module: str, name: str | None) -> tuple[str, str | None]:
    """What `from module import name` leads to: a module below it and None, or the module that defines it and its name
    there, also where a room's face hands it on.
    """
    file = _file(module)
    if name is None or file is None or file.name != "__init__.py":
        return module, name
    if (file.parent / f"{name}.py").is_file() or (file.parent / name / "__init__.py").is_file():
        return f"{module}.{name}", None
    return _parsed(module).origins.get(name, (module, name))


def _owner(kind: type, name: str) -> type | None:
    """The class that an instance has this method or property from, if it is one of ours."""
    for owner in kind.__mro__:
        if name in vars(owner):
            return owner if _file(owner.__module__) and owner.__module__ != "builtins" else None
    return None


def _bound(node: ast.AST) -> list[str]:
    """Names that a statement defines: of a function, a class, or variables."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]


def _canonical(node: object) -> str:
    """Text of a syntax tree without places, docstrings and empty fields; `ast.dump` differs between Pythons."""
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Constant):
        return repr(node.value)
    fields = {name: value for name, value in ast.iter_fields(node) if name not in SKIPPED and value not in (None, [])}
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if ast.get_docstring(node, clean=False) is not None:
            fields["body"] = node.body[1:]
    elif isinstance(node, ast.JoinedStr):               # how its texts are cut into pieces is up to the parser
        fields["values"] = _joined(node.values)
    return f"{type(node).__name__}({','.join(f'{name}={_canonical(value)}' for name, value in fields.items())})"


def _joined(values: list[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string, neighbouring texts put together and empty ones left out."""
    pieces: list[ast.expr] = []
    for value in values:
        before = pieces[-1] if pieces else None
        if isinstance(value, ast.Constant) and isinstance(before, ast.Constant):
            pieces[-1] = ast.Constant(f"{before.value!s}{value.value!s}")       # both are texts
        elif not (isinstance(value, ast.Constant) and value.value == ""):
            pieces.append(value)
    return pieces


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
