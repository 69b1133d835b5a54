"""The command `thesis study`, and the options by which it and the commands on one method learn where pictures lie."""

import argparse
import dataclasses
import json
import re
from typing import TYPE_CHECKING

from thesis_lib.core import paths, results
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import Preprocess

if TYPE_CHECKING:
    from thesis_lib.data.folders import Category

UNITS = {"ms": 1.0, "s": 1000.0}
# Of `Preprocess`: a crop makes squares of one size, and the ladder has several.
LEFT_OUT = ("crop",)


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", command: str | None) -> None:
    """The command below those of `thesis`; its options only for itself: their defaults are those of the methods."""
    what = "from a folder of good parts to a decision: which method and size, which threshold, as a page"
    parser = commands.add_parser("study", help=what, description="Evaluate a ladder of configurations on one "
                                 "category, PatchCore at three sizes and two levels, PaDiM and SPADE, and write a page "
                                 "that needs nothing but itself: AUROC against time, what is found and missed, "
                                 "thresholds with "
                                 "their false alarms, what it would cost on a Raspberry Pi, and which one is enough. "
                                 "The same command goes on where it was interrupted.")
    if command not in (None, "study"):
        return
    from thesis_lib.commands.methods import PAIR, converter
    where(parser)
    parser.add_argument("--budget", type=budget, metavar="TIME", help="milliseconds a picture may take, 50ms or 0.2s "
                        "(default: any)")
    parser.add_argument("--device", choices=("here", "pi4"), default="here", help="whose milliseconds count: this "
                        "machine's, measured, or those of a bundle on a Raspberry Pi 4B, predicted (default here)")
    parser.add_argument("--quick", action="store_true", help="one seed, at most 60 pictures to learn from and 60 to "
                        "test with; the sizes stay")
    parser.add_argument("--trained", action="store_true", help="SimpleNet, EfficientAD and Uninformed Students, too, "
                        "each after a short training")
    parser.add_argument("--out", metavar="DIR", help="folder for index.html and rows.csv (default: "
                        "outputs/study/CATEGORY)")
    parser.add_argument("--weights", default="imagenet", help="imagenet, bundled, random or a .safetensors file in "
                        "torchvision's key names; EfficientAD has bundled ones of its own (default imagenet)")
    parser.add_argument("--backbone", default="resnet18", help="network (default resnet18)")
    parser.add_argument("--engine", default="eager", help="what runs it: eager, fast or int8 (default eager)")
    parser.add_argument("--tiles", type=converter(PAIR | None), help="columns x rows of tiles, such as 2x2 (default: "
                        "none)")
    for field in dataclasses.fields(Preprocess):
        if field.name not in LEFT_OUT:
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=converter(field.type), default=field.default,
                                help=f"{field.metadata['help']} (default {field.default})")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures per batch (default 8)")
    parser.add_argument("--train-pictures", type=int, default=0, help="use only so many, evenly spaced; 0 is all")
    parser.add_argument("--test-pictures", type=int, default=0, help="use only so many, evenly spaced; 0 is all")
    parser.add_argument("--seeds", type=int, help="memory banks or draws of channels (default 3, with --quick 1)")
    parser.add_argument("--pictures", type=int, help="pictures to time (default 5, with --quick 2)")
    parser.add_argument("--force", action="store_true", help="measure again although stored rows are there")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.set_defaults(do=_study)


def where(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """The options that say where the pictures are; several: categories may be given."""
    parser.add_argument("--data", help="folder of categories, each in MVTec AD layout or with OK and NOK, or demo")
    parser.add_argument("--category", action="append" if several else "store", help="folder below it"
                        + (", may be repeated; all takes every one" if several else ""))
    parser.add_argument("--good", metavar="DIR", help="in place of --data: a folder of good parts, wherever it lies")
    parser.add_argument("--bad", metavar="DIR", help="with --good: a folder of defective parts; folders in it are "
                        "kinds of defect")
    parser.add_argument("--good-name", default="good", help="name of the folders of good parts (default good)")


def check_where(args: argparse.Namespace) -> None:
    """ThesisError for options that contradict each other or say too little."""
    if args.good and (args.data or args.category):
        raise ThesisError("--good and --data: both say where the pictures are; needs --data with --category, or --good "
                          "with or without --bad")
    if args.bad and not args.good:
        raise ThesisError(f"--bad {args.bad}: needs --good, the folder of good parts")
    if args.good:
        return
    if not args.data:
        raise ThesisError("where are the pictures? needs --data with --category, or --good")
    from thesis_lib.data import folders
    root = folders.resolve(args.data)
    if not args.category:
        raise ThesisError(f"--category: needs one of {', '.join(folders.some_categories(root, args.good_name))}")


def found(args: argparse.Namespace, name: str | None) -> "Category":
    """The category of this name, or that of --good and --bad."""
    from thesis_lib.data import folders
    if args.good:
        return folders.of_folders(args.good, args.bad)
    assert name is not None
    return folders.scan(folders.resolve(args.data), name, args.good_name)


def source(args: argparse.Namespace) -> list[str]:
    """The options that say where the pictures are, as they are to be typed again."""
    if args.good:
        return ["--good", args.good, *(["--bad", args.bad] if args.bad else [])]
    name = [] if args.good_name == "good" else ["--good-name", args.good_name]
    return ["--data", args.data, "--category", args.category, *name]


def budget(text: str) -> float:
    """Milliseconds of an option such as 50ms or 0.2s."""
    match = re.fullmatch(r"\s*([\d.]+)\s*(ms|s)\s*", text)
    try:
        value = float(match[1]) * UNITS[match[2]] if match else 0.0
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r}: needs a time with its unit, such as 50ms or 0.2s")
    return value


def _study(args: argparse.Namespace) -> int:
    check_where(args)
    import torch

    from thesis_lib.evaluation.study import study
    from thesis_lib.report import study as page
    from thesis_lib.report import study_words
    for name in ("threads", "seeds", "pictures"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ThesisError(f"--{name} {getattr(args, name)}: needs at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    category = found(args, args.category).subset(args.train_pictures, args.test_pictures)
    prepared = {field.name: getattr(args, field.name) for field in dataclasses.fields(Preprocess)
                if field.name not in LEFT_OUT}
    whole = study(category, Preprocess(**prepared), backbone=args.backbone, weights=args.weights, engine=args.engine,
                  tiles=args.tiles, budget_ms=args.budget, device=args.device, quick=args.quick, trained=args.trained,
                  seeds=args.seeds, batch_size=args.batch_size, pictures=args.pictures, threads=args.threads,
                  force=args.force)
    asked = [*source(args), *(["--roi", args.roi] if isinstance(args.roi, str) else [])]
    written = page.write(whole, args.out or paths.outputs() / "study" / category.name, source=asked,
                         weights=args.weights)
    print(f"{category.name}: {study_words.recommendation(whole)}\n"
          f"{study_words.commands(whole, asked, args.weights)}\nopen this page, it shows why: {written}")
    if args.json:
        row = whole.table().iloc[whole.lines.index(whole.looked_at)].to_dict()
        print(json.dumps(results.plain(row | {"optimism": whole.optimism, "page": str(written)})))
    return 0
