"""The command `thesis reproduce`: the configurations of chapters 2 and 3 on real pictures."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from thesis_lib.core import results
from thesis_lib.core.errors import ThesisError

if TYPE_CHECKING:
    from thesis_lib.evaluation.verdicts import Scored


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command below those of `thesis`."""
    parser = commands.add_parser("reproduce", help="measure the configurations of chapters 2 and 3 on real pictures",
                                 description="Measure what the statements of chapters 2 and 3 are judged by: five "
                                 "memory banks of each configuration on each category. Says beforehand how long it "
                                 "takes. What is there already is not measured again, so the same command goes on "
                                 "where it was interrupted.")
    parser.add_argument("--data", action="append", default=[], help="folder of categories, or one category; may be "
                        "repeated")
    parser.add_argument("--category", action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--weights", metavar="DIR", help="folder with NETWORK_*.safetensors of "
                        "resnet18, resnet34 and pdn_small")
    parser.add_argument("--part", action="append", default=[], help="only this part, such as levels; may be repeated "
                        "(--dry-run lists them)")
    parser.add_argument("--dry-run", action="store_true", help="say what is missing and how long it takes, and stop")
    parser.add_argument("--verdicts", action="store_true", help="measure nothing: say which statements hold by "
                        "what was measured")
    parser.add_argument("--literature", action="store_true", help="measure nothing: set what was measured beside "
                        "published values, and say which setting a gap is due to")
    parser.add_argument("--publish", metavar="DIR", help="measure nothing: write what was measured there, a line for "
                        "each configuration, the scores that verdicts need, and the verdicts")
    parser.add_argument("--from", metavar="DIR", dest="shipped", help="with --verdicts or --literature: take what "
                        "--publish wrote there, such as outputs/results/published, in place of --data and --weights")
    parser.set_defaults(do=_reproduce)


def _reproduce(args: argparse.Namespace) -> int:
    from thesis_lib.data import folders
    from thesis_lib.evaluation import compact, reproduction
    if args.shipped:
        if not (args.verdicts or args.literature) or args.data or args.weights:
            raise ThesisError("--from needs --verdicts or --literature, and neither --data nor --weights")
        lines = Path(args.shipped) / f"{compact.NAME}.jsonl"
        if not lines.is_file():
            raise ThesisError(f"{lines}: is not there; thesis reproduce --publish {args.shipped} writes it")
        return _literature(results.read(lines)) if args.literature else _verdicts(compact.read(lines))
    if not (args.data and args.weights):
        raise ThesisError("needs --data and --weights, or --from")
    found: dict[str, Path] = {}         # name of a category -> folder that it lies in
    for given in args.data:
        root = folders.resolve(given)
        names = folders.categories(root)
        root, names = (root, names) if names else (root.parent, [root.name])
        found |= dict.fromkeys(names, root)
    if lacking := set(args.category) - set(found):
        raise ThesisError(f"--category {', '.join(sorted(lacking))}: there are {', '.join(found)}")
    found = {name: root for name, root in found.items() if name in (args.category or found)}
    categories = [folders.scan(root, name) for name, root in found.items()]
    weights = reproduction.weights_of(Path(args.weights).expanduser())
    tasks = reproduction.tasks(categories, args.part)
    measured, waiting = reproduction.split(tasks, weights)
    if args.publish:
        return _publish(measured, Path(args.publish), f"{len(tasks) - len(waiting)} of {len(tasks)}")
    if args.literature:
        return _literature(compact.lines(measured))
    if args.verdicts:
        return _verdicts(compact.of_rows(measured))
    print(f"{len(tasks)} configurations on {', '.join(found)}, {len(tasks) - len(waiting)} measured")
    for part in dict.fromkeys(task.part for task in waiting):
        of_part = [task for task in waiting if task.part == part]
        print(f"  {part}: {len(of_part)} to measure, about {reproduction.seconds(of_part) / 60:.0f} min of one core "
              f"({reproduction.parts()[part].figures})", flush=True)
    if args.dry_run:
        return 0
    for number, (task, rows, processor, clock) in enumerate(reproduction.reproduce(waiting, weights), 1):
        auroc = 100 * rows["image_auroc"]
        named = {name: value for name, value in task.side.parameters.items() if name != "search"}
        print(f"{number}/{len(waiting)} {task.part} {task.category.name} {task.side.method} "
              f"{' '.join(f'{name}={value}' for name, value in named.items())}: {auroc.mean():.2f} % "
              f"({auroc.min():.2f} to {auroc.max():.2f}), {processor:.0f} s of the processor, {clock:.0f} s; "
              f"{reproduction.seconds(waiting[number:]) / 3600:.1f} h left", flush=True)
    return 0


def _publish(rows: list[results.Row], folder: Path, measured: str) -> int:
    from thesis_lib.evaluation import reproduction
    if not rows:
        raise ThesisError("--publish: nothing of these parts was measured yet")
    written = reproduction.publish(rows, folder)
    for file in written:
        print(f"{file}  {file.stat().st_size / 1e6:.2f} MB")
    print(f"{measured} configurations were measured")
    return 0


def _verdicts(scored: "Mapping[tuple[str, str], Scored]") -> int:
    import pandas as pd

    from thesis_lib.evaluation import verdicts
    from thesis_lib.evaluation.statements import statements
    from thesis_lib.report import tables
    records = pd.DataFrame(verdicts.records(verdicts.judge(statements(), scored), scored))
    print(tables.verdicts(records).to_string(index=False))
    print(tables.counted(records))
    return 0


def _literature(lines: list[results.Row]) -> int:
    from thesis_lib.evaluation import literature
    from thesis_lib.report import tables
    found = literature.measured(lines)
    told = {"Image AUROC, pixel AUROC and PRO, here and as published (%)": tables.literature(literature.beside(found)),
            "What one setting changes of the usual configuration here (points of image AUROC)":
                literature.experiments(found).round(2),
            f"Published values of the same network that differ by more than {literature.GAP:g} points":
                literature.gaps(found).round(2)}
    for title, table in told.items():
        print(f"{title}\n\n{table.to_string(na_rep='not measured')}\n")
    return 0
