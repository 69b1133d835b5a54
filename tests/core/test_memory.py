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


def test_no_limit_means_three_quarters_of_the_memory(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("M", (), {"total": 4e9}))
    assert memory.check(2.9, None, "x", "y") == 2.9
    with pytest.raises(memory.MemoryLimitError, match=r"limit is 3.00 GB"):
        memory.check(3.1, None, "x", "y")
