"""What a stored number depends on: the code that it ran through, parsed, and the versions of the packages below that.

A comment, a docstring or a line of another method changes no number, so it must not stale one. Modules are named as
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
    imported = set().union(*(_parsed(module).packages for module in modules(*roots)))
    return {PACKAGES[name]: version_of(PACKAGES[name]) for name in sorted(imported)}


def modules(*roots: str) -> list[str]:
    """The roots and what they import within their own packages, directly and further on, sorted."""
    found, waiting = set(), list(roots)
    while waiting:
        module = waiting.pop()
        if module not in found and module not in NEUTRAL:
            found.add(module)
            waiting += _parsed(module).imports
    return sorted(found)


def imports(source: str) -> list[str]:
    """Modules of thesis_lib that a piece of code imports, a notebook's cells for example."""
    return sorted(_Parsed(ast.parse(source), "").imports)


def steps(kind: type, names: Iterable[str]) -> dict[str, str]:
    """As `code`, for some methods of a class alone: what else stands in their modules does not count.

    Counted are the methods, what they name in their own module or of `self`, and the modules they take names from.
    """
    own: dict[str, dict[str, str]] = {}         # module -> definition -> hash
    taken, waiting = set(), [name for name in names if _owner(kind, name)]
    asked = [(_owner(kind, name), name) for name in waiting]
    while asked:
        owner, name = asked.pop()
        module, parsed = owner.__module__, _parsed(owner.__module__)
        label = f"{owner.__name__}.{name}"
        if label in own.setdefault(module, {}):
            continue
        node = parsed.definitions.get(label)
        if node is None:                        # a field, set by a parameter
            continue
        own[module][label] = _hash(_canonical(node))
        # Names of the module are followed as far as they lead.
        named = [node]
        while named:
            for part in ast.walk(named.pop()):
                if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self":
                    if other := _owner(kind, part.attr):
                        asked.append((other, part.attr))
                elif isinstance(part, ast.Name) and part.id in parsed.origins:
                    taken.add(parsed.origins[part.id])
                elif isinstance(part, ast.Name) and part.id in parsed.definitions and part.id not in own[module]:
                    own[module][part.id] = _hash(_canonical(parsed.definitions[part.id]))
                    named.append(parsed.definitions[part.id])
    whole = code(*(module for module in taken if module not in own))
    return whole | {module: _hash(json.dumps(parts, sort_keys=True)) for module, parts in own.items() if parts}


def unlike(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of the modules whose code differs, or that only one of both has."""
    return sorted(name for name in {**before, **now} if before.get(name) != now.get(name))


class _Parsed:
    """One module: hash of its code, what it imports, and its definitions by name."""

    def __init__(self, tree: ast.Module, module: str):
        own = {"thesis_lib", module.partition(".")[0]}
        self.hash = _hash(_canonical(tree))
        self.packages: set[str] = set()
        self.origins: dict[str, str] = {}       # name -> module of thesis_lib that it comes from
        for target, name, bound in _imported(tree, module):
            if target.partition(".")[0] in own:
                self.origins[bound] = _defining(target, name)
            elif target.partition(".")[0] in PACKAGES:
                self.packages.add(target.partition(".")[0])
        self.imports = sorted(set(self.origins.values()))

        self.definitions: dict[str, ast.AST] = {}
        for node in tree.body:
            for name in _bound(node):
                self.definitions[name] = node
            if isinstance(node, ast.ClassDef):
                self.definitions |= {f"{node.name}.{name}": part for part in node.body for name in _bound(part)
                                     if not isinstance(part, ast.AnnAssign)}


def _parsed(module: str) -> _Parsed:
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


def _defining(module: str, name: str | None) -> str:
    """The module behind `from module import name`: a module below it, or the one that a room's face takes it from."""
    if name is None:
        return module
    file = _file(module)
    if file is None or file.name != "__init__.py":
        return module
    if (file.parent / f"{name}.py").is_file() or (file.parent / name / "__init__.py").is_file():
        return f"{module}.{name}"
    return _parsed(module).origins.get(name, module)


def _owner(kind: type, name: str) -> type | None:
    """The class that an instance has this method or property from, if it is one of ours."""
    for owner in kind.__mro__:
        if name in vars(owner):
            return owner if _file(owner.__module__) and owner.__module__ != "builtins" else None
    return None


def _bound(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
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
    pieces: list[ast.expr] = []
    for value in values:
        if isinstance(value, ast.Constant) and pieces and isinstance(pieces[-1], ast.Constant):
            pieces[-1] = ast.Constant(f"{pieces[-1].value}{value.value}")
        elif not (isinstance(value, ast.Constant) and value.value == ""):
            pieces.append(value)
    return pieces


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
