"""The benchmark's other side is right, it measures what it says, and refuses to compare different answers."""

import numpy as np
import pytest
import torch
from test_coreset import clustered, farthest_first

from benchmarks import bench_coreset
from thesis_lib import coreset, results


def test_plain_loop_is_farthest_first():
    features = clustered(400, 16, 0)
    tensor = torch.from_numpy(features).double()
    assert bench_coreset.plain_loop(tensor, tensor.square().sum(dim=1), 100, 5) == farthest_first(features, 100, 5)


def test_other_rows_than_the_plain_loop_stop_it(monkeypatch):
    monkeypatch.setattr(coreset, "select", lambda features, rows: np.arange(rows))
    with pytest.raises(SystemExit, match="not the rows of the plain loop"):
        bench_coreset.compare(clustered(100, 4, 0), 20, 5, 1, 1)


def test_more_rows_are_the_same_with_noise():
    features = clustered(50, 4, 0)
    larger = bench_coreset.resized(features, 120, np.random.default_rng(0))
    assert (larger[:50] == features).all()
    assert 0 < np.abs(larger[50:100] - features).max() < 5 * bench_coreset.NOISE * features.std(axis=0).max()
    assert (bench_coreset.resized(features, 2, np.random.default_rng(0)) == features[[0, -1]]).all()


def test_table_is_printed_and_stored(make_category, capsys):
    bench_coreset.main(["--data", str(make_category()), "--category", "pad", "--weights", "random",
                        "--sizes", "90,5000", "--picks", "40", "--plain-picks", "5", "--rounds", "2"])
    rows = results.load_all()
    (row,) = rows[rows["kind"] == "benchmark"].to_dict("records")
    lines = {(line["rows"], line["side"]): line for line in row["lines"]}
    assert set(lines) == {(n, side) for n in (90, 5000) for side in ("thesis_lib", "plain loop", "reading once")}
    assert all(len(line["raw_ms"]) == 2 and line["ms_min"] > 0 for line in row["lines"])
    assert lines[90, "thesis_lib"]["same_rows"] == "40 of 40"
    assert "plain loop" in capsys.readouterr().out
