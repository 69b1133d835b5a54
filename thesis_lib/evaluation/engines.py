"""Engines on a Raspberry Pi: times of whole networks that others published there, and a model of each with its error.

Source: reference/pi_times.yaml, which names the source of each series. None of them was measured by this project.
"""

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import yaml

from thesis_lib.core import paths
from thesis_lib.core.errors import ThesisError
from thesis_lib.evaluation import costs
from thesis_lib.evaluation.costs import Rates, Work

FEWEST = 5              # networks that a model rests on
TOLD_APART = 0.95       # share of the pairs of networks whose ratio is within `Model.pair`

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Model:
    """Run time by one engine: rates, and how wrong they were on networks that they had not seen.

    ratios: network -> predicted / measured, by rates and unit of the others. pair: factor that the ratio of two times
    was off at most, in 95 of 100 pairs of networks that were left out together.
    """

    rates: Rates
    ratios: Mapping[str, float]
    pair: float

    def span(self, ms: float) -> tuple[float, float]:
        """From the fastest to the slowest that a network of predicted milliseconds was. Of n networks, one more lies
        in it with a chance of (n-1)/(n+1), if it is like them.
        """
        return ms / max(self.ratios.values()), ms / min(self.ratios.values())


@lru_cache(maxsize=1)
def _published() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((paths.reference() / "pi_times.yaml").read_text(encoding="utf-8"))
    return content


def published() -> pd.DataFrame:
    """One row a time: series, engine, version, precision, board, ghz, threads, source, note, network, size, ms."""
    content = _published()
    return pd.DataFrame([
        {"series": name} | {field: told for field, told in series.items() if field != "times"}
        | {"network": network, "size": content["networks"][network]["size"], "ms": float(ms)}
        for name, series in content["series"].items() for network, ms in series["times"].items()]
    ).astype({"threads": "Int64"})


def work_of(network: str) -> Work | None:
    """What a published network costs; None for one that has no definition here."""
    told = _published()["networks"][network]
    return Work(told["macs"], told["bytes"], told["grouped"], told["layers"]) if "definition" in told else None


def known(series: str) -> dict[str, tuple[Work, float]]:
    """Network -> what it costs, and its milliseconds by this series; ThesisError lists the series."""
    every = _published()["series"]
    if series not in every:
        raise ThesisError(f"series {series!r} of published times; there are {', '.join(every)}")
    works = {network: (work_of(network), float(ms)) for network, ms in every[series]["times"].items()}
    return {network: (work, ms) for network, (work, ms) in works.items() if work is not None}


@lru_cache
def model(series: str) -> Model:
    """Calibrated on all networks of the series; ThesisError where they are fewer than five."""
    times = known(series)
    if len(times) < FEWEST:
        raise ThesisError(f"series {series!r}: {len(times)} networks, a model needs {FEWEST}")
    unit = costs.best_unit(times)
    off = np.abs(np.log(costs.pairs_left_out(times, unit)))
    return Model(costs.calibrate(times, unit), costs.left_out_with_unit(times),
                 float(np.exp(np.quantile(off, TOLD_APART))))


def surely_faster(ms: Mapping[Key, float], parts: Collection[tuple[Key, Key]], factor: float) -> dict[Key, list[Key]]:
    """For each configuration those that it is surely slower than, by times of one engine.

    parts: pairs of which the first is a part of the second, which is enough. Otherwise the interval of the ratio,
    divided and multiplied by `factor`, must exclude 1.
    """
    return {slow: [fast for fast in ms if fast != slow and ((fast, slow) in parts or ms[slow] / ms[fast] > factor)]
            for slow in ms}
