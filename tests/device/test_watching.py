"""A watched folder: each picture gets one verdict, whatever happens to folder, disk, clock or process."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from thesis_lib.commands import main
from thesis_lib.core.errors import ThesisError
from thesis_lib.device import actions, journal, loop
from thesis_lib.device.bundle import Bundle
from thesis_lib.device.loop import Loop, Options
from thesis_lib.device.verdicts import Verdict, shown

KEYS = ["time", "picture", "score", "threshold", "verdict", "confidence", "region", "milliseconds", "bundle"]
ROOT = Path(__file__).parents[2]
WORD = (sys.executable, "-S", "-c")


class Killed(BaseException):
    """As by kill -9: nothing of the loop runs after it, but for the lock, which the system would let go of."""


class Watching:
    """A loop and all that it says; `until` runs it."""

    def __init__(self, bundle, folder, **options):
        self.told, self.beats, self.said = [], [], []
        self.loop = Loop(Bundle.open(bundle), str(folder), threads=1, options=Options(**options),
                         tell=lambda verdict: self.told.append(verdict), beat=self.beats.append, say=self.said.append)

    def until(self, enough, seconds=20.0):
        """So long, and two looks more, in which nothing else should come."""
        end, more = time.monotonic() + seconds, 2

        def stop():
            nonlocal more
            assert time.monotonic() < end, (self.told, self.said)
            more -= bool(enough())
            return more < 0

        self.loop.run(stop)
        return self

    def pictures(self, count):
        return self.until(lambda: len(self.told) >= count)

    @property
    def names(self):
        return [os.path.basename(one.picture) for one in self.told]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(loop, "POLL", 0.02)
    monkeypatch.setattr(loop, "SETTLE", 0.3)
    monkeypatch.setattr(loop, "LATER", 0.3)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def good(category):
    return category.test[0].path


@pytest.fixture
def hole(category):
    return category.test[-1].path


# ---- what is scored

def test_what_is_there_and_what_comes_is_scored_and_hidden_names_are_not(original, category, folder, good, hole):
    shutil.copy(good, folder / ".hidden.png")
    shutil.copy(good, folder / "notes.txt")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")              # which would never end
    shutil.copy(good, folder / "a.png")
    watching = Watching(original, folder)

    def one_more():
        if len(watching.told) == 1 and not (folder / "b.png").exists():
            shutil.copy(hole, folder / "b.png")
        return len(watching.told) == 2

    watching.until(one_more)
    assert [one.verdict for one in watching.told] == ["OK", "anomalous"] and watching.names == ["a.png", "b.png"]
    ok, found = (json.loads(one.json()) for one in watching.told)
    assert list(ok) == list(found) == KEYS
    assert ok["region"] is None and ok["confidence"] < 0.5 < found["confidence"]
    x, y, w, h = found["region"]                # the hole is 30 to 50, 20 to 40 of 80 x 70 pixels
    assert x <= 40 < x + w and y <= 30 < y + h and w * h < 40 * 40
    assert ok["picture"] == str(folder / "a.png") and re.fullmatch(r"20\S+T\S+Z", ok["time"])
    assert ok["score"] <= ok["threshold"] == found["threshold"] < found["score"] and ok["milliseconds"] > 0
    assert {key: value for key, value in watching.beats[0].items() if key != "heartbeat"} == {
        "OK": 0, "anomalous": 0, "error": 0, "waiting": 0}
    assert watching.said == [f"{folder}: files ending in .txt are not looked at"]


def test_a_half_written_picture_waits_and_a_damaged_one_is_an_error_after_it_has_not_changed(
        original, folder, good, tmp_path):
    Image.open(good).save(tmp_path / "x.jpg", quality=95)
    content = (tmp_path / "x.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(content[:len(content) // 2])
    (folder / "broken.png").write_bytes(b"no picture")
    start, watching = time.monotonic(), Watching(original, folder)

    def complete():
        if time.monotonic() - start > 0.15 and (folder / "half.jpg").stat().st_size < len(content):
            (folder / "half.jpg").write_bytes(content)
        return len(watching.told) == 2

    watching.until(complete)
    by_name = dict(zip(watching.names, watching.told, strict=True))
    assert by_name["half.jpg"].verdict == "OK"
    error = json.loads(by_name["broken.png"].json())
    assert list(error) == [*KEYS, "error"] and "not a readable picture" in error["error"]
    assert (error["verdict"], error["score"], error["confidence"], error["region"]) == ("error", None, None, None)
    assert watching.loop.counts == {"OK": 1, "error": 1}


def test_a_raw_picture_is_refused_in_one_line_though_pillow_opens_it(original, folder, good, capsys):
    Image.open(good).save(folder / "x.dng", format="TIFF")
    watching = Watching(original, folder).pictures(1)
    assert watching.told[0].verdict == "error" and "is a raw picture" in watching.told[0].text()
    assert main.main(["detect", str(original), str(folder / "x.dng")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"thesis: {folder}/x.dng: is a raw picture") and "--raw" in line


def test_a_picture_is_its_name_size_and_time(original, folder, good, hole):
    shutil.copy(good, folder / "a.png")
    Watching(original, folder).pictures(1)
    assert not Watching(original, folder).until(lambda: True).told          # survives a restart
    shutil.copyfile(hole, folder / "a.png")
    again = Watching(original, folder).pictures(1)
    assert again.told[0].verdict == "anomalous"
    os.utime(folder / "a.png", (1, 1))
    assert Watching(original, folder).pictures(1).names == ["a.png"]


def test_a_picture_that_is_written_over_meanwhile_is_read_again(original, folder, good, hole):
    shutil.copy(good, folder / "a.png")
    watching = Watching(original, folder)
    genuine = watching.loop.find

    def find(path):
        found = genuine(path)
        if not again:
            again.append(shutil.copyfile(hole, folder / "a.png"))
        return found

    again: list = []
    watching.loop.find = find
    watching.pictures(1)
    assert [one.verdict for one in watching.told] == ["anomalous"]


def test_times_of_files_that_make_no_sense_cost_no_picture(original, folder, good):
    for name, at in (("old.png", 0), ("now.png", 1_700_000_000), ("ahead.png", 4_000_000_000)):
        shutil.copy(good, folder / name)
        os.utime(folder / name, (at, at))
    assert Watching(original, folder).pictures(3).names == ["old.png", "now.png", "ahead.png"]


# ---- what a kill leaves

@pytest.mark.parametrize(("where", "scored", "told"), [
    ("find", 2, 1), ("scored", 2, 1), ("tell", 1, 1), ("told", 1, 2), ("finished", 1, 1)])
def test_a_kill_loses_no_picture_and_scores_none_twice(original, folder, good, monkeypatch, where, scored, told):
    """where: what was about to happen. Only a kill before the verdict is known makes the network run again."""
    shutil.copy(good, folder / "a.png")
    first = Watching(original, folder)
    lines, runs, genuine = first.told, [], first.loop.find

    def kill(*_):
        raise Killed

    def find(path):
        runs.append(path)
        found = genuine(path)
        if where == "find":
            kill()
        return found

    first.loop.find = find
    if where == "scored":
        monkeypatch.setattr(first.loop.journal, "scored", kill)
    elif where == "tell":
        first.loop.tell = kill
    elif where == "told":
        monkeypatch.setattr(first.loop.journal, "finished", kill)
    elif where == "finished":
        monkeypatch.setattr(first.loop, "_put_away", kill)
    with pytest.raises(Killed):
        first.pictures(1)
    second = Watching(original, folder)
    second.loop.find = lambda path: runs.append(path) or genuine(path)
    second.until(lambda: True)
    lines += second.told
    assert (len(runs), len(lines)) == (scored, told) and len({one.json() for one in lines}) == 1
    assert not Watching(original, folder).until(lambda: True).told


def test_a_line_that_a_kill_has_torn_is_that_of_a_picture_that_comes_again(original, folder, good):
    for name in ("a.png", "b.png"):
        shutil.copy(good, folder / name)
    Watching(original, folder).pictures(2)
    file = folder / journal.STATE / "done.jsonl"
    torn = [line for line in file.read_bytes().splitlines(True) if not (b"b.png" in line and b"verdict" in line)]
    file.write_bytes(b"".join(torn)[:-4] + b"\0\0\0")
    assert Watching(original, folder).pictures(1).names == ["b.png"]
    assert not Watching(original, folder).until(lambda: True).told


def test_a_picture_that_ends_the_process_again_and_again_becomes_an_error(original, folder, good):
    shutil.copy(good, folder / "poison.png")

    def end(_):
        raise Killed

    for _ in range(loop.TRIES):
        watching = Watching(original, folder)
        watching.loop.find = end
        with pytest.raises(Killed):
            watching.pictures(1)
    watching = Watching(original, folder)
    watching.loop.find = end
    assert "has ended this program 3 times" in (watching.pictures(1).told[0].error or "")


def test_the_journal_is_no_longer_than_the_folder(original, folder, good, monkeypatch):
    monkeypatch.setattr(journal, "SPARE", 5)
    watching = Watching(original, folder, done=os.unlink)

    def feed():
        if len(watching.told) < 12 and not list(folder.glob("*.png")):
            shutil.copy(good, folder / f"{len(watching.told)}.png")
        return len(watching.told) == 12

    watching.until(feed)
    assert len((folder / journal.STATE / "done.jsonl").read_text().splitlines()) <= 5 + 3
    assert len(watching.loop.journal.done) <= 1


# ---- what surrounds it

def test_a_second_watcher_is_refused(original, folder, tmp_path):
    first = Watching(original, folder)
    (tmp_path / "other").symlink_to(folder)
    with pytest.raises(ThesisError, match=r"other: is watched already by another process") as told:
        Watching(original, tmp_path / "other")
    assert "\n" not in str(told.value)
    first.until(lambda: True)
    Watching(original, folder).until(lambda: True)


def test_a_folder_that_vanishes_ends_it_in_one_line(original, folder, good):
    shutil.copy(good, folder / "a.png")
    watching = Watching(original, folder)
    with pytest.raises(ThesisError, match=r"in: is gone, or its .thesis is"):
        watching.until(lambda: watching.told and shutil.rmtree(folder, ignore_errors=True))
    folder.mkdir()                              # what a disk was mounted on
    Watching(original, folder).until(lambda: True)


def test_a_full_disk_stops_nothing_and_is_made_good_for(original, folder, good, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("a.png", "b.png"):
        shutil.copy(good, folder / name)
    watching = Watching(original, folder)
    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "fsync", full)
        patch.setattr(journal.os, "write", full)

        def two():
            if len(watching.told) == 2 and not (folder / "c.png").exists():
                patch.undo()
                shutil.copy(good, folder / "c.png")
            return len(watching.told) == 3

        watching.until(two)
    assert watching.names == ["a.png", "b.png", "c.png"] and len(watching.said) == 1
    assert "done.jsonl: cannot be written (the disk is full)" in watching.said[0]
    assert not Watching(original, folder).until(lambda: True).told


def test_idle_it_leaves_the_processor_alone(original, folder, good, monkeypatch):
    monkeypatch.setattr(loop, "POLL", 0.2)
    for number in range(300):
        os.link(good, folder / f"{number}.png") if number else shutil.copy(good, folder / "0.png")
    watching = Watching(original, folder)
    watching.loop.journal.knows = lambda key: True          # all are done
    start = time.monotonic()
    used = time.process_time()
    watching.until(lambda: time.monotonic() - start > 2)
    assert time.process_time() - used < 0.15                # 4 % of one of these seconds is what it takes


def test_memory_is_flat_over_1200_pictures(original, folder, good, hole):
    for number in range(1200):
        shutil.copyfile(hole if number % 10 == 0 else good, folder / f"{number:04d}.png")
    sizes, watching = [], Watching(original, folder, done=os.unlink)
    watching.loop.tell = lambda verdict: sizes.append(psutil.Process().memory_info().rss)
    watching.until(lambda: len(sizes) == 1200, seconds=60)
    assert watching.loop.counts == {"OK": 1080, "anomalous": 120} and not list(folder.glob("*.png"))
    assert max(sizes[300:]) - max(sizes[:300]) < 4e6


# ---- what is done

AWKWARD = "a b\n{score} 'c'.png"


def test_a_command_runs_without_a_shell_for_what_is_not_ok(original, folder, good, hole, tmp_path, monkeypatch):
    shutil.copy(good, folder / "fine.png")
    shutil.copy(hole, folder / AWKWARD)
    (folder / "broken.png").write_bytes(b"")
    note = "import sys, json; print(json.dumps(sys.argv[2:]), file=open(sys.argv[1], 'a'))"
    words = [*WORD, note, str(tmp_path / "log"), "{picture}", "{verdict}:{score}"]
    watching = Watching(original, folder, command=words).pictures(3)
    by_name = dict(zip(watching.names, watching.told, strict=True))
    calls = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert calls == [[str(folder / AWKWARD), f"anomalous:{by_name[AWKWARD].score!r}"],
                     [str(folder / "broken.png"), "error:nan"]]
    assert "\n" not in by_name[AWKWARD].text() and not watching.said


@pytest.mark.parametrize(("code", "told"), [
    ("raise SystemExit(3)", "ended with exit code 3"), ("import time; time.sleep(60)", "took more than 0.3 s"),
    ("import os; os.kill(os.getpid(), 15)", "ended with signal 15")])
def test_a_command_that_fails_is_a_line(original, folder, hole, monkeypatch, code, told):
    monkeypatch.setattr(actions, "LIMIT", 0.3 if "sleep" in code else 10)
    for name in ("a.png", "b.png"):
        shutil.copy(hole, folder / name)
    watching = Watching(original, folder, command=[*WORD, code]).pictures(2)
    assert len(watching.said) == 2 and all(told in line and "--command" in line for line in watching.said)


def test_keep_bounds_the_alarms(original, folder, good, hole):
    for number in range(4):
        shutil.copyfile(hole, folder / f"{number}.png")
        os.utime(folder / f"{number}.png", (100 + number, 100 + number))
    shutil.copyfile(good, folder / "good.png")
    Watching(original, folder, keep=2, done=os.unlink).pictures(5)
    assert sorted(file.name for file in (folder / "alarms").iterdir()) == ["000002_2.png", "000003_3.png"]
    picture = folder / "3.png"                  # told once more after a kill, it is kept once
    shutil.copy2(folder / "alarms" / "000003_3.png", picture)
    actions.keep(picture, 2)
    assert len(list((folder / "alarms").iterdir())) == 2
    shutil.copyfile(hole, folder / "0.png")     # the same name again
    Watching(original, folder, keep=2).pictures(1)
    assert {file.name[7:] for file in (folder / "alarms").iterdir()} == {"3.png", "0.png"}


def test_done_bounds_the_folder_and_leaves_an_error_for_a_while(original, folder, good, tmp_path):
    moved = tmp_path / "done"
    moved.mkdir()
    (moved / "a.png").touch()
    shutil.copy(good, folder / "a.png")
    (folder / "broken.png").write_bytes(b"half")
    watching = Watching(original, folder, done=actions.done_of(f"move:{moved}", str(folder))).pictures(2)
    assert (moved / "a.1.png").read_bytes() == good.read_bytes() and (moved / "a.png").stat().st_size == 0
    assert (folder / "broken.png").exists()
    start = time.monotonic()
    watching = Watching(original, folder, done=actions.done_of("delete", str(folder)))
    watching.until(lambda: not (folder / "broken.png").exists())
    assert time.monotonic() - start > loop.LATER and not watching.told


def test_a_picture_is_moved_to_another_disk_whole_or_not_at_all(folder, good, tmp_path, monkeypatch):
    def elsewhere(*_):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def full(source, target):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    picture = shutil.copy(good, folder / "a.png")
    monkeypatch.setattr(actions.os, "rename", elsewhere)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(actions.shutil, "copy2", full)
        actions.move(picture, tmp_path)
    assert picture.exists() and not list(tmp_path.glob("*.p*"))
    actions.move(picture, tmp_path)
    assert (tmp_path / "a.png").read_bytes() == good.read_bytes() and not picture.exists()


def test_a_damaged_history_of_the_light_stops_nothing(original, folder):
    Watching(original, folder).until(lambda: True)
    (folder / journal.STATE / "light.json").write_bytes(b"")
    watching = Watching(original, folder).until(lambda: True)
    assert len(watching.said) == 1 and "light.json: no history" in watching.said[0]


# ---- the command line

@pytest.mark.parametrize(("options", "told"), [
    ((), "no pictures: needs some, or --watch FOLDER"), (("x.png", "--keep", "3"), "--keep: is for --watch FOLDER"),
    (("x.png", "--watch", "{in}"), "x.png: is given beside --watch"), (("--watch", "{in}", "--maps"), "--maps: would"),
    (("--watch", "{in}", "--keep", "0"), "--keep 0: needs at least 1"),
    (("--watch", "{in}/absent"), "absent: cannot be watched (No such file or directory)"),
    (("--watch", "{in}", "--done", "keep"), "--done keep: needs delete or move:DIR"),
    (("--watch", "{in}", "--done", "move:{in}"), "is the watched folder itself"),
    (("--watch", "{in}", "--command", "no-such-program {picture}"), "no program 'no-such-program' is found"),
    (("--watch", "{in}", "--command", "cat 'x"), "No closing quotation")])
def test_what_cannot_be_is_refused_in_one_line(original, folder, capsys, options, told):
    code = main.main(["detect", str(original), *(option.replace("{in}", str(folder)) for option in options)])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and line.startswith("thesis: error: ") and told in line


def test_killed_and_started_again_without_torch_it_ends_cleanly_on_sigterm(original, folder, good, hole):
    from tests.device.test_run import WALL
    line = f"detect {original} --threads 1 --json --watch {folder}"
    command = [sys.executable, "-c", WALL, line]

    def start():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        return process, lambda: json.loads(process.stdout.readline())

    process, read = start()
    assert "heartbeat" in read()
    shutil.copy(good, folder / "a.png")
    first = read()
    assert first["verdict"] == "OK"
    process.kill()
    process.communicate()
    shutil.copy(hole, folder / "b.png")
    process, read = start()
    assert "heartbeat" in read()
    found = read()
    if found == first:                  # killed after it was told and before that was noted: told once more
        found = read()
    assert (found["picture"], found["verdict"], list(found)) == (str(folder / "b.png"), "anomalous", KEYS)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == "[0]\n" and process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_the_picture_in_hand(original, folder, good, capsys, monkeypatch, number):
    for name in ("a.png", "b.png"):
        shutil.copy(good, folder / name)
    genuine = Loop._found

    def found(self, key, path):
        os.kill(os.getpid(), number)
        return genuine(self, key, path)

    monkeypatch.setattr(Loop, "_found", found)
    before = signal.getsignal(number)
    assert main.main(["detect", str(original), "--watch", str(folder), "--json", "--threads", "1"]) == 0
    beat, line = map(json.loads, capsys.readouterr().out.splitlines())
    assert "heartbeat" in beat and line["verdict"] == "OK" and signal.getsignal(number) is before


def test_json_of_single_pictures(original, folder, good, capsys):
    assert main.main(["detect", str(original), str(good), str(folder / "absent.png"), "--json"]) == 1
    out, err = capsys.readouterr()
    ok, error = map(json.loads, out.splitlines())
    assert list(ok) == KEYS and list(error) == [*KEYS, "error"] and not err


def test_the_lines_of_the_guide_are_what_is_printed():
    text = (ROOT / "docs" / "guides" / "device.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    found, error, beat = map(json.loads, block.splitlines())
    assert list(found) == KEYS and list(error) == [*KEYS, "error"] and "heartbeat" in beat
    assert [field.name for field in fields(Verdict)] == [*KEYS, "error"]
    assert Verdict(**found).json() == json.dumps(found) == block.splitlines()[0]
    assert Verdict(**error).json() == block.splitlines()[1] and len(found["region"]) == 4


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_of_the_guide_is_one(tmp_path):
    text = (ROOT / "docs" / "guides" / "device.md").read_text(encoding="utf-8")
    (unit,) = re.findall(r"```ini\n(.*?)```", text, re.DOTALL)
    (tmp_path / "thesis-detect.service").write_text(unit)
    done = subprocess.run(["systemd-analyze", "verify", tmp_path / "thesis-detect.service"], capture_output=True,
                          text=True)
    assert (done.returncode, done.stderr) == (0, "") and "--watch in --json" in unit


def test_any_name_is_one_line_of_text():
    assert shown("a\nb\udcff\x1b.png") == "a\\nb\\udcff\\x1b.png" and shown("Würfel 1.png") == "Würfel 1.png"
    assert np.all([char.isprintable() for char in shown("".join(map(chr, range(256))))])
