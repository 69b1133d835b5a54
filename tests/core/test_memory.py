"""The file that features go to, and the limit that is checked before."""

import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch

from thesis_lib.core import memory


def test_on_disk_gives_back_all_rows_in_order():
    batches = [torch.arange(24.0).reshape(2, 3, 4), -torch.arange(12.0).reshape(1, 3, 4)]
    array = memory.on_disk(iter(batches))
    assert array.shape == (3, 3, 4) and array.dtype == np.float32
    assert np.array_equal(array, torch.cat(batches).numpy())


def test_on_disk_takes_views_as_they_are_seen():
    turned = torch.arange(6.0).reshape(1, 2, 3).transpose(1, 2)
    assert np.array_equal(memory.on_disk([turned]), turned.numpy())


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others keep one peak for all of a process")


def hold(gigabytes):
    """So much is held for a moment."""
    np.ones(int(gigabytes * 1e9), dtype=np.uint8)


@linux
def test_a_peak_is_of_the_work_alone():
    """Not of what was held before; what still is held counts."""
    hold(0.5)
    kept = np.ones(100_000_000, dtype=np.uint8)
    peak, size = memory.Peak(), psutil.Process().memory_info().rss / 1e9
    assert size >= kept.nbytes / 1e9 and peak.gb == pytest.approx(size, abs=0.02)
    hold(0.3)
    assert peak.gb == pytest.approx(size + 0.3, abs=0.02)
    assert memory.Peak().gb == pytest.approx(size, abs=0.02)


@linux
def test_a_peak_within_another_takes_nothing_from_it():
    outer, size = memory.Peak(), psutil.Process().memory_info().rss / 1e9
    hold(0.4)
    inner = memory.Peak()
    hold(0.2)
    assert (outer.gb, inner.gb) == pytest.approx((size + 0.4, size + 0.2), abs=0.02)


FORGETFUL = """
import os, subprocess, sys
from pathlib import Path
from thesis_lib.core import memory
child = "from thesis_lib.core import memory; held = bytearray(b'1') * 400_000_000; del held; memory.Peak()"
subprocess.run([sys.executable, "-c", child], check=True, env=os.environ | {"THESIS_PEAKS": sys.argv[1]})
print(memory.largest_child_gb(Path("no such file")), memory.largest_child_gb(Path(sys.argv[1])))
"""


@linux
def test_the_largest_child_counts_what_it_has_forgotten(tmp_path):
    done = subprocess.run([sys.executable, "-c", FORGETFUL, str(tmp_path / "peaks")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    system, largest = map(float, done.stdout.split())
    assert 0.02 < system < 0.3 < 0.4 < largest < 0.6


@pytest.mark.parametrize("lacking", ["FORGET", "STATUS"])
def test_where_the_system_tells_no_peak_there_is_none(monkeypatch, tmp_path, lacking):
    """No history in its place: macOS has neither file, a sandbox may lack a line."""
    monkeypatch.setattr(memory, lacking, tmp_path / "gone" / "file")
    assert memory.Peak().gb is None
    (tmp_path / "status").write_text("VmRSS:\t 5 kB\n")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert memory.Peak().gb is None


def test_on_disk_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no pictures"):
        memory.on_disk([])


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """machine(total, lines, {file: content}): memory in bytes, lines of /proc/self/cgroup, limits below its folder."""
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    own = tmp_path / "cgroup"
    monkeypatch.setattr(memory._group_limits, "__defaults__", (own,))

    def make(total, lines=None, limits=()):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: type("M", (), {"total": int(total)}))
        if lines is not None:
            own.write_text(lines)
        for file, content in dict(limits).items():
            (tmp_path / "groups" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "groups" / file).write_text(content)

    return make


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems free the pages when they like")
def test_release_frees_what_was_read_and_loses_nothing():
    """8 MB are read, changed and let go of; the process shrinks, the numbers stay."""
    array = memory.on_disk([torch.ones(2_000_000)])
    array[:10] = 5
    total, before = float(array.sum()), psutil.Process().memory_info().rss
    memory.release(array)
    assert psutil.Process().memory_info().rss <= before - 4e6
    assert float(array.sum()) == total == 2_000_040


def test_release_leaves_other_arrays_alone():
    array = np.ones(3)
    memory.release(array)
    assert array.sum() == 3


def test_check_names_size_limit_and_ways_out():
    assert memory.check(1.5, 2.0, "40 things", "take fewer") == 1.5
    with pytest.raises(memory.MemoryLimitError, match=r"^40 things need 2.50 GB, the limit is 2.00 GB; take fewer, or "
                                                      "raise memory_limit_gb$"):
        memory.check(2.5, 2.0, "40 things", "take fewer")


def test_no_limit_means_three_quarters_of_the_memory(machine):
    machine(4e9)
    assert memory.check(2.9, None, "x", "y") == 2.9
    with pytest.raises(memory.MemoryLimitError, match=r"limit is 3.00 GB"):
        memory.check(3.1, None, "x", "y")


UNIFIED, OLD = "0::/user.slice/job.scope/step\n", "memory.limit_in_bytes"
CGROUPS = {
    "none": (None, {}, 64e9),
    "no limit": (UNIFIED, {"user.slice/job.scope/step/memory.max": "max\n", "user.slice/memory.max": "max\n"}, 64e9),
    "no files": (UNIFIED, {}, 64e9),
    "its own": (UNIFIED, {"user.slice/job.scope/step/memory.max": "8000000000\n",
                          "user.slice/memory.max": "max\n"}, 8e9),
    "one above": (UNIFIED, {"user.slice/job.scope/step/memory.max": "max\n",
                            "user.slice/job.scope/memory.max": "8000000000\n"}, 8e9),
    "the smallest": (UNIFIED, {"user.slice/job.scope/step/memory.max": "9000000000\n",
                               "user.slice/job.scope/memory.max": "8000000000\n",
                               "user.slice/memory.max": "10000000000\n"}, 8e9),
    "in a container": ("0::/system.slice/of_the_host\n", {"memory.max": "8000000000\n"}, 8e9),
    "more than there is": (UNIFIED, {"user.slice/memory.max": "99000000000\n"}, 64e9),
    "somebody else's": (UNIFIED, {"user.slice/other.scope/memory.max": "8000000000\n"}, 64e9),
    "version 1": ("5:cpu,cpuacct:/\n4:memory:/slurm/job_7\n1:name=systemd:/init\n",
                  {f"memory/slurm/job_7/{OLD}": "8000000000\n", f"memory/slurm/{OLD}": "9223372036854771712\n",
                   f"memory/{OLD}": "9223372036854771712\n"}, 8e9),
    "version 1 with others": ("3:cpu,memory:/job\n", {f"memory/job/{OLD}": "8000000000\n"}, 8e9),
    "version 1 in a container": ("4:memory:/docker/abc\n0::/\n", {f"memory/{OLD}": "8000000000\n"}, 8e9),
    "version 1, no limit": ("4:memory:/\n", {f"memory/{OLD}": "9223372036854771712\n"}, 64e9),
    "of the processor": ("5:cpu:/job\n", {f"memory/job/{OLD}": "8000000000\n", "cpu/job/memory.max": "1\n"}, 64e9)}


@pytest.mark.parametrize(("lines", "limits", "expected"), CGROUPS.values(), ids=CGROUPS)
def test_a_control_group_may_have_less_than_the_machine(machine, lines, limits, expected):
    """A SLURM job or a container is killed at its own limit, wherever in the tree that is set."""
    machine(64e9, lines, limits)
    assert memory.usable_bytes() == expected
    limit = 0.75 * expected / 1e9
    assert memory.check(limit - 0.01, None, "x", "y") == limit - 0.01
    with pytest.raises(memory.MemoryLimitError, match=f"the limit is {limit:.2f} GB; y, or raise memory_limit_gb"):
        memory.check(limit + 0.01, None, "x", "y")
