"""How long a profile would take that was never run, from the times of one that was.

The time of a notebook is a start that every notebook pays, trainings, and the rest. The rest is taken to grow as the
multiply-accumulates behind its result rows: of the network, of choosing the bank, of the search, of a pixel stage. They
are counted for the rows as they are and for the same rows with the parameters and pictures of the other profile.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache

import numpy as np
import pandas as pd
import torch

from thesis_lib import backbones, coreset, devices, embedding, paths, results
from thesis_lib.methods import METHODS
from thesis_lib.plan import Task, read_json

LENGTHS = ("steps", "epochs", "passes")         # parameters that the steps of a training are proportional to
TIMED = 1 + 3 + 5                               # passes over a timed picture: first call, warm-ups, repetitions


def mvtec() -> dict[str, tuple[int, int]]:
    """category -> training and test pictures of MVTec AD (Table 2.1)."""
    table = pd.read_csv(paths.reference("thesis_table_2_1.csv")).set_index("category_en").iloc[:-1]
    train, good, bad = (table[name].astype(int) for name in ("n_train", "n_test_nominal", "n_test_anomalous"))
    return dict(zip(table.index, zip(train, good + bad, strict=True), strict=True))


def estimate(wanted: Sequence[Task], measured: Sequence[Task], pictures: Mapping[str, tuple[int, int]]) -> pd.DataFrame:
    """One line per task of `wanted`, by the last executions of `measured` (both of `batch.plan`), in hours there.

    pictures: category -> training and test pictures of the data of `wanted`.
    hours, and of these `training`; nothing where the notebook was not executed. `evaluated` comes on top if the
    networks that were only timed, for want of weights, are evaluated, too. `found`: share of the rows that it read
    instead of measuring, so that their work is not in its time.
    """
    records = {task.notebook.stem: record for task in measured
               if (record := read_json(task.record) or {}).get("state") == "done"}
    start = min((record["seconds"] for record in records.values()), default=0.0)
    rows = {stem: sorted((row for row in results.rows(record["rows"]) if row["kind"] in ("auroc", "time")),
                         key=lambda row: row["kind"])       # auroc before time
            for stem, record in records.items()}
    here = {row["category"]: (row["n_train"], row["n_test_good"] + row["n_test_defective"])
            for several in rows.values() for row in several if row["kind"] == "auroc"}
    lines, built = {}, {}               # tasks that differ in their category alone share their detectors

    def detectors(stem: str, parameters: dict) -> list:
        key = stem, json.dumps(parameters | {"category": ""}, sort_keys=True)
        if key not in built:
            built[key] = [_detector(row["method"], _as(row, parameters, records[stem]["parameters"]))
                          for row in rows[stem]]
        return built[key]

    for task in wanted:
        if (stem := task.notebook.stem) in records:
            given = records[stem]["parameters"]
            every = list(zip(rows[stem], detectors(stem, task.effective), detectors(stem, given), strict=True))
            lines[task.name] = _hours(task.effective, records[stem], every, start, here, pictures)
    columns = ["hours", "training", "evaluated", "found"]
    return pd.DataFrame.from_dict(lines, orient="index", columns=columns).reindex([task.name for task in wanted])


def makespan(hours: Sequence[float], workers: int) -> float:
    """Hours until so many workers have done all tasks, a free one taking the longest that is left."""
    busy = [0.0] * workers
    for one in sorted(hours, reverse=True):
        busy[busy.index(min(busy))] += one
    return max(busy)


def workers(hours: Sequence[float], limit: float = 1.0) -> int | None:
    """Fewest workers that do all tasks within `limit` hours; None where a single task takes longer."""
    if max(hours, default=0.0) > limit:
        return None
    return next(count for count in range(1, len(hours) + 2) if makespan(hours, count) <= limit)


def _hours(wanted: dict, record: dict, every: list[tuple], start: float, here, there) -> dict:
    """every: (row, detector and side as wanted, as they were)."""
    rows = [row for row, *_ in every]
    given, rest = record["parameters"], record["seconds"] - start
    began = pd.Timestamp(record["finished"]) - pd.Timedelta(seconds=record["seconds"] + 1)
    if not rows or "category" not in given:         # measures nothing, or collects what others did: as its pictures
        many = [sum(_limited(counts.get(parameters.get("category"), (1, 0)), parameters))
                for counts, parameters in ((there, wanted), (here, given))]
        return {"hours": (start + rest * many[0] / many[1]) / 3600, "training": 0.0, "evaluated": 0.0, "found": 0.0}
    trained = sum(_trained(row) for row in rows)
    if trained < rest:          # else they were taken up from their checkpoints
        rest -= trained
    seeds = wanted.get("seeds", 1) / given.get("seeds", 1)
    places = (len(there) - 1) / max(1, len({row["category"] for row in rows}) - 1)
    repeated = {row["configuration"] for row in rows if row["kind"] == "auroc" and row["seed"]}
    scored, before, after, later, training = set(), Work(), Work(), Work(), 0.0
    for row, as_wanted, as_given in every:
        main = row["category"] == given["category"]
        sizes = [there[wanted["category"]]] if main else [counts for name, counts in there.items()
                                                           if name != wanted["category"]]
        train, test = _limited([sum(counts) / len(sizes) for counts in zip(*sizes, strict=True)], wanted)
        if row["kind"] == "auroc":
            scored.add(row["configuration"])
            again = seeds if row["configuration"] in repeated else 1.0      # else its first seed says all
            before.evaluation(row, as_given, row["n_train"], row["n_test_good"] + row["n_test_defective"])
            after.evaluation(row, as_wanted, train, test, 1.0 if main else places, again)
            training += _trained(row) * again * _longer(row, _as(row, wanted, given), train) * (1.0 if main else places)
        else:
            before.timing(row, as_given, row["protocol"]["pictures"])
            after.timing(row, as_wanted, wanted.get("timing_pictures", row["protocol"]["pictures"]))
            if row["configuration"] not in scored and row["weights"]["source"] == "random":
                later.evaluation(row, as_wanted, train, test, 1.0, wanted.get("seeds", 1))
    per_mac = rest / before.total / 3600
    return {"hours": start / 3600 + per_mac * after.total + training / 3600, "training": training / 3600,
            "evaluated": per_mac * later.total,
            "found": sum(pd.Timestamp(row["finished"]) < began for row in rows) / len(rows)}


class Work:
    """Multiply-accumulates of rows; pictures go through a network once, however many rows need its maps."""

    def __init__(self):
        self.networks, self.others = {}, 0.0

    @property
    def total(self) -> float:
        return sum(self.networks.values()) + self.others

    def evaluation(self, row, built, train, test, places=1.0, seeds=1.0) -> None:
        detector, side = built
        key = detector.network_by, row["category"]
        passes = places * (train + test) * _network(detector.backbone, detector.levels, side)
        self.networks[key] = max(self.networks.get(key, 0.0), passes)
        self.others += places * seeds * (_fit(detector, side, train)
                                         + test * _search(detector, side, train, row["pixel_auroc"] is not None
                                                          if "pixel_auroc" in row else False))

    def timing(self, row, built, pictures) -> None:
        detector, side = built
        one = _network(detector.backbone, detector.levels, side) + _search(detector, side, 100, False)
        self.others += TIMED * pictures * row["protocol"]["batch_size"] * one


@cache
def _network(backbone: str, levels: tuple[int, ...], side: int) -> int:
    return devices.cut(backbone, levels, side).macs


@cache
def _grid(backbone: str, layers: tuple[int, ...], embed: str, side: int) -> tuple[int, int]:
    """Positions and length of the patch vectors of one picture."""
    channels, strides = backbones.shapes(backbone, layers)
    maps = {level: torch.empty(1, channels[level], side // strides[level], side // strides[level], device="meta")
            for level in layers}
    return tuple(embedding.parse(embed, "interpolate")(maps).vectors.shape[1:])


def _patches(detector, side: int) -> tuple[int, int]:
    return _grid(detector.backbone, detector.layers, detector.embedding, side)


def _fit(detector, side: int, train: float) -> float:
    if detector.name == "patchcore":
        positions, length = _patches(detector, side)
        rows = _bank(detector, positions, train)
        return rows * positions * train * min(length, detector.projection or length) * (rows < positions * train)
    if detector.name == "padim":
        positions, length = _patches(detector, side)
        kept = min(length, detector.channels or length)
        return positions * (train * kept**2 + kept**3)
    return 0.0


def _search(detector, side: int, train: float, pixels: bool) -> float:
    """Of one test picture; pixels: with a map where the score does not need one."""
    if detector.name not in ("patchcore", "padim", "spade"):
        return 0.0
    positions, length = _patches(detector, side)
    if detector.name == "patchcore":
        return positions * length * _bank(detector, positions, train)
    if detector.name == "padim":
        return positions * min(length, detector.channels or length)**2
    return pixels * min(detector.k, train) * positions**2 * length


def _bank(detector, positions: int, train: float) -> float:
    return min(coreset.size(detector.bank, 10**9) * (positions * train / 1e9 if "%" in str(detector.bank) else 1),
               positions * train)


def _detector(method: str, parameters: Mapping):
    kind = METHODS[method]
    known = {field.name for field in fields(kind)}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in parameters.items()
                   if name in known}), parameters["crop"] or parameters["image_size"]


def _as(row: dict, wanted: Mapping, given: Mapping) -> dict:
    """Parameters of a row with those of its notebook changed; what the notebook varies itself stays."""
    own = row["parameters"] | row["preprocess"]
    if "dim" in wanted and own.get("embedding") == f"original_d{given['dim']}":
        own["embedding"] = f"original_d{wanted['dim']}"
    changed = {name: wanted[name] for name in own.keys() & wanted.keys() if wanted[name] != given[name]
               and (not given[name] or own[name] == given[name])}                   # 0: it chose a value by itself
    return own | changed


def _limited(counts: Sequence[float], parameters: Mapping) -> tuple[float, float]:
    limits = parameters.get("train_pictures", 0), parameters.get("test_pictures", 0)
    return tuple(min(count, limit or count) for count, limit in zip(counts, limits, strict=True))


def _trained(row: dict) -> float:
    """Seconds of a training; of what it learns from, too, where that was trained in steps of its own."""
    if "training" not in row:
        return 0.0
    return row["fit_s"] if "teacher_steps" in row["parameters"] else row["training"]["seconds"]


def _longer(row: dict, wanted: Mapping, train: float) -> float:
    """Times as long a training takes with the parameters `wanted`, by its steps and the size of one."""
    if "training" not in row:
        return 1.0
    own = row["parameters"] | row["preprocess"]
    (detector, side), (before, side_before) = _detector(row["method"], wanted), _detector(row["method"], own)
    if "teacher_steps" in own:
        steps = wanted["teacher_steps"] / own["teacher_steps"]
    else:
        steps = float(np.prod([wanted[name] / own[name] for name in LENGTHS if name in own]))
        steps *= train / row["n_train"] if "epochs" in own else 1.0
    if detector.name == "simplenet":
        return steps * np.prod(_patches(detector, side)) / np.prod(_patches(before, side_before))
    return steps * (side / side_before)**2
