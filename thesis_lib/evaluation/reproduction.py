"""Chapters 2 and 3 of the thesis on real pictures: which configurations are measured, and the measuring of them.

Categories and a folder of weights go in, rows of `evaluation.scores` come out, five memory banks of each configuration.
What is there already is not measured again, so it may be interrupted at any time. Cheap parts that say much come first.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from thesis_lib.core import files, results
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import Preprocess
from thesis_lib.data.folders import Category
from thesis_lib.evaluation import compact, scores, statements, verdicts
from thesis_lib.evaluation.configuration import Configuration
from thesis_lib.evaluation.statements import Side, id_of
from thesis_lib.methods.padim import PaDiM
from thesis_lib.methods.patchcore import PatchCore
from thesis_lib.patches import coreset
from thesis_lib.patches.transforms import ACTIVATIONS, SCALINGS

log = logging.getLogger("thesis_lib")
SEEDS = 5
# Seconds of one core per GFLOP of `work`, measured on four sets with one thread of an AMD EPYC with bf16 units. A
# greedy choice looks at few patches for most of its rows; the covariances are float64.
RATES = {"patchcore": 0.0095, "padim": 0.085, "spade": 0.0}
PICTURE = 0.003         # seconds of one core per picture and configuration: reading maps, embedding, metrics
NETWORK = 0.025         # the same where a network sees the pictures for the first time; later its maps are read
GRID = tuple(f"{kind}_k{k}_s{s}_p{p}" for kind, k, s, p in itertools.product(
    ("avg", "max", "avgmax"), (3, 5, 7, 9), (1, 2, 3), (0, 1, 2)) if p <= k // 2)
ADAPTIVE = tuple(f"adaptive_{side}" for side in (5, 7, 10, 14, 28))


@dataclass(frozen=True)
class Part:
    """`pixels`: pixel AUROC and PRO, too, where a category has masks."""

    figures: str
    sides: tuple[Side, ...]
    pixels: bool = False


class Task(NamedTuple):
    part: str
    side: Side
    category: Category
    pixels: bool


def patchcore(layers: Sequence[int] | None = (2, 3), preprocess: Preprocess | None = None, **changes: object) -> Side:
    """A bar of the thesis' figures with a ResNet-18, and what differs from it."""
    usual = {"backbone": "resnet18", "layers": layers, "embedding": "avg_k3_s1_p1", "bank": 1000, "search": "faiss"}
    return Side("patchcore", usual | changes, preprocess or Preprocess())


def usual() -> dict[str, Side]:
    """By method the configuration that others of it are held against."""
    channels = {"layers": (1, 2, 3), "embedding": "identity", "backbone": "resnet18"}
    return {"patchcore": patchcore(), "padim": Side("padim", channels | {"channels": 100}),
            "spade": Side("spade", channels | {"k": 50, "search": "faiss"})}


def parts() -> dict[str, Part]:
    """By name, in the order of measuring."""
    cropped, lanczos = Preprocess(crop=224), Preprocess(interpolation="lanczos")
    padim, spade = usual()["padim"], usual()["spade"]
    # A smaller bank is the beginning of a larger one, so that the largest comes first.
    original = [patchcore(embedding="original_d256", bank=bank) for bank in ("1%", 1000, "0.1%")]
    transforms = {name: tuple(
        patchcore(layers, backbone=backbone, tap="preactivation", activation=activation, scaling=scaling)
        for activation, scaling in itertools.product(ACTIVATIONS, SCALINGS))
        for name, backbone, layers in (("18_2", "resnet18", (2,)), ("18_23", "resnet18", (2, 3)),
                                       ("34_2", "resnet34", (2,)))}
    shown_2 = ("identity", "max_k3_s1_p1", "avg_k5_s2_p2", "avg_k3_s3_p1", "avg_k3_s1_p0", "avg_k5_s1_p1",
               "avg_k7_s1_p1", "avg_k9_s1_p1", "adaptive_7",
               *(f"avgmax_{rest}" for rest in ("k5_s1_p2", "k3_s3_p1", "k3_s1_p1", "k3_s2_p1")))
    return {
        "levels": Part("Fig. 3.4 and 3.5", tuple(
            patchcore(layers) for layers in ((2, 3), (2,), (3,), (1, 2, 3), (1, 3), (1, 2), (1,))), True),
        "padim": Part("sec. 2.7, 100 channels", (padim,), True),
        "spade": Part("sec. 2.6", tuple(
            replace(spade, parameters={**spade.parameters, "k": k}) for k in (50, 1, 5, 10))),
        "resnet34": Part("Fig. 3.7 and 3.8, without level 3", tuple(
            patchcore(layers, backbone="resnet34") for layers in ((1,), (2,), (1, 2)))),
        "pixels": Part("pixel AUROC and PRO beside published ones", (
            patchcore(), padim, patchcore(preprocess=cropped), replace(padim, preprocess=cropped)), True),
        "input": Part("crop and interpolation of the author's code", tuple(
            patchcore(layers, preprocess) for preprocess in (cropped, lanczos) for layers in ((2,), (2, 3)))),
        "pooling_level_3": Part("Fig. 3.14 to 3.19: the whole grid, ResNet-18", tuple(
            patchcore((3,), embedding=embedding) for embedding in ("identity", *ADAPTIVE, *GRID))),
        "published": Part("what published values were measured with: larger banks, the paper's embedding", (
            patchcore(bank="1%"), patchcore(embedding="original_d1024")), True),
        "original": Part("Fig. 3.2, banks up to 1 %", tuple(original)),
        "search": Part("Fig. 3.3 and the score rules", (
            patchcore(search="cdist"), patchcore(search="cdist", score="author_cdist"),
            patchcore(embedding="original_d96"),
            patchcore(embedding="original_d96", search="cdist", score="author_cdist"),
            patchcore(score="reweighted", neighbours=9), patchcore(score="reweighted", neighbours=3))),
        "int8": Part("sec. 2.5", (patchcore((2,), engine="int8"), patchcore(engine="int8"))),
        "pooling_level_2": Part("bars of Fig. 3.14, 3.16 and 3.18, ResNet-34", tuple(
            patchcore((2,), backbone="resnet34", embedding=embedding) for embedding in shown_2)),
        "transforms_18_2": Part("Fig. 3.22", transforms["18_2"]),
        "transforms_18_23": Part("Fig. 3.24", transforms["18_23"]),
        "transforms_34_2": Part("Fig. 3.23", transforms["34_2"]),
        "pdn": Part("Fig. 3.9", (patchcore(None, backbone="pdn_small", embedding="identity"),)),
        "padim_all": Part("sec. 2.7, 200 and all channels", tuple(
            replace(padim, parameters={**padim.parameters, "channels": count}) for count in (200, None))),
        "others": Part("settings of other implementations, and larger pictures", (
            replace(padim, preprocess=Preprocess(crop=224, interpolation="lanczos")),
            replace(spade, parameters={**spade.parameters, "k": 5}, preprocess=cropped),
            patchcore(preprocess=Preprocess(image_size=320)), patchcore(preprocess=cropped, bank="1%"),
            patchcore(preprocess=cropped, bank="10%", score="reweighted", neighbours=9)), True),
        "original_large": Part("Fig. 3.2, 10 % and 100 %", tuple(
            patchcore(embedding="original_d256", bank=bank) for bank in ("10%", "100%"))),
        "published_large": Part("the same, the largest of them", (
            patchcore(embedding="original_d1024", bank="1%"), patchcore(bank="10%"),
            patchcore((1, 2, 3), bank="1%")), True),
        "pooling_level_2_all": Part("Fig. 3.14 to 3.19: the whole grid, ResNet-34", tuple(
            patchcore((2,), backbone="resnet34", embedding=embedding)
            for embedding in ("identity", *ADAPTIVE, *GRID) if embedding not in shown_2)),
    }


def weights_of(folder: Path) -> Callable[[str], str]:
    """Name of a network -> its file in the folder, NETWORK_ANYTHING.safetensors; ThesisError where there is not one."""
    def file(network: str) -> str:
        found = sorted(folder.glob(f"{network}_*.safetensors"))
        if len(found) != 1:
            raise ThesisError(f"{folder}: needs one file {network}_*.safetensors, has "
                              f"{', '.join(file.name for file in found) or 'none'}")
        return str(found[0])

    return file


def tasks(categories: Iterable[Category], names: Sequence[str] = ()) -> list[Task]:
    """All configurations of these parts (all where none is named) on these categories; none of them twice."""
    known = parts()
    if unknown := set(names) - set(known):
        raise ThesisError(f"part {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    seen: dict[tuple[str, str], Task] = {}
    categories = list(categories)
    for name in names or known:
        for category, side in itertools.product(categories, known[name].sides):
            seen.setdefault((category.name, side.id), Task(name, side, category, known[name].pixels))
    return list(seen.values())


def work(task: Task, seeds: int = SEEDS) -> float:
    """GFLOP of all banks or draws of a configuration, roughly: each row of a bank against each patch, or a covariance
    and its factor at each position.
    """
    detector, train, test = task.side.detector("random"), len(task.category.train), len(task.category.test)
    if isinstance(detector, PatchCore):
        places, dim = detector.shape(task.side.preprocess.shape)
        rows = coreset.size(detector.bank, train * places)
        searched = train if rows < train * places else 0
        return (seeds if searched else 1) * 2e-9 * rows * places * dim * (searched + test)
    if isinstance(detector, PaDiM):
        places, total = detector.shape(task.side.preprocess.shape)
        d = detector.channels or total
        return (seeds if detector.seeded else 1) * 2e-9 * places * (train * d**2 + d**3 / 3 + test * d**2)
    return 0.0


def stored(task: Task, weights: Callable[[str], str], seeds: int = SEEDS) -> list[results.Row]:
    """The rows of all banks as the present code would measure them; none where one is not there yet."""
    detector = task.side.detector(weights(task.side.backbone))
    prepared = task.side.preprocess.decided(task.category.train)
    rows = []
    for seed in range(seeds if detector.seeded else 1):
        subject = scores.subject(detector, task.category, prepared, seed=seed, module=scores.__name__)
        row = results.find("auroc", subject)
        if row is None or (task.pixels and task.category.has_masks and row["pixel_auroc"] is None):
            return []
        rows.append(row)
    return rows


def split(asked: Iterable[Task], weights: Callable[[str], str]) -> tuple[list[results.Row], list[Task]]:
    """The rows of what was measured already, and the tasks that are left."""
    rows: list[results.Row] = []
    waiting = []
    for task in asked:
        found = stored(task, weights)
        rows += found
        if not found:
            waiting.append(task)
    return rows, waiting


def overview(lines: Iterable[results.Row], waiting: Sequence[Task] = (), names: Sequence[str] = ()) -> pd.DataFrame:
    """By part (all where none is named): what it stands for, its configurations on the categories of lines
    (`compact.lines`) and tasks that wait, how many of them were measured, and minutes of one core for the rest.
    """
    there = {(id_of(Configuration.from_row(line)), line["category"]) for line in lines}
    on = {category for _, category in there} | {task.category.name for task in waiting}
    table = {}
    for name in names or parts():
        part = parts()[name]
        measured = sum((side.id, category) in there for side in part.sides for category in on)
        table[name] = {"what": part.figures, "configurations": len(part.sides) * len(on), "measured": measured,
                       "minutes left": seconds(task for task in waiting if task.part == name) / 60}
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("part")


def publish(rows: Iterable[results.Row], folder: Path) -> list[Path]:
    """Lines, the scores that verdicts need, and the verdicts on the thesis' statements into a folder: the files.

    Judged is what was written, so that it can be told again from these files alone.
    """
    asked = statements.statements()
    sides = {side.id for statement in asked for pair in statement.pairs for side in (pair.one, pair.two)}
    written = compact.write(rows, folder, scores_of=sides)
    scored = compact.read(written[0])
    records = verdicts.records(verdicts.judge(asked, scored), scored)
    written.append(folder / compact.VERDICTS)
    files.write(written[-1], pd.DataFrame(records).to_csv(index=False))
    return written


def seconds(waiting: Iterable[Task]) -> float:
    """Of one core, for these: a rough guess."""
    whole, seen = 0.0, set()
    for task in waiting:
        pictures = len(task.category.train) + len(task.category.test)
        whole += RATES[task.side.method] * work(task) + PICTURE * pictures
        given = task.side.parameters
        maps = task.category.name, task.side.preprocess, task.side.backbone, given.get("tap"), given.get("engine")
        if maps not in seen:
            seen.add(maps)
            whole += NETWORK * pictures
    return whole


def reproduce(waiting: Sequence[Task], weights: Callable[[str], str], *,
              seeds: int = SEEDS) -> Iterator[tuple[Task, pd.DataFrame, float, float]]:
    """Measure one task after the other: (task, its rows, seconds of this process' processor, of the clock)."""
    for task in waiting:
        started, processor = time.perf_counter(), time.process_time()
        detector = task.side.detector(weights(task.side.backbone))
        rows = scores.evaluate(detector, task.category, task.side.preprocess, seeds=seeds, pixels=task.pixels)
        yield task, rows, time.process_time() - processor, time.perf_counter() - started
