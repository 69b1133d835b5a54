"""Measured rows beside the thesis' values. AUROC in per cent, times in milliseconds, as the thesis prints them.

Rows of `core.results` go in, as `evaluation` returns them or as they lie on disk; frames for a notebook come out.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thesis_lib.core import paths, results
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import Preprocess
from thesis_lib.evaluation import compact, metrics
from thesis_lib.evaluation.bars import thesis_bars
from thesis_lib.evaluation.configuration import Configuration
from thesis_lib.evaluation.literature import HERE
from thesis_lib.evaluation.statements import Side, id_of, statements
from thesis_lib.evaluation.thesis import STAGES, bars_of
from thesis_lib.evaluation.verdicts import CONTRADICTED, HOLDS, NOT_MEASURED, OPEN, TOGETHER, judge, records
from thesis_lib.networks import weightfiles

NEEDED = "needs ImageNet weights"
NO_INTERVAL = "none: one kind has a single picture"


def all_rows() -> pd.DataFrame:
    """All rows measured here and those published with the project, one line each, nested facts as `parameters.layers`;
    `origin` is own or published. Raises ThesisError naming a file that is no row. Lines of several banks are none: see
    `published_lines`.
    """
    published = paths.published()
    files = [file for file in sorted(paths.results().rglob("*.json*")) if published not in file.parents]
    files += sorted(published.glob("*.json*"))
    rows = []
    for file in files:
        if file.suffix in (".json", ".jsonl"):
            origin = "published" if published in file.parents else "own"
            rows += [row | {"origin": origin} for row in results.read(file) if row["kind"] != compact.KIND]
    return pd.json_normalize(rows)


def device_rows() -> pd.DataFrame:
    """Rows of `thesis measure` under outputs/results/devices, one line each; empty where there is none."""
    return pd.json_normalize([row for file in sorted(paths.devices().glob("*.json*")) for row in results.read(file)])


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per configuration and category from the rows of `evaluate`, in the order they came.

    auroc is the mean over the seeds in %, low and high its 95 % bootstrap interval over the test pictures (all seeds
    resampled together), sd the spread over the seeds in percentage points. NaN where there is none; `interval` says it
    in words.
    """
    lines = []
    for (configuration, category, _), group in rows.groupby(["configuration", "category", "data"], sort=False):
        first = group.iloc[0]
        low, high = metrics.auroc_interval(first["labels"], np.array(group["scores"].tolist()))
        lines.append({
            "configuration": configuration, "category": category, "weights": first["weights.source"],
            "seeds": len(group), "auroc": 100 * group["image_auroc"].mean(), "low": 100 * low, "high": 100 * high,
            "sd": 100 * group["image_auroc"].std(ddof=1) if len(group) > 1 else np.nan,
            "pixel_auroc": _percent(group, "pixel_auroc"), "pro": _percent(group, "pro"),
            "n_train": first["n_train"], "n_test": first["n_test_good"] + first["n_test_defective"]})
    return pd.DataFrame(lines)


def published_verdicts(folder: Path | None = None) -> pd.DataFrame:
    """Records of `evaluation.verdicts` in a folder, by default those that ship with the project, one line each; where
    there are none, those of statements that were not measured.
    """
    file = (folder or paths.published()) / compact.VERDICTS
    if file.is_file():
        return pd.read_csv(file, dtype={"section": str}, keep_default_na=False, na_values={
            name: [""] for name in ("thesis", "points", "low", "high", "p")})
    return pd.DataFrame(records(judge(statements(), {}), {}))


def verdicts(found: pd.DataFrame) -> pd.DataFrame:
    """One line per pair of each statement, of records: the thesis' difference in points of AUROC and, on each set and
    on all together, ours with its corrected interval; the verdict is that of the whole statement, on these sets.
    """
    same = ["section", "text", "kind", "pair", "thesis", "verdict"]
    sets = [*sorted(set(found["on"]) - {"", TOGETHER}), TOGETHER]
    lines = []
    for (statement, pair), each in found.groupby(["statement", "pair"], sort=False):
        line = {"statement": statement} | each.iloc[0][same].to_dict() | {"pair": pair} | dict.fromkeys(sets, "")
        line |= {one["on"]: f"{one['points']:+.2f} ({one['low']:+.2f} to {one['high']:+.2f})"
                 for one in each.to_dict("records") if one["on"]}
        line["thesis"] = "" if pd.isna(line["thesis"]) else f"{line['thesis']:+.2f}"
        lines.append(line)
    return pd.DataFrame(lines)[["statement", *same[:-1], *(sets if sets != [TOGETHER] else []), "verdict"]]


def published_lines(folder: Path | None = None) -> list[results.Row]:
    """Lines of `evaluation.compact` in a folder, by default those that ship with the project; none where no file is."""
    file = (folder or paths.published()) / f"{compact.NAME}.jsonl"
    return results.read(file) if file.is_file() else []


def on_real(sides: Mapping[str, Side], lines: Iterable[results.Row]) -> pd.DataFrame:
    """Image AUROC of those sides of which there are published lines, a row for each label: of each category
    "95.0 (91.2 to 97.0)", the mean of its banks and the 95 % interval of that, and the mean over categories.
    """
    found: dict[str, dict[str, results.Row]] = {}
    for line in lines:
        found.setdefault(id_of(Configuration.from_row(line)), {})[line["category"]] = line
    table: dict[str, dict[str, Any]] = {}
    for label, side in sides.items():
        if side.id in found:
            on = dict(sorted(found[side.id].items()))
            means = {name: 100 * float(np.mean(line["image_auroc"])) for name, line in on.items()}
            table[label] = {name: f"{means[name]:.1f} ({100 * line['image_auroc_low']:.1f} to "
                                  f"{100 * line['image_auroc_high']:.1f})" for name, line in on.items()}
            table[label]["mean here %"] = float(np.mean(list(means.values())))
    names = sorted({category for of_side in found.values() for category in of_side})
    return pd.DataFrame(list(table.values()), pd.Index(list(table), dtype="str"), [*names, "mean here %"])


def bars_on_real(figure: str, lines: Iterable[results.Row], **changes: Any) -> pd.DataFrame:
    """`on_real` for the bars of a figure, beside the thesis' mean over MVTec AD; changes: parameters that were measured
    otherwise than the bar says.
    """
    sides = {label: Side("patchcore", {field.name: getattr(bar, field.name) for field in fields(bar)
                                       if field.name not in ("weights", "seed")})
             for label, bar in thesis_bars(figure, "random", **changes).items()}
    table = on_real(sides, lines)
    table.insert(0, "thesis, MVTec AD %", bars_of(figure).set_index("label")["auroc_mvtec_pct"].reindex(table.index))
    return table


def literature(beside: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.literature.beside` in words: 95.0, "not measured" of ours, "" of what others do not tell."""
    here = beside.index.get_level_values("who") == HERE
    texts = beside.map(lambda value: "" if pd.isna(value) else f"{value:.1f}")
    return texts.mask(texts.eq("") & here[:, None], NOT_MEASURED)


def counted(found: pd.DataFrame) -> str:
    """Records in a sentence: how many statements can be judged by them, on which sets, and how."""
    verdict = found.drop_duplicates("statement")["verdict"]
    judged, every = int((verdict != NOT_MEASURED).sum()), len(verdict)
    text = f"{judged} of {every} statements of chapters 2 and 3 can be judged by these rows"
    if not judged:
        return f"{text}."
    sets = sorted(set(found["on"]) - {"", TOGETHER})
    numbers = [f"{int((verdict == one).sum())} {words}" for one, words in (
        (HOLDS, "hold"), (CONTRADICTED, "are contradicted"), (OPEN, "are open"))]
    return f"{text}, on {', '.join(sets)}: {', '.join(numbers)}."


def late(curve: pd.DataFrame, most: int = 5) -> pd.DataFrame:
    """The last states of trainings, one a row, the step as index: at most so many, and none of the first half.

    A short training has few states, and the first of them have hardly learned:

    >>> late(pd.DataFrame({"seed 0": [45, 60, 75, 80]}, index=[10, 20, 30, 40])).index.tolist()
    [30, 40]
    """
    return curve[curve.index > curve.index[-1] / 2].tail(most)


def interval(line: Mapping[str, Any] | pd.Series) -> str:
    """low and high of a line of `summary` in words, "88.8 to 94.9", or why there are none."""
    return NO_INTERVAL if np.isnan(line["low"]) else f"{line['low']:.1f} to {line['high']:.1f}"


def beside(figure: str, measured: Mapping[str, pd.DataFrame], times: Mapping[str, dict] | None = None,
           column: str = "auroc_mvtec_pct", labels: Sequence[str] = ()) -> pd.DataFrame:
    """Thesis | measured | difference for each bar; measured and times map the thesis' label to what `evaluate` and
    `measure_time` returned. column is the thesis' AUROC to compare with. Unknown labels raise KeyError.
    A bar of `times` or `labels` that was not measured has no AUROC: its weights are not at hand, as the column says.
    spread % is that of the times (interquartile range over median); over 10 the times are noisy.
    """
    bars = bars_of(figure).set_index("label")
    unknown = (set(measured) | set(times or {})) - set(bars.index)
    if unknown:
        raise KeyError(f"figure {figure} has no bar {', '.join(sorted(unknown))}; it has {', '.join(bars.index)}")
    lines = []
    for label in dict.fromkeys([*labels, *(times or {}), *measured]):
        line = {"bar": label, "thesis AUROC %": bars.loc[label, column], "measured AUROC %": np.nan,
                "95 % interval": "", "sd over seeds": np.nan, "difference": np.nan, "weights": NEEDED}
        if label in measured:
            mean = summary(measured[label]).iloc[0]
            line |= {"measured AUROC %": mean["auroc"], "95 % interval": interval(mean),
                     "sd over seeds": mean["sd"], "difference": mean["auroc"] - bars.loc[label, column],
                     "weights": mean["weights"]}
        if times:
            line |= {"thesis ms": bars.loc[label, "total_ms"], "measured ms": times[label]["total_ms"],
                     "spread %": 100 * times[label]["spread"]}
        lines.append(line)
    return pd.DataFrame(lines).set_index("bar")


def stage_times(figure: str, times: Mapping[str, dict]) -> pd.DataFrame:
    """Milliseconds per stage, two lines per bar: the thesis' desktop and this machine."""
    bars = bars_of(figure).set_index("label")
    lines = {}
    for label, row in times.items():
        lines[label, "thesis"] = [bars.loc[label, f"{stage}_ms"] for stage in STAGES]
        lines[label, "measured"] = [row["stage_ms"][stage] for stage in STAGES]
    table = pd.DataFrame.from_dict(lines, orient="index", columns=list(STAGES))
    table.index = pd.MultiIndex.from_tuples(table.index, names=["bar", "source"])
    return table.assign(total=table.sum(axis=1))


def head(text: str) -> tuple[str, str, str]:
    """Title, thesis section and question of a notebook's first cell; ThesisError where it lacks one.

    >>> head("# 02 AUROC\\n\\n**Thesis:** sec. 2.3. **Question:** how sure is it? More.")
    ('02 AUROC', 'sec. 2.3.', 'how sure is it?')
    """
    found = re.match(r"# (.*?) \*\*Thesis:\*\* (.*?) \*\*Question:\*\* (.*?\?)", " ".join(text.split()))
    if found is None:
        raise ThesisError("the first cell needs a title, **Thesis:** with a section, and **Question:**")
    title, section, question = found.groups()
    return title, section, question


def contents(profile: str) -> pd.DataFrame:
    """One line per notebook: link, thesis section, question, and the first sentence of its last conclusion.

    Title, section and question are read from the first cell of the source, the result from the executed copy of the
    profile, so that no number is typed twice.
    """
    lines = []
    for source in sorted(paths.notebooks().glob("[0-9][0-9]_*.ipynb")):
        first = json.loads(source.read_text(encoding="utf-8"))["cells"][0]
        try:
            title, section, question = head("".join(first["source"]))
        except ThesisError as error:
            raise ThesisError(f"{source}: {error}") from None
        lines.append({"notebook": f"[{title}]({source.name})", "thesis": section.rstrip("."), "question": question,
                      "result": _conclusion(paths.executed(profile) / source.name)})
    return pd.DataFrame(lines)


def published(by: Sequence[str], **fixed: str) -> pd.DataFrame:
    """PatchCore on real pictures, from the rows that ship with the project: AUROC over the banks in %.

    One line per category, weights and the parameters `by`; `fixed` are parameters that must have a value. Levels are
    written as the thesis does: layers="2+3". Bank 1000 and the method's defaults unless `fixed` says otherwise; a
    parameter that came after a row was measured has its default there.
    """
    rows = all_rows()
    rows = rows[(rows["origin"] == "published") & (rows["kind"] == "auroc") & (rows["method"] == "patchcore")]
    rows = _with_lines(rows, pd.json_normalize([row for row in published_lines() if row["method"] == "patchcore"]))
    auroc, category, weights = 100 * rows["image_auroc"], rows["category"], rows["weights.source"]
    rows = rows.filter(like="parameters.").rename(columns=lambda name: name.removeprefix("parameters."))
    rows = rows.assign(layers=["+".join(map(str, levels)) for levels in rows["layers"]], auroc=auroc,
                       category=category, weights=weights)
    usual = {"bank": 1000, "score": "max", "tap": "output", "activation": "identity", "scaling": "none",
             "engine": "eager"}
    for name, value in (usual | fixed).items():
        if name in rows:
            rows = rows[rows[name].isna() | (rows[name] == value)]
    table = rows.groupby(["category", "weights", *by], sort=False)["auroc"].agg(["mean", "min", "max", "count"])
    return table.set_axis(["AUROC %", "lowest bank", "highest bank", "banks"], axis=1)


def _with_lines(rows: pd.DataFrame, lines: pd.DataFrame) -> pd.DataFrame:
    """Rows of single banks, and those of lines of `compact` with the usual preprocessing and search; each bank once."""
    if lines.empty:
        return rows
    lines = lines[lines["parameters.search"] == "faiss"]
    for name, value in asdict(Preprocess()).items():
        given = lines[f"preprocess.{name}"]
        lines = lines[given.isna() if value is None else (given == value) | (name == "levels")]
    lines = lines.explode(["image_auroc", "seeds"]).rename(columns={"seeds": "seed"}).astype({"image_auroc": float})
    return pd.concat([rows, lines]).drop_duplicates(["configuration", "category", "seed"])


def halves(figure: str, table: pd.DataFrame, times: Mapping[str, dict], on: str,
           title: str | None = None) -> dict[str, pd.DataFrame]:
    """The two halves of `figures.stage_bars`: the thesis' bars, and what `beside` and `measure_time` say here.

    on: what the measured AUROC was measured on; title of the measured half.
    """
    bars = bars_of(figure).set_index("label").loc[list(table.index)]
    thesis = bars[[f"{stage}_ms" for stage in STAGES]].set_axis(STAGES, axis=1)
    thesis = thesis.assign(**{"AUROC MVTec AD": bars["auroc_mvtec_pct"], "AUROC Granulat": bars["auroc_granulat_pct"]})
    here = stage_times(figure, times).xs("measured", level="source").drop(columns="total").loc[list(table.index)]
    here = here.assign(**{f"AUROC {on}": table["measured AUROC %"]})
    return {f"thesis, Fig. {figure}": thesis, title or f"measured here, bars of Fig. {figure}": here}


def pareto(table: pd.DataFrame, cost: str, gain: str) -> pd.DataFrame:
    """Rows that no other row beats in both: column `cost` low, column `gain` high; cheapest first."""
    ordered = table.dropna(subset=[cost, gain]).sort_values([cost, gain], ascending=[True, False])
    return ordered[ordered[gain] > ordered[gain].cummax().shift(fill_value=-np.inf)]


def overview(rows: pd.DataFrame) -> pd.DataFrame:
    """All that was measured: one line per configuration and category, of the rows of `all_rows`.

    label, method, AUROC in % with its interval, milliseconds in total and per stage where it was timed, and all
    parameters by name. A configuration that was measured again counts once, with its last rows; one that was measured
    on fewer test pictures than others of its category (a smoke run), or whose scores are not there, is left out.
    """
    # 1. AUROC with its interval, of the last rows.
    scored, timed = _last(rows)
    if scored.empty:
        return pd.DataFrame()
    table = summary(scored).sort_values("n_train", kind="stable").set_index(["configuration", "category"])
    table = table[~table.index.duplicated(keep="last")]         # the same name on fewer training pictures
    # 2. Method and parameters by name; levels as the thesis writes them.
    facts = scored.drop_duplicates(["configuration", "category"], keep="last").set_index(["configuration", "category"])
    named = facts.filter(like="parameters.").rename(columns=lambda name: name.removeprefix("parameters."))
    if "layers" in named:
        named["layers"] = named["layers"].map(lambda levels: "+".join(map(str, levels)), na_action="ignore")
    named = named.rename(columns={name: f"{name}, parameter" for name in named if name in table})   # EfficientAD's low
    # 3. Times: "total ms", and "search ms" of stage_ms.search.
    timed = timed.set_index(["configuration", "category"]).filter(regex="^(total_ms|stage_ms)")
    titles = {"total_ms": "total ms"}
    for name in timed:
        if str(name).startswith("stage_ms"):
            titles[str(name)] = f"{str(name).removeprefix('stage_ms.')} ms"
    table = table.join(facts["method"]).join(timed.rename(columns=titles)).join(named)
    # 4. What a line is called: its method and the parameters that are told apart most often.
    labels = table.reindex(columns=["method", "backbone", "layers", "embedding", "bank", "engine"]).astype(object)
    labels = labels.where(labels.notna() & (labels != "eager"), "").map(_text)
    return table.assign(label=labels.agg(lambda parts: " ".join(filter(None, parts)), axis=1))


def behind(rows: pd.DataFrame, lines: Iterable[tuple[str, str]]) -> list[str]:
    """Ids of the rows of `all_rows` that stand behind these lines (configuration, category) of `overview`."""
    last = pd.concat(_last(rows))
    shown = pd.MultiIndex.from_frame(last[["configuration", "category"]]).isin(list(lines))
    return last.loc[shown, "id"].tolist()


def _last(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The last `auroc` row of each seed, on all test pictures of its category, and the last `time` rows."""
    parts = {kind: rows[rows["kind"] == kind].sort_values("finished") for kind in ("auroc", "time")}
    scored = parts["auroc"].drop_duplicates(["configuration", "category", "data", "seed"], keep="last")
    scored = scored[scored["scores"].notna()]                   # some rows that ship with the project came without
    tested = scored["scores"].map(len) if len(scored) else pd.Series(dtype=int)
    return (scored[tested == tested.groupby(scored["category"]).transform("max")],
            parts["time"].drop_duplicates(["configuration", "category"], keep="last"))


def contrast(table: pd.DataFrame, parameter: str, one: Any, other: Any, **fixed: Any) -> pd.Series:
    """Pairs of `overview` that differ in a single parameter: how AUROC (points) and time (ratio) change to `other`.

    fixed: parameters or columns that both must have. Without a pair: pairs 0, the rest missing.
    """
    for name, value in fixed.items():
        table = table[table[name] == value]
    # 1. What both lines of a pair must have in common: everything from the method on that is not measured.
    described = list(table.columns)[list(table.columns).index("method"):]
    same = [name for name in described if not name.endswith(" ms") and name not in (parameter, "label")]
    same += ["weights", "n_train", "category"]
    keyed = table.reset_index()
    keyed["same"] = [str(tuple(values)) for values in keyed[same].itertuples(index=False)]
    # 2. The lines of either value by what they have in common; subtracting brings the pairs together.
    first, second = (keyed[keyed[parameter].map(_text) == _text(value)].drop_duplicates("same").set_index("same")
                     for value in (one, other))
    points = (second["auroc"] - first["auroc"]).dropna()
    ratio = (second["total ms"] / first["total ms"]).dropna() if "total ms" in table else pd.Series(dtype=float)
    return pd.Series({"pairs": len(points), "AUROC, points": points.mean(), "lowest": points.min(),
                      "highest": points.max(), "time, ratio": np.exp(np.log(ratio).mean()) if len(ratio) else np.nan})


def _text(value: Any) -> str:
    """A whole number in a column with gaps has become 1000.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def markdown(table: pd.DataFrame) -> str:
    """Pipe table of a frame of texts; unlike HTML its links work on a code host, too."""
    rows = [list(table.columns), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _conclusion(executed: Path) -> str:
    """First bullet of the last Markdown output of an executed notebook."""
    if not executed.is_file():
        return "not executed yet"
    texts = []
    for cell in json.loads(executed.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                texts.append("".join(output["data"]["text/markdown"]))
    bullets = texts[-1].split("\n- ")[1:] if texts else []
    return " ".join(bullets[0].split()) if bullets else "no conclusion"


def note(categories: list[str], weights: str) -> str:
    """What the reader must know before comparing: which pictures and which weights the measured numbers stand on."""
    lines = [f"Measured on **{', '.join(categories)}**; the thesis' column is a mean over the 15 categories of MVTec "
             "AD (or its own pellet set, which is not public), so a difference is an orientation, not an error."]
    if weights == "random":
        lines.append("**Random weights:** the network was not trained. Its run times are real; its AUROC says nothing "
                     "about the method with trained features.")
    if weights == "bundled":
        lines.append(f"**Bundled weights** ({', '.join(weightfiles.BUNDLED)}): trained by this project on pictures "
                     "made by formula, no photograph among them. On the real sets looked at ResNet-18 does best with "
                     "them at level 1; with level 2, the thesis' best, ImageNet weights detect better. The PDN had "
                     f"4800 steps of 60000. Other networks have none: their times are measured, their AUROC {NEEDED}.")
    return "\n\n".join(lines)


def _percent(group: pd.DataFrame, column: str) -> float:
    return 100 * group[column].astype(float).mean()
