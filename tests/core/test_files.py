"""Files are there whole or not at all, also when two processes write them; big ones do not go to the temp folder."""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.core.together import together
from thesis_lib.core import files, memory, paths, results

SIZE = 60_000
SUBJECT = {"method": "patchcore", "category": "pad", "seed": 0, "parameters": {}, "code": "c0de"}


def whole(content):
    """Of one writer alone, from the first to the last byte."""
    return len(content) == SIZE and len(set(content)) == 1


def write_again_and_again(number, barrier, target):
    """The first time both are in the middle of it at the same time, then as it comes."""
    content = bytes([65 + number]) * SIZE
    with files.replaced(target) as partial:
        partial.write_bytes(content)
        barrier.wait()
    for round in range(200):
        if round % 2:
            files.write(target, content if round % 4 == 1 else content.decode())
        else:
            with files.replaced(target) as partial:
                partial.write_bytes(content)
        assert whole(target.read_bytes())


def test_two_processes_may_write_the_same_file(tmp_path):
    target = tmp_path / "new" / "folder" / "file.bin"
    together(write_again_and_again, target)
    assert whole(target.read_bytes())
    assert [file.name for file in target.parent.iterdir()] == ["file.bin"]


def save_again_and_again(number, barrier):
    """Rows of two lengths: the end of a longer one below a shorter one would show."""
    results.stamp = dict        # what it asks for takes longer than all the rest
    barrier.wait()
    for round in range(100):
        count = 30_000 * (1 + number)
        row = results.save("auroc", SUBJECT, {"image_auroc": number, "scores": [number] * count, "round": round})
        assert row["image_auroc"] == number
        for _ in range(3):
            assert is_of_one(results.find("auroc", SUBJECT))


def is_of_one(row):
    return row["scores"] == [row["image_auroc"]] * 30_000 * (1 + row["image_auroc"])


def test_two_processes_may_save_the_same_row():
    """One of them wins whole, and neither fails."""
    together(save_again_and_again)
    row = results.find("auroc", SUBJECT)
    assert row["round"] == 99 and is_of_one(row)
    assert [file.name for file in paths.results().iterdir()] == [results.path_of(row).name]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_in_the_block_leaves_the_old_file(tmp_path, error):
    target = tmp_path / "file"
    files.write(target, "old")
    with pytest.raises(error, match="on purpose"), files.replaced(target) as partial:
        assert partial.parent == tmp_path and partial.name != target.name
        partial.write_text("new, but not all of")
        raise error("broken on purpose")
    assert target.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_an_error_before_there_was_a_file_leaves_none(tmp_path):
    with pytest.raises(RuntimeError, match="on purpose"), files.replaced(tmp_path / "file") as partial:
        partial.write_text("half")
        raise RuntimeError("broken on purpose")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "row.json"
    files.write(target, "old")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError("full")))
        files.write(target, "new")
    assert target.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["row.json"]


def test_text_is_written_as_utf8(tmp_path):
    files.write(tmp_path / "text", "1 µm\n")
    assert (tmp_path / "text").read_bytes() == b"1 \xc2\xb5m\n"


@pytest.fixture
def no_temp_folder(tmp_path, monkeypatch):
    """A temp folder in which nothing can be made, not even by root, and a check that it is one."""
    blocked = tmp_path / "no folder"
    blocked.touch()
    monkeypatch.setenv("TMPDIR", str(blocked))
    monkeypatch.setattr(tempfile, "tempdir", str(blocked))
    with pytest.raises(OSError):
        tempfile.TemporaryFile().close()


def test_big_files_do_not_need_the_temp_folder(no_temp_folder):
    import torch  # here, since the processes above read this module, too

    array = memory.on_disk([torch.arange(6.0).reshape(2, 3)])
    assert np.array_equal(array, [[0, 1, 2], [3, 4, 5]])
    with files.unnamed() as file:
        file.write(b"features")
        file.seek(0)
        assert file.read() == b"features"
    with files.scratch_folder() as folder:
        (Path(folder) / "page").write_text("a page")
    assert paths.scratch().is_dir() and not list(paths.scratch().iterdir()), "nothing is left"


def test_scratch_folders_lie_below_the_outputs(tmp_path, monkeypatch):
    """Also where the folder of outputs is not there yet."""
    monkeypatch.setenv("THESIS_OUTPUTS", str(tmp_path / "elsewhere"))
    with files.scratch_folder() as folder:
        assert Path(folder).is_dir() and Path(folder).is_relative_to(tmp_path / "elsewhere")
    assert not Path(folder).exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells where an open file lies")
def test_unnamed_files_lie_below_the_outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_OUTPUTS", str(tmp_path / "elsewhere"))
    with files.unnamed() as file:
        assert Path(os.readlink(f"/proc/self/fd/{file.fileno()}")).is_relative_to(tmp_path / "elsewhere")
        assert not [one for one in (tmp_path / "elsewhere").rglob("*") if not one.is_dir()], "it has no name"


def test_digests_are_those_of_the_bytes(tmp_path):
    """Of a text, of bytes and of the numbers of an array as they are seen; of a file whenever it has changed."""
    expected = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"       # sha256sum of hello
    numbers = np.frombuffer(b"hhello", dtype="u1")
    assert files.digest("hello") == files.digest(b"hello") == files.digest(numbers[1:]) == expected
    assert files.digest(np.arange(6).reshape(2, 3).T) == files.digest(np.array([[0, 3], [1, 4], [2, 5]]))
    file = tmp_path / "file"
    file.write_text("hello")
    assert files.digest_of(file) == expected
    file.write_text("hello again")
    assert files.digest_of(file) == files.digest("hello again")
