"""What others published of the same methods on the same categories, beside what was measured here.

`reference/literature.csv` and lines of `evaluation.compact` go in, tables in per cent and points come out. A gap to a
published value is no explanation: what it is due to is looked for among the rows that change one thing.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from thesis_lib.core import paths, results
from thesis_lib.core.preprocess import Preprocess
from thesis_lib.evaluation import reproduction
from thesis_lib.evaluation.configuration import Configuration
from thesis_lib.evaluation.statements import Side, differing, id_of

GAP = 2.0               # points of image AUROC from which on an experiment is asked for
HERE = "here"           # in place of who published it
# Parts of `reproduction.parts` whose configurations are the experiments, those with the usual levels.
PARTS = ("spade", "pixels", "input", "published", "search", "int8", "others", "padim_all", "published_large")
METRICS = {"image_auroc": "image AUROC %", "pixel_auroc": "pixel AUROC %", "pro": "PRO %"}
Measured = Mapping[tuple[str, str], pd.Series]          # id of a side, category -> METRICS


def values() -> pd.DataFrame:
    """The published ones: method, network, who, setting, ours, category, METRICS in per cent, NaN where it is not told,
    and source. `ours` is what `like` reads.
    """
    table = pd.read_csv(paths.reference() / "literature.csv", keep_default_na=False,
                        na_values={f"{name}_pct": [""] for name in METRICS})
    return table.rename(columns={f"{name}_pct": title for name, title in METRICS.items()})


def like(method: str, ours: str) -> Side:
    """The usual configuration of a method with what is said otherwise, "crop=224 bank=10%".

    >>> differing(like("patchcore", "crop=224 bank=1%"), like("patchcore", ""))
    'bank 1%, crop 224'
    """
    usual = reproduction.usual()[method]
    given: dict[str, Any] = {name: int(value) if value.isdecimal() else value
                             for name, _, value in (text.partition("=") for text in ours.split())}
    prepared = {name: given.pop(name) for name in ("crop", "interpolation", "image_size") if name in given}
    return Side(method, {**usual.parameters, **given}, Preprocess(**prepared))


def measured(lines: Iterable[results.Row]) -> dict[tuple[str, str], pd.Series]:
    """Means over the banks in per cent by side and category; NaN of what was not measured."""
    found = {}
    for line in lines:
        means = {title: 100 * float(np.mean(line[name])) if line.get(name) else np.nan
                 for name, title in METRICS.items()}
        found[id_of(Configuration.from_row(line)), line["category"]] = pd.Series(means)
    return found


def beside(found: Measured) -> pd.DataFrame:
    """One line per method, network, who and setting: image AUROC in per cent for each category, and pixel AUROC and PRO
    for those where one of ours has them. First ours: the usual configuration and those set as others' are.
    """
    published = values()
    categories = list(dict.fromkeys(published["category"]))
    ours = []
    for method, usual in reproduction.usual().items():
        settings = published.loc[published["method"] == method, "ours"]
        for side in {one.id: one for one in (like(method, text) for text in ("", *settings))}.values():
            setting = differing(side, usual) or "usual here"
            ours += [{"method": method, "network": "ResNet-18", "who": HERE, "setting": setting, "category": category}
                     | _of(found, side, category).to_dict() for category in categories]
    together = pd.concat([pd.DataFrame(ours), published])
    together["method"] = pd.Categorical(together["method"], list(reproduction.usual()))
    named = ["method", "network", "who", "setting"]
    wide = together.pivot(index=named, columns="category", values=list(METRICS.values()))
    wide = wide.loc[list(dict.fromkeys(together.set_index(named).index))]
    kept = [(title, category) for title in METRICS.values() for category in categories
            if title == METRICS["image_auroc"] or wide.xs(HERE, level="who")[title, category].notna().any()]
    return wide[kept].sort_index(level="method", sort_remaining=False, kind="stable")


def experiments(found: Measured) -> pd.DataFrame:
    """Per method and what is otherwise than usual: image AUROC minus that of the usual configuration, in points, for
    each category; NaN where one of both was not measured.
    """
    categories = list(dict.fromkeys(values()["category"]))
    lines = {}
    for method, usual in reproduction.usual().items():
        for side in _experiments(method):
            lines[method, differing(side, usual)] = [
                _image(found, side, category) - _image(found, usual, category) for category in categories]
    table = pd.DataFrame.from_dict(lines, orient="index", columns=categories)
    table.index = pd.MultiIndex.from_tuples(table.index, names=["method", "otherwise"])
    return table


def gaps(found: Measured, least: float = GAP) -> pd.DataFrame:
    """Published values with our network that ours misses or exceeds by more than `least` points, one line each.

    `gap` is theirs minus the usual one here; `as theirs`: what setting it as they did closes of it, `nearest` the
    experiment after which least of the gap is left, `closes` how much it closes, `tried` how many were measured.
    NaN where nothing was measured.
    """
    tried, lines = experiments(found), []
    for value in values().query("network == 'ResNet-18'").to_dict("records"):
        method, category = str(value["method"]), str(value["category"])
        usual = _image(found, reproduction.usual()[method], category)
        gap = value[METRICS["image_auroc"]] - usual
        if not abs(gap) > least:
            continue
        change = tried.loc[method, category].dropna()
        best = (gap - change).abs().idxmin() if len(change) else ""
        lines.append({"category": category, "method": method, "who": value["who"], "setting": value["setting"],
                      "theirs": value[METRICS["image_auroc"]], "usual here": usual, "gap": gap,
                      "as theirs": _image(found, like(method, str(value["ours"])), category) - usual,
                      "nearest": best, "closes": change.get(best, np.nan), "tried": len(change)})
    return pd.DataFrame(lines)


def _experiments(method: str) -> list[Side]:
    """Configurations of PARTS with the usual network and levels of a method, but for the usual one itself."""
    usual, parts = reproduction.usual()[method], reproduction.parts()
    sides = {side.id: side for name in PARTS for side in parts[name].sides
             if side.method == method and side.id != usual.id
             and all(side.parameters[name] == usual.parameters[name] for name in ("backbone", "layers"))}
    return list(sides.values())


def _of(found: Measured, side: Side, category: str) -> pd.Series:
    return found.get((side.id, category), pd.Series(dict.fromkeys(METRICS.values(), np.nan)))


def _image(found: Measured, side: Side, category: str) -> float:
    return float(_of(found, side, category)[METRICS["image_auroc"]])
