"""The house: every import goes down, `core` and `device` need no torch, and each room says what it is for."""

import ast
import importlib
import subprocess
import sys

import pytest

from thesis_lib.core import paths

BELOW = {"core": (), "data": ("core",)}         # room -> rooms that it may import from, beside itself
for room, under in (("networks", "data"), ("patches", "networks"), ("training", "patches"), ("methods", "training"),
                    ("evaluation", "methods"), ("device", "evaluation")):
    BELOW[room] = (*BELOW[under], under)
BELOW |= {"batch": ("core", "data"), "report": (*BELOW["evaluation"], "evaluation", "batch")}
BELOW["commands"] = tuple(BELOW)
MODULES = sorted(paths.PACKAGE.rglob("*.py"))


def imported(file, source=None):
    """Modules that a file imports, inside functions and for type checkers, too; relative ones are made whole.

    `from thesis_lib.patches import search` counts as thesis_lib.patches.search.
    """
    package = ["thesis_lib", *file.relative_to(paths.PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(source or file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[:len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def wrong(file, source=None):
    """Imports of a file that break the direction, as lines that name both ends."""
    here = file.relative_to(paths.PACKAGE)
    if len(here.parts) == 1:
        return []                               # thesis_lib/__init__.py
    room = here.parts[0]
    found = []
    for module in imported(file, source):
        top, *rest = module.split(".")
        if top == "thesis_lib" and (not rest or rest[0] not in (room, *BELOW[room])):
            allowed = ", ".join(BELOW[room]) or "none"
            found.append(f"{here.as_posix()} imports {module}; {room} may import from {allowed}")
    return found


def test_every_import_goes_down():
    assert len(MODULES) > 80
    broken = [line for file in MODULES for line in wrong(file)]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("source", [
    "from thesis_lib.methods.patchcore import PatchCore", "from thesis_lib.methods import patchcore",
    "import thesis_lib.methods.base", "from ..methods import base", "from ..methods.base import Detector",
    "def later():\n    from thesis_lib import methods", "from thesis_lib.report import figures"])
def test_an_import_upwards_is_named(source):
    """Relative and function-level ones, too."""
    (line,) = wrong(paths.PACKAGE / "patches" / "search.py", source)
    assert "patches/search.py imports thesis_lib." in line


def test_every_room_has_a_sign_on_its_door():
    rooms = {folder.name for folder in paths.PACKAGE.iterdir() if (folder / "__init__.py").is_file()}
    assert rooms == set(BELOW)
    for room in rooms:
        tree = ast.parse((paths.PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))
        assert len(ast.get_docstring(tree) or "") > 80, f"{room}: its __init__ does not say what it is for"
        if room in ("core", "device", "batch", "report", "commands"):
            assert len(tree.body) == 1, f"{room}: its __init__ holds a docstring only"


def test_inside_the_library_imports_name_the_defining_module():
    """Then a key follows them; the faces of the rooms are for users."""
    faces = {f"thesis_lib.{room}" for room in BELOW}
    for file in MODULES:
        if file.name == "__init__.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in faces:
                for alias in node.names:
                    place = paths.PACKAGE / node.module.partition(".")[2] / f"{alias.name}.py"
                    assert place.is_file(), f"{file.name} imports {alias.name} from the face of {node.module}"


@pytest.mark.parametrize("room", [room for room in BELOW if room != "commands"])
def test_no_name_on_the_face_of_a_room_hides_a_module(room):
    """`from thesis_lib.evaluation import study` is the module, whatever functions it has."""
    face = importlib.import_module(f"thesis_lib.{room}")
    for file in (paths.PACKAGE / room).glob("[!_]*.py"):
        module = importlib.import_module(f"thesis_lib.{room}.{file.stem}")
        assert getattr(face, file.stem) is module


@pytest.mark.parametrize("blocked", ["torch", "pandas"])
def test_core_and_device_need_neither_torch_nor_pandas(blocked):
    names = [f"thesis_lib.{room}.{file.stem}" for room in ("core", "device")
             for file in (paths.PACKAGE / room).glob("*.py") if file.stem not in ("__init__", "export")]
    assert {"thesis_lib.core.results", "thesis_lib.device.run"} < set(names)
    code = (f"import importlib, sys\nsys.modules[{blocked!r}] = None\n"
            f"for name in {names!r}:\n    importlib.import_module(name)\nprint(len({names!r}))")
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.stdout.strip() == str(len(names)), shown.stderr


def test_core_never_imports_torch_or_pandas():
    files = list((paths.PACKAGE / "core").glob("*.py"))
    assert len(files) > 12
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and isinstance(node.test, ast.Name)
                  and node.test.id == "TYPE_CHECKING"]
        typing_only = {id(part) for guard in guards for part in ast.walk(guard)}
        for node in ast.walk(tree):
            names = ([alias.name for alias in node.names] if isinstance(node, ast.Import)
                     else [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
            heavy = {name.partition(".")[0] for name in names} & {"torch", "pandas", "faiss", "sklearn", "scipy"}
            assert not heavy or id(node) in typing_only, f"core/{file.name} imports {', '.join(heavy)}"


HELP = ("import contextlib, io\nfrom thesis_lib.commands.main import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n    main(['--help'])")
FACES = ("from thesis_lib import data, evaluation, methods, networks, patches\n"
         "from thesis_lib.report import figures, panels, tables")


@pytest.mark.parametrize(("code", "unwanted"), [
    ("import thesis_lib", {"numpy", "sklearn", "torch"}), (HELP, {"pandas", "scipy", "sklearn", "torch"}),
    ("import thesis_lib.data.synthetic, thesis_lib.batch.run", {"pandas", "scipy", "sklearn", "torch"}),
    (FACES, {"sklearn", "scipy.stats", "seaborn"})], ids=["package", "help", "data and batch", "notebook"])
def test_a_start_does_not_wait_for_what_it_may_never_use(code, unwanted):
    """Every command and every notebook starts with one of these; scikit-learn alone took a third of the last one."""
    shown = subprocess.run([sys.executable, "-c", f"{code}\nimport sys\nprint(sorted({unwanted} & set(sys.modules)))"],
                           capture_output=True, text=True)
    assert shown.stdout == "[]\n", shown.stdout + shown.stderr
