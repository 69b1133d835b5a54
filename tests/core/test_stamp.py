"""The stamp of a result: complete, and silent where a machine lacks something."""

import json
import os
import subprocess

import psutil
import pytest
import torch

from thesis_lib.core import identity, paths, stamp


def test_stamp_says_with_what():
    facts = stamp.stamp()
    assert facts["versions"]["torch"] == identity.version_of("torch")
    assert torch.__version__.startswith(identity.version_of("torch")), "which may add the build: +cpu, +cu130"
    assert facts["library"].endswith(f"+{stamp.library_hash()}")
    assert facts["threads"]["torch"] == torch.get_num_threads()
    assert facts["memory_gb"] == pytest.approx(psutil.virtual_memory().total / 1e9, abs=0.1)
    assert json.loads(json.dumps(facts)) == facts


def test_processors_are_those_that_the_process_may_use(monkeypatch):
    """A job on a cluster has a share of its machine; where no system says so, all count."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 9}, raising=False)
    assert stamp.stamp()["cpus_usable"] == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert stamp.stamp()["cpus_usable"] == 64


def test_unknown_package_has_no_version():
    assert identity.version_of("no-such-package-at-all") is None


@pytest.mark.parametrize("change", ["edit", "rename", "add"])
def test_library_hash_follows_the_sources(tmp_path, monkeypatch, change):
    monkeypatch.setattr(paths, "PACKAGE", tmp_path)
    (tmp_path / "methods").mkdir()
    module = tmp_path / "methods" / "one.py"
    module.write_text("a = 1\n")
    before = stamp.library_hash.__wrapped__()
    if change == "edit":
        module.write_text("a = 2\n")
    elif change == "rename":
        module.rename(tmp_path / "one.py")
    else:
        (tmp_path / "two.py").write_text("")
    assert stamp.library_hash.__wrapped__() != before


def test_commit_and_whether_it_was_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    assert stamp._commit() is None
    file = tmp_path / "file"
    file.write_text("1")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "one"]):
        subprocess.run(git + command, check=True)
    commit = stamp._commit()
    assert len(commit) == 12
    file.write_text("2")
    assert stamp._commit() == commit + "-dirty"


@pytest.mark.parametrize(("answers", "fact", "value"), [
    ({"/sys/class/thermal/thermal_zone0/temp": "48312"}, "temperature_c", 48.312),
    ({"/sys/class/thermal/thermal_zone0/temp": "no sensor"}, "temperature_c", None),
    ({}, "temperature_c", None),
    ({"/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand"}, "governor", "ondemand"),
    ({"/proc/cpuinfo": "processor\t: 0\nModel\t: Raspberry Pi 4"}, "cpu", "Raspberry Pi 4"),
    ({"/proc/cpuinfo": "model name : Fast One\nmodel name : Other"}, "cpu", "Fast One")])
def test_facts_read_from_files(monkeypatch, answers, fact, value):
    monkeypatch.setattr(stamp, "_read", answers.get)
    assert stamp.stamp()[fact] == value


def test_show_leaves_out_what_is_unknown(monkeypatch, capsys):
    monkeypatch.setattr(stamp, "_read", lambda file: None)
    monkeypatch.setattr(stamp, "_commit", lambda: None)
    stamp.show()
    printed = capsys.readouterr().out
    assert f"torch {identity.version_of('torch')}" in printed
    assert "None" not in printed
    assert "commit" not in printed
    assert "temperature" not in printed
