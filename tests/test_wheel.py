"""The built wheel, as a device gets it: every room is in it, and the five packages of `.[device]` are enough."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from thesis_lib.core import paths
from thesis_lib.data import scan
from thesis_lib.device.export import export
from thesis_lib.methods.padim import PaDiM
from thesis_lib.methods.patchcore import PatchCore

ROOT = paths.root()
DEVICE = {"numpy", "pillow", "psutil", "onnxruntime", "threadpoolctl"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from what is in the checkout, by the setuptools that is installed: a test has no network."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("thesis_lib", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    built = subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
                            "--wheel-dir", str(target), str(source)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (file,) = target.glob("*.whl")
    return file


def test_every_module_and_data_file_is_in_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = {file.relative_to(ROOT).as_posix() for file in paths.PACKAGE.rglob("*") if file.is_file()
              and "__pycache__" not in file.parts}
    assert wanted <= names, wanted - names


def test_a_device_gets_no_more_than_five_packages(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        lines = archive.read(name).decode().splitlines()
    asked = [Requirement(line.removeprefix("Requires-Dist: ")) for line in lines if line.startswith("Requires-Dist: ")]
    assert {one.name for one in asked if one.marker is None or one.marker.evaluate({"extra": "device"})} == DEVICE


@pytest.fixture(scope="module")
def device(wheel, tmp_path_factory):
    """run(*arguments): the command `thesis` of the wheel where nothing else is installed than those packages and their
    needs; they are linked, not copied.
    """
    site = tmp_path_factory.mktemp("device") / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site),
                    str(wheel)], check=True, capture_output=True)
    for package in needs(DEVICE):
        for file in metadata.distribution(package).files:
            top = file.parts[0]
            if top != ".." and not (site / top).exists():
                (site / top).symlink_to(Path(metadata.distribution(package).locate_file(top)))

    def run(*arguments):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        folder = site.parent
        command = "import sys; from thesis_lib.commands.main import main; sys.exit(main())"
        return subprocess.run([sys.executable, "-S", "-c", command, *map(str, arguments)], cwd=folder, text=True,
                              capture_output=True, env=environment | {"PYTHONPATH": str(site),
                                                                      "THESIS_OUTPUTS": str(folder / "outputs"),
                                                                      "THESIS_DATA": str(folder / "data")})

    return run


def needs(packages):
    """The packages and what they require here, directly and further on."""
    found, waiting = set(), list(packages)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for line in metadata.requires(name) or ():
            one = Requirement(line)
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                waiting.append(one.name.lower())
    return found


def test_doctor_measure_and_detect_run_without_torch_and_pandas(device, make_category, small, tmp_path):
    network, category = {"weights": "random", "layers": (1,)}, scan(make_category(train=6), "pad")
    methods = {"patchcore": PatchCore(**network, bank=20), "padim": PaDiM(**network, channels=10)}
    for name, detector in methods.items():
        export(detector, category, small, tmp_path / name, false_alarms=0.2)

    looked = device("doctor")
    assert looked.returncode == 0, looked.stdout + looked.stderr
    assert "none  torch: not installed" in looked.stdout and "ok    onnxruntime" in looked.stdout

    for name in methods:
        bundle = tmp_path / name
        measured = device("measure", bundle, "--pictures", "1", "--warmup", "0", "--repeats", "1")
        assert measured.returncode == 0, measured.stderr
        assert re.search(r"ms a batch of 1 \(extraction [\d.]+, embedding [\d.]+, search [\d.]+", measured.stdout)

        pictures = sorted((bundle / "pictures").iterdir())[:2]
        detected = device("detect", bundle, *pictures)
        assert detected.returncode == 0, detected.stderr
        assert [line.split()[-1] for line in detected.stdout.splitlines()] == list(map(str, pictures))

    refused = device("evaluate", "patchcore", "--data", "demo", "--category", "weave")
    assert refused.returncode == 2
    assert refused.stderr.startswith("thesis: error: needs the package ") and "thesis-lib[full]" in refused.stderr
