"""The files around the library agree with each other and with README."""

import argparse
import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename
from packaging.version import Version

from thesis_lib.commands import doctor
from thesis_lib.commands.main import parser
from thesis_lib.core import paths

ROOT = paths.root()
README = (ROOT / "README.md").read_text(encoding="utf-8")


def pins():
    """name -> exact versions by constraints.txt for the Python that runs here."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {one.name.lower(): one for one in found if one.marker is None or one.marker.evaluate()}


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def wanted(pyproject, *extras):
    """Requirements of the project with these extras, those on its own extras left out."""
    lines = pyproject["dependencies"] + [line for extra in extras for line in pyproject["optional-dependencies"][extra]]
    return [one for one in map(Requirement, lines) if one.name != pyproject["name"]]


def test_constraints_satisfy_the_project(pyproject):
    for one in wanted(pyproject, *pyproject["optional-dependencies"]):
        (version,) = pins()[one.name.lower()].specifier
        assert version.operator == "==" and version.version in one.specifier, one


def test_torch_and_torchvision_have_upper_bounds(pyproject):
    bounded = [one for one in wanted(pyproject, "full") if one.name in ("torch", "torchvision") and not one.marker]
    assert len(bounded) == 2
    assert all(any(bound.operator == "<" for bound in one.specifier) for one in bounded)


def test_every_python_from_3_11_on_is_taken(pyproject):
    """An upper bound would make pip fall back to an older version of the project without a word."""
    bounds = {bound.operator: bound.version for bound in Requirement(f"x{pyproject['requires-python']}").specifier}
    assert set(bounds) == {">="} and Version(bounds[">="]) >= Version("3.11")


def test_what_is_said_of_torch_on_a_pi_is_of_versions_that_the_project_takes(pyproject):
    (torch,) = [one for one in wanted(pyproject, "full") if one.name == "torch" and not one.marker]
    for text in (doctor.ADVICE, (ROOT / "docs/guides/troubleshooting.md").read_text(encoding="utf-8")):
        named = re.findall(r"\b2\.\d+\.\d+\b", text)
        assert named and all(version in torch.specifier for version in named), named
        assert set(named) == set(doctor.DYING["torch"])


def test_what_dies_on_a_pi_is_not_installed_on_64_bit_arm_and_is_not_pinned(pyproject):
    """torch stays free elsewhere, where nothing is wrong with these versions."""
    for package, versions in doctor.DYING.items():
        asked = {machine: [one.specifier for one in wanted(pyproject, *pyproject["optional-dependencies"])
                           if one.name == package
                           and (one.marker is None or one.marker.evaluate({"platform_machine": machine}))]
                 for machine in ("aarch64", "x86_64")}
        for version in versions:
            assert not all(version in one for one in asked["aarch64"])
            assert all(version in one for one in asked["x86_64"]) == (package == "torch")
            assert version not in pins()[package].specifier


# What pip found for a device on Linux aarch64: `pip download --no-deps --only-binary=:all: --python-version 3.13
# --platform manylinux_2_28_aarch64`, also with manylinux_2_17, and for 3.11, 3.12 and 3.14. {cp} is cp311 to cp314.
WHEELS = {
    "numpy": "numpy-2.4.6-{cp}-{cp}-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl",
    "pillow": "pillow-13.0.0-{cp}-{cp}-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl",
    "psutil": "psutil-7.2.2-cp36-abi3-manylinux2014_aarch64.manylinux_2_17_aarch64.manylinux_2_28_aarch64.whl",
    "onnxruntime": "onnxruntime-1.32.0-{cp}-{cp}-manylinux_2_28_aarch64.whl",
    "threadpoolctl": "threadpoolctl-3.8.0-py3-none-any.whl",
    "flatbuffers": "flatbuffers-25.12.19-py2.py3-none-any.whl",
    "protobuf": "protobuf-7.36.2-cp310-abi3-manylinux2014_aarch64.whl",
    "packaging": "packaging-26.3-py3-none-any.whl"}


@pytest.mark.parametrize("minor", [11, 12, 13, 14])
def test_what_a_device_installs_has_a_wheel_for_it(pyproject, minor):
    """Whoever moves a pin asks pip anew, on all four Pythons, and changes the name here. glibc 2.28 is older than any
    64-bit Raspberry Pi OS that brings Python 3.11.
    """
    device = {"numpy", "pillow", "psutil", "onnxruntime", "threadpoolctl"}
    assert device == {one.name for one in wanted(pyproject, "device")} and device <= set(WHEELS)
    platforms = [f"manylinux_2_{glibc}_aarch64" for glibc in range(28, 16, -1)] + ["manylinux2014_aarch64"]
    fits = {*cpython_tags((3, minor), platforms=platforms), *compatible_tags((3, minor), platforms=platforms)}
    for package, file in WHEELS.items():
        name, version, _, tags = parse_wheel_filename(file.format(cp=f"cp3{minor}"))
        assert name == package and version in pins()[package].specifier and tags & fits, file


def test_a_device_gets_five_packages_and_the_others_get_all(pyproject):
    assert {one.name for one in wanted(pyproject, "device")} == {
        "numpy", "pillow", "psutil", "onnxruntime", "threadpoolctl"}
    extras = pyproject["optional-dependencies"]
    assert "thesis-lib[device]" in extras["full"] and "thesis-lib[full]" in extras["dev"]
    assert '-e ".[docs,cluster,dev]"' in (ROOT / "Makefile").read_text()


def test_environment_has_the_pins_and_says_what_needs_each(pyproject):
    text = (ROOT / "environment.yml").read_text()
    environment = yaml.safe_load(text)
    (listed,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    names = {Requirement(line).name.lower() for line in listed if not line.startswith("-")}
    assert names >= {one.name.lower() for one in wanted(pyproject, "device", "full", "dev")}
    if sys.version_info[:2] == (3, 11):
        for line in listed[:-1]:
            assert Requirement(line).specifier == pins()[Requirement(line).name.lower()].specifier, line
    lines = [line for line in text.splitlines() if re.match(r" +- [\w.-]+[=<>]", line) and "python" not in line]
    assert len(lines) == len([line for line in listed if not line.startswith("-")])
    for line in lines:
        assert re.search(r"  # \S", line), f"{line.strip()} does not say which notebook needs it"


@pytest.mark.parametrize(("own", "expected"), [
    ({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)])
def test_threads_soon_stop_turning_idly(own, expected):
    """Set before torch is there to read it, unless the user has chosen."""
    code = "import os, sys, thesis_lib; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT",
                                                                                     "OMP_WAIT_POLICY")}
    shown = subprocess.run([sys.executable, "-c", code], env=environment | own, capture_output=True, text=True)
    assert shown.stdout == f"{expected} False\n", shown.stderr


def test_make_prints_its_targets():
    shown = subprocess.run(["make", "-s", "-C", str(ROOT)], capture_output=True, text=True).stdout
    for target in ("quick", "run", "test", "lab", "bench", "render", "docs", "check"):
        assert re.search(rf"^{target}\s+\w", shown, re.M), shown


# Page -> commands that it must hold: all of these are tried, and a page that lost its commands is noticed.
PAGES = {"README.md": ("evaluate", "export", "measure", "detect", "make quick", "make run"),
         "CONTRIBUTING.md": ("measure", "make check"), "data/README.md": ("data demo", "make run"),
         "outputs/README.md": ("measure", "make render"),
         "thesis_lib/weights/README.md": ("python -m pretraining.pdn",),
         "docs/guides/cluster.md": ("run", "make install"),
         "docs/guides/device.md": ("evaluate", "export", "doctor", "measure", "detect"),
         "docs/guides/library.md": ("evaluate",),
         "docs/guides/measurements.md": ("python -m benchmarks.bench_picture",),
         "docs/guides/notebooks.md": ("run", "make docs"),
         "docs/guides/pictures.md": ("evaluate", "data verify"),
         "docs/guides/troubleshooting.md": ("run", "doctor", "make lab")}


def commands_of(text):
    """(lines of blocks, pieces between backticks) that begin with thesis, make or python -m."""
    fenced = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.M | re.S)
    lines = [line.strip() for line in re.findall(r"^ {4}\S.*", text, re.M) + "\n".join(fenced).splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    wanted = re.compile(r"(thesis|make|python -m) [a-z]")
    return [line.partition("#")[0].strip() for line in lines if wanted.match(line)], [
        one for one in inline if wanted.match(one)]


def check_command(line, whole):
    """Fails for a command that there is not; one that is only mentioned need not be whole."""
    tool, *words = line.replace("METHOD", "patchcore").split()
    if tool == "make":
        assert words[0] in re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M), line
    elif tool == "python":
        assert importlib.util.find_spec(words[1]), line
    elif whole:
        parser().parse_args(words)
    else:
        command, taken = parser(), 0
        for word in words:                              # down to the command that is meant
            (below,) = [action.choices for action in command._actions if isinstance(action, argparse._SubParsersAction)
                        ] or [{}]
            if word not in below:
                break
            command, taken = below[word], taken + 1
        options = {option for action in command._actions for option in action.option_strings}
        assert taken and {word for word in words if word.startswith("-")} <= options, line


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_a_page_names_are_there(page):
    """In blocks they can be typed as they stand."""
    lines, mentioned = commands_of((ROOT / page).read_text(encoding="utf-8"))
    for wanted in PAGES[page]:
        begin = wanted if " " in wanted and not wanted.startswith("data") else f"thesis {wanted}"
        assert any(one.startswith(begin) for one in lines + mentioned), f"{page} no longer names {wanted}"
    for line in lines:
        check_command(line, whole=True)
    for one in mentioned:
        check_command(one, whole=False)


def test_every_text_with_a_command_is_among_them():
    texts = {file.relative_to(ROOT).as_posix() for folder in ("docs", "data", "outputs", "thesis_lib", ".")
             for file in (ROOT / folder).glob("*.md" if folder in (".", "data", "outputs") else "**/*.md")}
    assert set(PAGES) <= texts
    for name in texts - set(PAGES) - {"CHANGELOG.md"}:          # what it tells of may be gone
        assert not any(commands_of((ROOT / name).read_text(encoding="utf-8"))), f"commands of {name} are not tried"


@pytest.mark.parametrize(("line", "whole"), [
    ("thesis evalute patchcore --data x --category y", True), ("thesis evaluate patchcore --data", True),
    ("thesis run --onyl 07", True), ("thesis run --onyl 07", False), ("thesis measur", False), ("make rendr", True),
    ("thesis time METHOD --bank", False), ("python -m benchmarks.bench_nothing", True)])
def test_a_command_that_is_not_there_is_noticed(line, whole):
    if line.startswith("thesis time METHOD"):
        check_command(line, whole)                      # this one is there
        line = line.replace("--bank", "--bnk")
    with pytest.raises((AssertionError, SystemExit)):
        check_command(line, whole)


def test_readme_python_runs(demo_data, monkeypatch, capsys):
    """The snippet with the demo set in place of one's own, random weights in place of a download."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    code = code.replace('scan("myset", "part")', f'scan({str(demo_data)!r}, "weave").subset(4, 4)')
    code = code.replace('"imagenet"', '"random"').replace("bank=1000", "bank=50")
    ast.parse(code)
    exec(compile(code, "README.md", "exec"), {})        # our own text, not input
    assert re.search(r"tensor\(\[\d", capsys.readouterr().out)


def test_nothing_here_names_a_machine():
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = listed.stdout.splitlines()
    assert "README.md" in names and len(names) > 200
    for name in names:
        text = Path(ROOT, name).read_bytes()
        assert not re.search(rb"/(work|root|home/\w+)/(main|shared|\.cache|\.pyenv)", text), name
