"""The clock walks the stages in order, as often as the protocol says, and sums up to the whole."""

import sys
import time

import numpy as np
import psutil
import pytest
import torch

from thesis_lib.core import memory, timing
from thesis_lib.evaluation import stage_times
from thesis_lib.methods import Detector

STAGES = ("extraction", "embedding", "score")


class Counting(Detector):
    """Three stages that note (stage, input); with a clock each takes its seconds on it."""

    name = "counting"

    def __init__(self, clock=None, seconds=lambda stage, call: 0.0):
        self.calls, self.clock, self.seconds = [], clock, seconds

    @property
    def stages(self):
        def stage(name):
            def run(x):
                self.calls.append((name, torch.as_tensor(x).sum().item()))
                if self.clock:
                    self.clock.now += self.seconds(name, len(self.calls) - 1)
                return x + 1
            return run
        return {name: stage(name) for name in STAGES}


@pytest.fixture
def clock(monkeypatch):
    """time.perf_counter that moves only when told."""
    class Clock:
        now = 100.0

    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    return Clock


def images(*values, batch=1):
    return [torch.full((batch, 1, 1, 1), float(value)) for value in values]


@pytest.mark.parametrize(("warmup", "repeats"), [(3, 5), (0, 1), (2, 4)])
def test_passes_are_counted_exactly(warmup, repeats):
    detector = Counting()
    timed = stage_times.measure(detector, images(10, 20), warmup=warmup, repeats=repeats)
    passes = [10] * (1 + warmup + repeats) + [20] * (warmup + repeats)      # the first call is one more
    assert detector.calls == [(name, x + step) for x in passes for step, name in enumerate(STAGES)]
    assert timed.stages == STAGES
    assert timed.seconds.shape == (2, repeats, 3)


def test_defaults_are_the_thesis_protocol():
    detector = Counting()
    assert stage_times.measure(detector, images(1)).seconds.shape[1] == 5
    assert len(detector.calls) == (1 + 3 + 5) * 3


def test_seconds_belong_to_their_stage(clock):
    """Warm-ups take 100 s and must not count; repeats of picture 1 take 1, 2, 3 ms and so on."""
    def seconds(stage, call):
        if call < 3:
            return 7
        number, timed = divmod(call // 3 - 1, 5)        # two warm-ups and three repeats a picture
        if timed < 2:
            return 100
        return (STAGES.index(stage) + 1) * (number + 1) * (timed - 1) / 1000

    timed = stage_times.measure(Counting(clock, seconds), images(1, 2), warmup=2, repeats=3)
    expected = np.multiply.outer(np.multiply.outer([1, 2], [1, 2, 3]), [1, 2, 3]) / 1000
    np.testing.assert_allclose(timed.seconds, expected, atol=1e-9)
    assert timed.first_call_s == pytest.approx(21)
    assert timed.stage_ms == pytest.approx({"extraction": 3, "embedding": 6, "score": 9})
    assert timed.total_ms == pytest.approx(sum(timed.stage_ms.values())) == pytest.approx(18)


def test_real_clock_times_what_is_walked_and_no_more():
    """Within what the whole call took, however busy the machine is, and not below what its passes must take."""
    class Sleeping(Counting):
        @property
        def stages(self):
            return {"short": lambda x: time.sleep(0.005) or x, "long": lambda x: time.sleep(0.02) or x}

    start = time.perf_counter()
    timed = stage_times.measure(Sleeping(), images(1, 2), warmup=0, repeats=4)
    elapsed = time.perf_counter() - start
    assert (timed.seconds >= [0.005, 0.02]).all() and timed.first_call_s >= 0.025
    assert 9 * 0.025 <= timed.seconds.sum() + timed.first_call_s <= elapsed


@pytest.mark.parametrize(("jitter", "spread"), [(0.0, 0.0), (0.04, 0.08 / 1.08), (0.3, 0.6 / 1.6)])
def test_spread_is_the_interquartile_range_over_the_median(clock, jitter, spread):
    """Totals of 1 and 0 to 4 times the jitter in turns; over ten per cent is flagged."""
    def seconds(stage, call):
        return (1 + call // 3 % 5 * jitter) / 3

    timed = stage_times.measure(Counting(clock, seconds), images(1, 2), warmup=0, repeats=50)
    assert timed.spread == pytest.approx(spread, abs=1e-9)
    assert timed.row()["noisy"] is (spread > 0.1)


def test_row_keeps_raw_times_and_rates(clock):
    timed = stage_times.measure(Counting(clock, lambda stage, call: 0.125), images(1, 2, batch=4), repeats=2)
    row = timed.row()
    assert (row["batch_size"], row["stages"], row["total_ms"]) == (4, list(STAGES), 375)
    assert row["images_per_s"] == pytest.approx(4 / 0.375)
    assert row["raw_s"] == np.full((2, 2, 3), 0.125).tolist()
    assert row["first_call_ms"] == 375


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems keep one peak for all of a process")
def test_row_has_the_memory_of_its_own_passes():
    """A stage that holds 0.4 GB, then another detector in the same process, which holds next to nothing."""
    def row(gigabytes):
        class Holding(Counting):
            @property
            def stages(self):
                return {"all": lambda x: np.ones(int(gigabytes * 1e9), dtype=np.uint8) is None or x}

        return stage_times.measure(Holding(), images(1), warmup=0, repeats=1).row()

    large, small = row(0.4)["peak_memory_gb"], row(0.0)["peak_memory_gb"]
    size = psutil.Process().memory_info().rss / 1e9
    assert (large, small) == pytest.approx((size + 0.4, size), abs=0.03)


def test_row_without_a_peak_where_the_system_tells_none(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "FORGET", tmp_path / "gone" / "file")
    assert stage_times.measure(Counting(), images(1)).row()["peak_memory_gb"] is None


@pytest.mark.parametrize("fails", [False, True])
def test_threads_are_set_while_measuring_and_restored(fails):
    class Reading(Counting):
        @property
        def stages(self):
            def read(x):
                self.calls.append(torch.get_num_threads())
                if fails:
                    raise RuntimeError("broken on purpose")
                return x
            return {"all": read}

    torch.set_num_threads(2)
    detector = Reading()
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            stage_times.measure(detector, images(1), threads=1)
    else:
        assert stage_times.measure(detector, images(1), threads=1).threads == 1
        assert stage_times.measure(Reading(), images(1)).threads == 2
    assert set(detector.calls) == {1}
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("arguments", "message"), [
    ({"warmup": -1}, "warmup=-1"), ({"repeats": 0}, "repeats=0"), ({"images": []}, "no image")])
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        stage_times.measure(Counting(), **{"images": images(1), **arguments})


def test_interleaved_calls_everything_once_a_round_in_changing_order(clock):
    called = []

    def call(name, seconds):
        def run(x):
            called.append(name)
            clock.now += seconds if len(called) % 2 == 0 else 99.0          # the warm-up before it does not count
            return x
        return run

    calls = {"quick": call("quick", 1.0), "slow": call("slow", 3.0)}
    seconds = timing.interleaved(calls, 0, rounds=20)
    assert seconds["quick"] == pytest.approx(np.full(20, 1.0)) and seconds["slow"] == pytest.approx(np.full(20, 3.0))
    rounds = np.array(called).reshape(20, 2, 2)
    assert (rounds[:, :, 0] == rounds[:, :, 1]).all() and (np.sort(rounds[:, :, 0]) == ["quick", "slow"]).all()
    assert len({tuple(one) for one in rounds[:, :, 0]}) == 2, "one order all the time"


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"warmup": -1}])
def test_interleaved_refuses(wrong):
    with pytest.raises(ValueError, match="needs rounds >= 1 and warmup >= 0"):
        timing.interleaved({"nothing": id}, 0, **wrong)
