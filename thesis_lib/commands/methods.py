"""The commands on one method: `thesis evaluate`, `time`, `robustness` and `export`; its fields are options."""

import argparse
import dataclasses
import json
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thesis_lib.commands import device, exit_codes, study
from thesis_lib.core import results
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import DataError, Preprocess, in_pixels

if TYPE_CHECKING:       # a device has no torch, and no command line should wait for it that does without
    from thesis_lib.data.folders import Category
    from thesis_lib.methods.base import Detector

PAIR = tuple[int, int]          # of a size, where other tuples are lists
Field = dataclasses.Field[Any]
Measure = Callable[["Detector", "Category", Preprocess], dict[str, Any]]       # prints, and gives what --json prints


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", command: str | None) -> None:
    """All four; their methods only for this command, or for None: to list them torch is imported."""
    for name, do, what in (("evaluate", _evaluate, "image AUROC of a method on a data set"),
                           ("time", _time, "stage times of a method by the thesis' protocol"),
                           ("robustness", _robustness, "scores, false alarms and recall when light, sharpness or "
                            "position of the test pictures change a little"),
                           ("export", _export, "write a fitted method into a folder for a device without torch")):
        parser = commands.add_parser(name, help=what, description=what)
        if command not in (None, name):
            continue
        methods = parser.add_subparsers(required=True, metavar="METHOD", title="methods")
        for method, (about, fields) in _methods().items():
            sub = methods.add_parser(method, help=about, description=about,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
            _measuring_options(sub, fields, name)
            sub.set_defaults(do=do, method=method)


def _methods() -> dict[str, tuple[str, list[Field]]]:
    """Name of a method -> what it is, and its parameters but the seed."""
    from thesis_lib.methods.registry import METHODS
    methods = {}
    for name, method in METHODS.items():
        about = method.__doc__ or ""
        if about.startswith(f"{method.__name__}("):         # made by `dataclass`: the module's first line says more
            about = (sys.modules[method.__module__].__doc__ or "").strip().partition("\n")[0]
        methods[name] = about, [field for field in dataclasses.fields(method) if field.name != "seed"]
    return methods


def _measuring_options(parser: argparse.ArgumentParser, fields: Sequence[Field], command: str) -> None:
    """Options of a command on one method: data, the method's fields, those of `Preprocess`, and how to measure."""
    if command == "export":         # a bundle has two engines and a search of its own
        fields = [field for field in fields if field.name not in ("engine", "search", "search_threads")]
    study.where(parser, several=True)
    for field in (*fields, *dataclasses.fields(Preprocess)):
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        kind: dict[str, Any] = {"type": converter(field.type)}
        if field.type is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=default,
                            help=field.metadata["help"].replace("%", "%%"), **kind)
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--batch-size", type=int, default=1 if command == "time" else 8, help="pictures per batch")
    parser.add_argument("--train-pictures", type=int, default=0, help="use only so many, evenly spaced; 0 is all")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    if command != "evaluate":
        parser.add_argument("--seed", type=int, default=0, help="seed of what is random in fit")
    if command in ("export", "robustness"):
        if command == "export":
            parser.add_argument("--out", required=True, help="folder to write, must not be there yet")
            parser.add_argument("--add", metavar="DIR", help="folder of good parts that were flagged: they are "
                                "learned, too, and have no part in the threshold; each is listed with its score and "
                                "most unusual region. Look at them first: a defective part blinds the detector")
        else:
            parser.add_argument("--test-pictures", type=int, default=0, help="use only so many, evenly spaced; 0 is "
                                "all")
        rule = parser.add_mutually_exclusive_group()
        rule.add_argument("--false-alarms", type=share, default="5%", metavar="SHARE", help="threshold: so many of the "
                          "good parts may be flagged, 1%% or 0.01; n good pictures can promise 1/(n+1) at the lowest")
        rule.add_argument("--recall", type=share, metavar="SHARE", help="threshold: so many of the defective test "
                          "pictures are found, 95%% or 0.95, in place of a rate of false alarms")
        parser.add_argument("--folds", choices=("blocks", "shuffled"), default="blocks", help="of patchcore, "
                            "padim and spade, whose good pictures are scored after learning from the others: blocks "
                            "of consecutive file names, or drawn at random; export shows the other one beside it")
        return
    parser.add_argument("--pictures", type=int, default=5 if command == "time" else 0,
                        help="pictures to time" + ("" if command == "time" else "; 0 times none"))
    if command == "time":
        parser.add_argument("--warmup", type=int, default=3, help="untimed passes per picture")
        parser.add_argument("--repeats", type=int, default=5, help="timed passes per picture")
    else:
        parser.add_argument("--seeds", type=int, default=5, help="memory banks or draws of channels, from the same "
                            "features; where nothing is random one is measured whatever is asked")
        parser.add_argument("--test-pictures", type=int, default=0, help="use only so many, evenly spaced; 0 is all")
    parser.add_argument("--force", action="store_true", help="measure again although a stored row is there")


def converter(annotation: Any) -> Callable[[str], object]:
    """Text of an option -> value of the field's type; "none" where the annotation allows None."""
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)

    def convert(text: str) -> object:
        if text.lower() == "none" and types.NoneType in options:
            return None
        for option in options:
            try:
                if option == PAIR:
                    width, height = map(int, text.split("x"))       # ValueError for more or fewer, too
                    return width, height
                if typing.get_origin(option) is tuple:
                    return tuple(int(part) for part in text.split(","))
                if option is not types.NoneType:
                    return option(text)
            except ValueError:
                continue
        raise argparse.ArgumentTypeError(f"{text!r}: needs {' or '.join(map(_in_words, options))}")

    return convert


def share(text: str) -> float:
    """Of an option such as 1% or 0.01, as a number of 0 to 1."""
    number, sign = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) / 100 if sign else float(number)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: needs a share such as 1% or 0.01")
    return value


def _in_words(annotation: Any) -> str:
    """What to type for a value of this type."""
    if annotation == PAIR:
        return "two numbers such as 256x640"
    if typing.get_origin(annotation) is tuple:
        return "numbers such as 2,3"
    return "none" if annotation is types.NoneType else annotation.__name__


def _measured(args: argparse.Namespace, measure: Measure) -> int:
    """Build detector and preprocessing from the options, measure each category; a broken one stops only itself."""
    study.check_where(args)
    import torch

    from thesis_lib.data import folders
    from thesis_lib.methods.registry import METHODS
    if args.threads is not None:
        if args.threads < 1:
            raise ThesisError(f"--threads {args.threads}: needs at least 1")
        torch.set_num_threads(args.threads)

    def pick(cls: type) -> dict[str, Any]:
        return {field.name: getattr(args, field.name) for field in dataclasses.fields(cls) if hasattr(args, field.name)}

    detector = METHODS[args.method](**pick(METHODS[args.method]))
    preprocess = Preprocess(**pick(Preprocess))
    names = args.category or [None]
    if args.category == ["all"]:
        names = folders.some_categories(folders.resolve(args.data), args.good_name)
    answers, failed = [], []
    for name in names:
        try:
            category = study.found(args, name).subset(args.train_pictures, getattr(args, "test_pictures", 0))
            # A copy: what is fitted on one category must not be timed on the next.
            answers.append(measure(detector.reseeded(detector.seed), category, preprocess))
        except DataError as error:
            print(f"thesis: {name or args.good}: {error}", file=sys.stderr)
            failed.append(name or args.good)
    together: dict[str, Any] = {"categories": answers, "failed": failed}
    if len(answers) > 1 and "image_auroc" in answers[0]:
        together["image_auroc"] = sum(answer["image_auroc"] for answer in answers) / len(answers)
        print(f"mean of {len(answers)} categories: image AUROC {100 * together['image_auroc']:.1f} %")
    if args.json:
        print(json.dumps(results.plain(answers[0] if len(names) == 1 and answers else together)))
    return exit_codes.after(len(failed), len(answers))


def _evaluate(args: argparse.Namespace) -> int:
    from thesis_lib.evaluation import scores, stage_times
    from thesis_lib.report import tables

    if args.pictures < 0:
        raise ThesisError(f"pictures={args.pictures}: needs at least 1, or 0 to time none")

    def folded(detector: "Detector", category: "Category", preprocess: Preprocess) -> dict[str, Any]:
        """There are no good test pictures."""
        from thesis_lib.evaluation.folded import evaluate_folded, wins_of
        from thesis_lib.evaluation.wins import interval
        rows = evaluate_folded({"": detector}, category, preprocess, seeds=args.seeds, batch_size=args.batch_size,
                               force=args.force)[""]
        won = wins_of(rows)
        low, high = interval(won)
        folds = len(rows[0]["folds"])
        print(f"{category.name}: image AUROC {100 * won.auroc:.1f} % (95 % interval {100 * low:.1f} to "
              f"{100 * high:.1f}), the mean of {folds} fold{'s' * (folds > 1)}: there are no good test pictures, so "
              f"those of a fold are scored by a detector that has not learned from them; {len(rows)} seeds, weights "
              f"{rows[0]['weights']['source']}")
        return {"method": args.method, "category": category.name, "weights": rows[0]["weights"]["source"],
                "seeds": len(rows), "image_auroc": won.auroc, "low": low, "high": high, "folds": folds,
                "per_seed": [row["image_auroc"] for row in rows], "rows": [row["id"] for row in rows]}

    def tested(detector: "Detector", category: "Category", preprocess: Preprocess) -> dict[str, Any]:
        rows = scores.evaluate(detector, category, preprocess, seeds=args.seeds, batch_size=args.batch_size,
                               force=args.force)
        summary = tables.summary(rows).iloc[0]
        answer = {"method": args.method, "category": category.name, "weights": summary["weights"], "seeds": len(rows),
                  "image_auroc": summary["auroc"] / 100, "low": summary["low"] / 100, "high": summary["high"] / 100,
                  "sd": summary["sd"] / 100, "per_seed": rows["image_auroc"].tolist(),
                  "pixel_auroc": summary["pixel_auroc"] / 100, "pro": summary["pro"] / 100,
                  "n_train": int(summary["n_train"]), "n_test": int(summary["n_test"]),
                  "peak_memory_gb": rows["peak_memory_gb"].iloc[0] if len(rows) == 1 else None,
                  "rows": rows["id"].tolist()}
        per_seed = " ".join(f"{100 * value:.1f}" for value in answer["per_seed"])
        warning = " (untrained: no statement about the method)" if summary["weights"] == "random" else ""
        print(f"{category.name}: image AUROC {100 * answer['image_auroc']:.1f} % "
              f"(95 % interval {tables.interval(summary)}), {len(rows)} seeds {per_seed}, "
              f"weights {summary['weights']}{warning}")
        if "training.best_on_test" in rows:
            print(f"{category.name}: after the last step; the best of the states on the way would have "
                  f"{100 * rows['training.best_on_test'].mean():.1f} %, chosen by the test pictures")
        if summary["pixel_auroc"] == summary["pixel_auroc"]:        # no NaN
            print(f"{category.name}: pixel AUROC {summary['pixel_auroc']:.1f} %, PRO {summary['pro']:.1f} %")
        else:
            print(f"{category.name}: pixel AUROC and PRO n/a, "
                  + (f"no mask has a pixel at {in_pixels(preprocess.shape)}" if category.has_masks
                     else "not every anomalous picture has a mask"))
        return answer

    def measure(detector: "Detector", category: "Category", preprocess: Preprocess) -> dict[str, Any]:
        answer = (folded if category.cross_fitted else tested)(detector, category, preprocess)
        if args.pictures:
            row = stage_times.measure_time(detector, category, preprocess, pictures=args.pictures, force=args.force)
            answer |= {"stage_ms": row["stage_ms"], "total_ms": row["total_ms"]}
            _print_times(category.name, row)
        return answer

    return _measured(args, measure)


def _time(args: argparse.Namespace) -> int:
    from thesis_lib.evaluation import stage_times

    def measure(detector: "Detector", category: "Category", preprocess: Preprocess) -> dict[str, Any]:
        detector = detector.reseeded(args.seed)
        row = stage_times.measure_time(detector, category, preprocess, pictures=args.pictures, warmup=args.warmup,
                                       repeats=args.repeats, batch_size=args.batch_size, threads=args.threads,
                                       force=args.force)
        _print_times(category.name, row)
        return {key: value for key, value in row.items() if key not in ("raw_s", "stamp")}

    return _measured(args, measure)


def _print_times(name: str, row: Mapping[str, Any]) -> None:
    noisy = " -- noisy, over 10 %: close other programs and use --force" if row["noisy"] else ""
    print(device.times(name, row) + noisy)


def _robustness(args: argparse.Namespace) -> int:
    from thesis_lib.evaluation import crossfit
    from thesis_lib.evaluation.robustness import robustness

    def measure(detector: "Detector", category: "Category", preprocess: Preprocess) -> dict[str, Any]:
        detector = detector.reseeded(args.seed)
        if not (category.labels == 0).any():
            raise DataError("robustness needs good test pictures, there is none")
        promised = crossfit.promise(detector, category, preprocess, false_alarms=args.false_alarms, recall=args.recall,
                                    order=args.folds, batch_size=args.batch_size)
        table = robustness(detector, category.test, preprocess, promised.threshold, spread=promised.spread,
                           seed=args.seed, batch_size=args.batch_size)
        print(f"{category.name}: {promised}")
        print("score shift of good pictures, in interquartile ranges (IQR) of nominal scores; turned and shifted "
              "pictures are compared with untouched ones, cut equally; where cutting alone flags many, which is a "
              "change, too, only their score shift tells something")
        for row in table.itertuples():
            moved = "" if row.shift_iqr is None else f"{row.shift_iqr:+7.2f} IQR"
            found = "" if row.recall is None else f"  found {round(row.recall * row.n_defective)} of {row.n_defective}"
            print(f"  {row.label:<30} {row.shift:+9.4f} {moved}  flagged {round(row.false_alarms * row.n_good)} of "
                  f"{row.n_good} good{found}")
        return {"category": category.name, "method": args.method, "threshold": promised.threshold,
                "spread": promised.spread, "robustness": json.loads(table.to_json(orient="records"))}

    return _measured(args, measure)


def _export(args: argparse.Namespace) -> int:
    from thesis_lib.device import drift
    from thesis_lib.device.export import export
    from thesis_lib.device.run import pictures_of

    if args.category and (len(args.category) > 1 or args.category == ["all"]):
        raise ThesisError(f"--category {' '.join(args.category)}: a bundle is of one category")
    added = pictures_of(args.add) if args.add else ()

    def write(detector: "Detector", category: "Category", preprocess: Preprocess) -> dict[str, Any]:
        facts = export(detector.reseeded(args.seed), category, preprocess, args.out, batch_size=args.batch_size,
                       false_alarms=args.false_alarms, recall=args.recall, order=args.folds, add=added)
        print(f"{args.out}: {args.method} of {category.name}, {len(facts['pictures'])} pictures with expected scores")
        print(f"  threshold by the scores of {facts['threshold']['scores']}")
        for name, engine in facts["engines"].items():
            print(f"  {name}: threshold {engine['threshold']:.4f}, expected scores {min(engine['scores']):.4f} to "
                  f"{max(engine['scores']):.4f}")
            for line in engine["promise"]:
                print(f"    {line}")
            print(f"    {'; '.join(drift.lines(engine['bands']))}")
        if added:
            _print_added(facts)
        thresholds = {name: engine["threshold"] for name, engine in facts["engines"].items()}
        return {"out": args.out, "added": facts["added"], "thresholds": thresholds, "promises": {
            name: {key: engine[key] for key in ("rank", "false_alarms", "defective_found",
                                              "good_flagged", "spread")}
            for name, engine in facts["engines"].items()} | {"n": facts["threshold"]["n"]}}

    return _measured(args, write)


def _print_added(facts: Mapping[str, Any]) -> None:
    """What was added, the most unusual first, and what the detector was worth without it."""
    print(f"  learned, but not counted: {len(facts['added'])} added pictures; by the detector without them:")
    for one in facts["added"]:
        print(f"    {one['score']:.4f}  most unusual at {','.join(map(str, one['region']))}  {one['name']}  "
              f"sha256 {one['sha256']}")
    for when, found in (("before", facts["without_added"]), ("after", facts["engines"]["float"])):
        told = [f"{label} {found[key][0]} of {found[key][1]}" for label, key in
                (("flagged good test pictures", "good_flagged"), ("found defective ones", "defective_found"))
                if found[key]]
        told.insert(0, f"threshold {found['threshold']:.4f}")
        print(f"  {when}: {', '.join(told)}")
