"""The file that features go to, and the limit that is checked before."""

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
