"""What stales a stored number: the code that it ran through and the versions below it, and nothing else."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from thesis_lib.core import identity, paths

METHODS = ("patchcore", "spade", "padim", "simplenet", "uninformed_students", "efficientad")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the library."""
    folder = tmp_path_factory.mktemp("copy") / "thesis_lib"
    shutil.copytree(paths.PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    return folder


@pytest.fixture
def edit(package, monkeypatch):
    """Modules are read from the copy; edit(module, old, new) changes a line of one, edit(module) adds one."""
    monkeypatch.setattr(paths, "PACKAGE", package)
    identity._file.cache_clear()
    before = {}

    def change(module, old="", new=""):
        file = package.joinpath(*module.split(".")).with_suffix(".py")
        text = before.setdefault(file, file.read_text(encoding="utf-8"))
        assert old in text, f"{module} has no {old!r}"
        file.write_text(text.replace(old, new, 1) if old else text + "\n\nSOMETHING = 1\n", encoding="utf-8")

    yield change
    for file, text in before.items():
        file.write_text(text, encoding="utf-8")
    identity._file.cache_clear()


def rows():
    """Key of an auroc row of each method."""
    return {name: identity.key("thesis_lib.evaluation.scores", f"thesis_lib.methods.{name}") for name in METHODS}


@pytest.mark.parametrize(("module", "old", "new"), [
    ("report.site", "import html\n", "import html\n# another comment\n"),
    ("report.figures", '"#3b6ea5"', '"#000000"'),
    ("commands.main", "def main(", "def unused():\n    pass\n\n\ndef main("),
    ("commands.methods", "import argparse\n", "import argparse  # a comment\n"),
    ("evaluation.metrics", '"""', '"""Another docstring. '),
    ("methods.patchcore", "class PatchCore", "# a comment\nclass PatchCore"),
    ("core.progress", "", ""), ("core.stamp", "", ""), ("data.synthetic", "", ""), ("batch.run", "", ""),
    ("methods.registry", "", "")])
def test_what_cannot_change_a_number_stales_no_row(edit, module, old, new):
    before = rows()
    edit(module, old, new)
    assert rows() == before


@pytest.mark.parametrize("method", METHODS)
def test_an_edit_of_a_method_stales_its_rows_alone(edit, method):
    before = rows()
    edit(f"methods.{method}")
    assert {name for name, key in rows().items() if key != before[name]} == {method}


@pytest.mark.parametrize(("module", "stale"), [
    ("patches.coreset", {"patchcore"}), ("training.descent", {"simplenet", "uninformed_students", "efficientad"}),
    ("networks.backbones", set(METHODS)), ("evaluation.metrics", set(METHODS)),
    ("networks.patchnets", {"uninformed_students"}),
    ("core.seeds", {"simplenet", "uninformed_students", "efficientad"})])
def test_an_edit_below_stales_what_runs_through_it(edit, module, stale):
    before = rows()
    edit(module)
    assert {name for name, key in rows().items() if key != before[name]} == stale


def test_kept_maps_and_coreset_orders_have_closures_of_their_own(edit):
    def keys():
        return [identity.key(f"thesis_lib.{module}") for module in ("networks.maps", "patches.coreset")]
    before = keys()
    edit("methods.patchcore")
    edit("evaluation.scores", "POINTS = 200", "POINTS = 100")
    assert keys() == before
    edit("networks.backbones")
    assert [key != old for key, old in zip(keys(), before, strict=True)] == [True, False]


def test_versions_count_where_they_are_gone_through(monkeypatch):
    before = {method: identity.key("thesis_lib.evaluation.scores", f"thesis_lib.methods.{method}")
              for method in ("patchcore", "efficientad")}
    genuine = identity.version_of
    for package, stale in (("faiss-cpu", {"patchcore"}), ("torch", {"patchcore", "efficientad"}),
                           ("numpy", {"patchcore", "efficientad"}), ("matplotlib", set()),
                           ("scipy", {"patchcore", "efficientad"})):
        monkeypatch.setattr(identity, "version_of", lambda name, changed=package: "0" if name == changed
                            else genuine(name))
        assert {method for method, key in before.items() if key != identity.key(
            "thesis_lib.evaluation.scores", f"thesis_lib.methods.{method}")} == stale, package


def test_the_modules_that_do_not_count_exist():
    for module in identity.NEUTRAL:
        assert identity._file(module), module


def test_imports_of_a_page_are_those_of_its_cells():
    """Names from a room's face lead to the module that defines them, so that a page hangs on its own methods alone."""
    found = identity.imports("import numpy\nfrom thesis_lib.methods import PatchCore, SPADE\n"
                             "from thesis_lib.report import figures\nfrom thesis_lib.data import scan, Preprocess\n")
    assert found == ["thesis_lib.core.preprocess", "thesis_lib.data.folders", "thesis_lib.methods.patchcore",
                     "thesis_lib.methods.spade", "thesis_lib.report.figures"]
    whole = identity.modules(*found)
    assert "thesis_lib.patches.coreset" in whole and "thesis_lib.methods.efficientad" not in whole


def test_imports_for_a_type_checker_and_relative_ones(tmp_path, monkeypatch):
    (tmp_path / "stranger").mkdir()
    for name, text in (("__init__", ""), ("one", "from typing import TYPE_CHECKING\nfrom . import two\n"
                                                 "if TYPE_CHECKING:\n    from stranger import three\n"),
                       ("two", "def later():\n    from .four import x\n"), ("three", ""), ("four", "x = 1")):
        (tmp_path / "stranger" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert identity.modules("stranger.one") == ["stranger.four", "stranger.one", "stranger.two"]


@pytest.mark.parametrize(("one", "other", "same"), [
    ("x = 1  # a\n", "x = 1\n\n\n", True), ('def f():\n    """A."""\n    return 1', "def f():\n    return 1", True),
    ("x = f'a{1}' 'b'", "x = f'a{1}b'", True), ("x = 1", "x = 2", False), ("x = 1", "x = 1.0", False),
    ("x = [1, None]", "x = [1]", False), ("f(a=1)", "f(a=2)", False), ("x = 'a'", "x = b'a'", False),
    ("def f(x): pass", "async def f(x): pass", False), ("x = -1", "x = +1", False), ("f(*a)", "f(a)", False),
    ("class A:\n    '''D.'''\n    x = 1", "class A:\n    x = 1", True), ("x = 'text'", "x = 'other'", False)])
def test_parsed_code_alone_counts(one, other, same):
    assert (identity._canonical(ast.parse(one)) == identity._canonical(ast.parse(other))) is same


SAMPLE = '''
import numpy as np
class A(Base, metaclass=M):
    """Docstring."""
    x: int = 3
    def f(self, a, *b, c=1, **d) -> "str":
        """Another."""
        return f"{a!r:>{c}} {b}" "tail" f"{d}" if a else None
async def g():
    async with h() as i:
        yield [j async for j in i if (k := j) > 1_000.5e-3]
match x:
    case {"a": [1, *rest], **more} if rest: y = lambda z: (yield)
    case A(x=3) | None: del y
try: z = {**{}, 1: b"b", ...: -1j}
except* ValueError as e: raise RuntimeError from e
'''


def test_the_key_is_the_same_on_every_python():
    """The number was computed on 3.11; CI and users run it on theirs, and here on every Python that is at hand."""
    known = "b8f645e413f8fb9d "
    code = (f"import ast, sys\nsys.path.insert(0, {str(paths.PACKAGE.parent)!r})\n"
            "from thesis_lib.core import identity\n"
            f"print(identity._hash(identity._canonical(ast.parse({SAMPLE!r}))),"
            f" identity.code('thesis_lib.methods.efficientad'))")
    shown = {}
    for python in {sys.executable, *pythons()}:
        ran = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        shown[python] = ran.stdout
    assert len(set(shown.values())) == 1, shown
    assert shown[sys.executable].startswith(known)


def pythons():
    """Other interpreters of this machine from 3.11 on; the module needs no package to be read."""
    found = [shutil.which(f"python3.{minor}") for minor in range(11, 16)]
    found += list(Path.home().glob(".pyenv/versions/3.1[1-9].*/bin/python"))
    for python in filter(None, found):
        asked = subprocess.run([str(python), "-c", "import sys; print(sys.version_info[:2] >= (3, 11))"],
                               capture_output=True, text=True)
        if asked.stdout.strip() == "True":
            yield str(python)
