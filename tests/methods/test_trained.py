"""A training that is killed and started again by the same command ends with the row of one that was not."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

# One line for every trained method: options that make it last some seconds and no longer.
COMMANDS = {
    "efficientad": ["--weights=random", "--steps=60", "--penalty=procedural", "--snapshots=2"],
    "simplenet": ["--weights=random", "--layers=1", "--hidden=64", "--epochs=60", "--passes=2", "--snapshots=2"],
    "uninformed_students": ["--weights=random", "--layers=1", "--patch-sizes=33", "--channels=4", "--source=nominal",
                            "--teacher-steps=20", "--teacher-batch=16", "--epochs=20", "--snapshots=2"],
}
TIMES = {"fit_s", "peak_memory_gb", "finished", "stamp"}


@pytest.mark.parametrize("method", COMMANDS)
def test_killed_and_started_again_ends_with_the_same_row(method, make_category, tmp_path):
    root = make_category(train=4, good=3, bad=3)

    def start(outputs):
        command = [sys.executable, "-m", "thesis_lib.commands.main", "evaluate", method, "--data", str(root), "--category", "pad",
                   "--image-size=64", "--seeds=1", "--threads=1", "--checkpoint-s=0", *COMMANDS[method]]
        return subprocess.Popen(command, env=os.environ | {"THESIS_OUTPUTS": str(tmp_path / outputs)},
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def row(outputs):
        (file,) = (tmp_path / outputs / "results").glob("auroc-*.json")
        found = json.loads(file.read_text())
        found["training"].pop("seconds")
        return {key: value for key, value in found.items() if key not in TIMES}

    whole = start("whole")
    killed = start("parts")
    checkpoints = tmp_path / "parts" / "checkpoints"
    while not list(checkpoints.glob("*.checkpoint")) and killed.poll() is None:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "it must not have ended by itself"
    assert not (tmp_path / "parts" / "results").exists()
    again = start("parts")
    errors = again.communicate()[1]
    assert again.returncode == 0 and "going on after step" in errors, errors
    assert whole.communicate() and whole.returncode == 0
    assert row("parts") == row("whole")
