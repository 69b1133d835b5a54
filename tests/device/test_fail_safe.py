"""The output of the guide: on after a fresh OK alone, and off by itself."""

import json
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "examples" / "fail_safe.py"


def line(verdict="OK", age=0.0, **other):
    when = (datetime.now(UTC) - timedelta(seconds=age)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": when, "score": 1.0, "threshold": 2.0, "verdict": verdict} | other) + "\n"


@pytest.fixture
def output(tmp_path):
    """(tell it a line, is it on?, process)"""
    for name in ("on", "off"):
        (tmp_path / name).write_text(name)
    state = tmp_path / "state"
    commands = [f"cp {tmp_path}/{name} {state}" for name in ("on", "off")]
    process = subprocess.Popen([sys.executable, "-S", PROGRAM, *commands],
                               stdin=subprocess.PIPE, text=True, bufsize=1)

    def tell(text):
        process.stdin.write(text)
        process.stdin.flush()
        time.sleep(0.2)

    def is_on():
        return state.read_text() == "on"

    while not state.exists() or not state.read_text():
        time.sleep(0.02)
    yield tell, is_on, process
    process.kill()
    process.wait()
    process.stdin.close()


def test_on_for_a_moment_after_a_fresh_ok_alone(output):
    tell, is_on, _ = output
    for text in (line("anomalous"), line("error", score=None), line(age=60), line(age=-60), line(score=float("nan")),
                 line(score=3.0), '{"verdict": "OK"}\n', "OK\n", '{"heartbeat": "x", "OK": 5}\n', "[]\n", "\n"):
        tell(text)
        assert not is_on(), text
    tell(line())
    assert is_on()
    time.sleep(0.6)
    assert not is_on()
    tell(line() + line("anomalous"))
    assert not is_on()
    tell(line())
    tell("torn {\n")
    assert not is_on()


@pytest.mark.parametrize("end", ["input", "signal"])
def test_off_at_its_end(output, end):
    tell, is_on, process = output
    tell(line())
    assert is_on()
    if end == "input":
        process.stdin.close()
    else:
        process.send_signal(signal.SIGTERM)
    process.wait(5)
    assert not is_on()
