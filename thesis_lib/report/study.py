"""A study as one page that needs nothing but itself, and its rows as a table: a `Study` goes in, two files come out."""

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import pandas as pd

from thesis_lib.core import files, stamp
from thesis_lib.evaluation import engines, on_pi
from thesis_lib.evaluation.examined import Seen
from thesis_lib.evaluation.lines import Line
from thesis_lib.evaluation.robustness import GEOMETRIC
from thesis_lib.evaluation.study import Study
from thesis_lib.evaluation.thresholds import Promise, needed, percent
from thesis_lib.report import html, study_figures, study_words
from thesis_lib.report.quick import SHOWN
from thesis_lib.report.study_words import milliseconds

KINDS = {"best": ("Best found", "Defective, with the highest scores."),
         "missed": ("Worst found", "Defective, with the lowest scores: these are missed first."),
         "alarm": ("Nearest to a false alarm", "Good, with the highest scores.")}
# Of the pages of the documentation nothing is linked: a page on a machine of a line has nothing but itself.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="answer{none}">{answer}</p>
<p class="note">{n_train} good pictures to learn from; {n_good} good and {n_bad} defective ones to test with.</p>
{sections}
<footer><p>Made on {date} by {configurations} configurations with {weights}. {facts}</p></footer>
</body>
</html>
"""


def write(study: Study, folder: str | Path, *, source: Sequence[str] = ("--data", "myset", "--category", "part"),
          weights: str = "imagenet") -> Path:
    """`index.html` and `rows.csv` in the folder, which is made; the page's path is returned.

    source and weights: how the pictures and the network were asked for, as the page's commands repeat it.
    """
    folder = Path(folder)
    files.write(folder / "rows.csv", study.table().to_csv(index=False))
    page = folder / "index.html"
    files.write(page, _page(study, source, weights))
    return page


def _page(study: Study, source: Sequence[str], weights: str) -> str:
    sections = [_notes(study), _comparison(study), _pictures(study), _threshold(study), _robustness(study), _pi(study),
                _next(study, source, weights)]
    facts = stamp.stamp()
    told = [f"{name.replace('_', ' ')}: {facts[name]}" for name in SHOWN if facts[name] is not None]
    told += [f"{name} {version}" for name, version in facts["versions"].items() if version]
    bad = int(study.category.labels.sum())
    page = PAGE.format(title=escape(f"Which configuration is enough for {study.category.name}?"), style=html.STYLE,
                       none="" if study.ranked and study.chosen else " none",
                       answer=escape(study_words.recommendation(study)), n_train=len(study.category.train),
                       n_good=len(study.category.test) - bad, n_bad=bad, sections="\n".join(filter(None, sections)),
                       date=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"), configurations=len(study.lines),
                       weights=escape(f"weights {Path(weights).name}"), facts=escape("; ".join(told)))
    return html.unbroken(page)


def _notes(study: Study) -> str:
    return "".join(f'<p class="note">{escape(note[:1].upper() + note[1:])}</p>' for note in study.notes)


def _comparison(study: Study) -> str:
    """AUROC against time, and the table behind it."""
    kept = study_figures.front(study.lines) if study.ranked else []
    marks = {id(line): "front" for line in kept}
    counts = {line.pictures for line in study.lines}
    alike = "".join(f", n = {good} + {bad}" for good, bad in counts) if len(counts) == 1 else ""
    auroc, here = f"image AUROC (95 % interval){alike}", "here: median (quartiles)"
    lines = pd.DataFrame([{
        "": number, "configuration": line.rung.name,
        auroc: _quality(line, not alike),
        here: f"{milliseconds(line.here.ms)} ({study_words.spread(line.here.low, line.here.high)})",
        "Pi 4B, predicted": _predicted(line),
        "remark": ", ".join(filter(None, (
            "recommended" if study.ranked and line is study.chosen else "looked at" if line is study.looked_at else "",
            marks.get(id(line), ""),
            "over the budget" if study.budget_ms is not None and not line.ms <= study.budget_ms else "")))}
        for number, line in enumerate(study.lines, 1)])
    marked = study.lines.index(study.looked_at)
    if not study.ranked:
        return ("<h2>What was tried</h2><p>The cheapest stands first. Nothing is ranked: an AUROC needs defective "
                f"pictures.</p>{html.table(lines.drop(columns=auroc), marked)}")
    image = html.picture(study_figures.tradeoff(study), "AUROC of each configuration against its milliseconds", "wide")
    return ("<h2>AUROC against time</h2><p>The AUROC is the chance that a defective picture scores higher than a good "
            "one: 100 % is perfect, 50 % is guessing. Each point is a configuration, the bar its 95 % interval over "
            "the test pictures, without a width where nothing overlaps; the line joins those that no cheaper one "
            "reaches (the front). The ring is the recommended one. In the table, n counts good and defective "
            f"pictures.</p>{image}{html.table(lines, marked)}"
            f"<h3>Choosing flatters</h3><p>{escape(study_words.optimistic(study))}</p>")


def _quality(line: Line, counted: bool) -> str:
    """AUROC with its interval, and on how many pictures where that is to be told."""
    good, defective = line.pictures
    told = f", n = {good} + {defective}" * counted
    return f"{study_words.auroc(line.auroc, line.low, line.high)}{told}" if line.won else ""


def _predicted(line: Line) -> str:
    if line.pi4 is None:
        return "not predicted"
    return (f"{milliseconds(line.pi4.ms)} ({study_words.spread(line.pi4.low, line.pi4.high)})"
            f"{', extrapolated' * line.pi4.extrapolated}")


def _pictures(study: Study) -> str:
    """What is found and what is missed."""
    parts = [f"<h2>What it sees</h2><p>All of {escape(study.looked_at.rung.name)}. Beside or below each picture is its "
             "anomaly map: bright places are unlike anything good. The blue line is the region that the map points at"
             + (", the green one the true defect.</p>" if any(one.sample.mask for one in study.examined.seen)
                else ".</p>")]
    per_defect = study.per_defect()
    if len(per_defect):
        usual = study.examined.usual
        shown = pd.DataFrame({
            "defect": per_defect["defect"].str.replace("_", " "), "pictures": per_defect["pictures"],
            f"image AUROC (95 % interval), against {study.looked_at.pictures[0]} good": [
                study_words.auroc(row.image_auroc, row.image_auroc_low, row.image_auroc_high)
                for row in per_defect.itertuples()],
            f"found at {percent(usual.expected)} false alarms": [
                f"{row.flagged} of {row.pictures}" for row in per_defect.itertuples()]})
        parts.append(html.table(shown))
    colours = study_figures.limits(study.examined.seen)
    for kind, (title, text) in KINDS.items():
        pictures = [one for one in study.examined.seen if one.kind == kind]
        if pictures:
            cards = "".join(_card(one, study, colours) for one in pictures)
            parts.append(f'<h3>{title}</h3><p class="note">{text}</p><div class="cards">{cards}</div>')
    return "".join(parts)


def _card(one: Seen, study: Study, colours: tuple[float, float]) -> str:
    drawn, lacking = study_figures.seen(one, study.examined.preprocess, colours)
    flagged = "flagged" if one.score > study.examined.usual.threshold else "not flagged"
    text = f"{one.sample.defect}/{one.sample.path.name}: score {one.score:.3f}, {flagged}{lacking and '; '}{lacking}"
    return f"<figure>{html.picture(drawn, 'picture and anomaly map')}<figcaption>{escape(text)}</figcaption></figure>"


def _threshold(study: Study) -> str:
    """Operating points, and what can be promised of each."""
    close, rows = study.examined, []
    for rate, promised in close.promises().items():
        row = {"false alarms wanted": percent(rate)}
        if isinstance(promised, Promise):
            low, high = promised.interval
            row |= {"threshold": f"{promised.threshold:.3f}", "expected": percent(promised.expected),
                    "95 % interval": f"{percent(low)} to {percent(high)}",
                    "with 95 % confidence at most": percent(promised.at_most)}
            if promised.flagged:
                row["good test pictures flagged"] = f"{promised.flagged.count} of {promised.flagged.of}"
            if promised.found:
                row["defective found"] = (f"{promised.found.count} of {promised.found.of} (at least "
                                          f"{percent(promised.found.interval[0])})")
        else:
            row["threshold"] = f"cannot be promised by {len(close.nominal)} pictures"
        rows.append(row)
    image = ""
    if study.ranked:
        image = html.picture(study_figures.operating(study), "ROC curve with the point of each threshold", "wide")
    warning = ""
    if close.usual.flagged and close.usual.chance < 0.01:
        warning = (f"<p><b>{close.usual.flagged.count} of {close.usual.flagged.of} good test pictures are flagged, "
                   f"where {percent(close.usual.expected)} were expected.</b> They differ from the training pictures, "
                   "in light for example, and the promise does not hold for them.</p>")
    return ("<h2>Where to put the threshold, and how often it cries wolf</h2>"
            f"<p>The thresholds come from {escape(close.made)}. To show with 95 % confidence that at most 1 % of good "
            f"parts are flagged takes {needed(0.01)} pictures.</p>{warning}{image}"
            f"{html.table(pd.DataFrame(rows).fillna(''))}")


def _robustness(study: Study) -> str:
    close, table = study.examined, study.examined.robustness
    # The unit of shift_iqr is 0 where most nominal scores are equal: then there is none.
    lines = pd.DataFrame({
        "change": table["label"],
        "scores of good parts move by, interquartile ranges": [
            "" if pd.isna(moved) else f"{moved:+.2f}" for moved in table["shift_iqr"]],
        "good parts flagged": [f"{round(row.false_alarms * row.n_good)} of {row.n_good}" for row in table.itertuples()],
        "defects found": [f"{round(row.recall * row.n_defective)} of {row.n_defective}" if row.n_defective else ""
                          for row in table.itertuples()]})
    told = [close.changed, f"They were changed by small steps before anything else was done to them, and stand against "
            f"the threshold for {percent(close.usual.expected)} false alarms."]
    if close.bad.size:
        told.append("What is found is shown because a blind detector tolerates everything.")
    else:
        lines = lines.drop(columns="defects found")
        told.append("Without defective pictures nobody can tell whether it still finds anything.")
    if not close.usual.spread:
        lines = lines.drop(columns=lines.columns[1])
        told.append("Most scores of good pictures are equal, so they have no interquartile range, and how far they "
                    "move cannot be told in such ranges.")
    if table["change"].isin(GEOMETRIC).any():
        told.append("Turned and shifted pictures are cut, and compared with untouched ones that are cut equally; where "
                    "cutting alone flags many, only the movement of their scores tells something.")
    return f"<h2>When the light changes</h2><p>{escape(' '.join(told))}</p>{html.table(lines)}"


def _pi(study: Study) -> str:
    """What it would cost there: predicted."""
    line = study.looked_at
    if line.pi4 is None:
        return ""
    rests = engines.model(on_pi.BUNDLE)
    further = (" No network of this kind was among them, so this is an extrapolation and may be further off."
               if line.pi4.extrapolated else "")
    return ("<h2>On a Raspberry Pi 4B</h2>"
            f"<p><b>Predicted, not measured:</b> {escape(line.rung.name)} would take about "
            f"{milliseconds(line.pi4.ms)} a picture in float32 with ONNX Runtime on a Pi 4B at 1.8 GHz, "
            f"{milliseconds(line.pi4.low)} to {milliseconds(line.pi4.high)}. The prediction rests on "
            f"{len(rests.ratios)} networks that others timed there with that engine; of those that it had not seen it "
            f"said {min(rests.ratios.values()):.2f} to {max(rests.ratios.values()):.2f} times the measured time."
            f"{further} Two configurations whose times differ by less than a factor of {rests.pair:.1f} it cannot tell "
            "apart, unless one is a part of the other. <code>thesis measure</code> says the truth.</p>")


def _next(study: Study, source: Sequence[str], weights: str) -> str:
    bundle = study.looked_at.rung.detector.name in study_words.BUNDLED
    text = ("This fits it again and writes a folder for a device that needs no torch; the other two lines run there."
            if bundle else "This method has no bundle for a device. The line evaluates it with all options of its own.")
    return (f"<h2>What to do next</h2><p>{text}</p><pre>{escape(study_words.commands(study, source, weights))}</pre>"
            "<p>All rows of this page lie beside it in <code>rows.csv</code>.</p>")
