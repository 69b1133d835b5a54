"""The command `thesis`: run the notebooks, evaluate, time or export one method, look after data and machine."""

import argparse
import logging
import sys
from pathlib import Path

from thesis_lib import device_cli, method_cli

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when all went well, 1 when something failed on the way, 2 for wrong input, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("thesis_lib").setLevel(logging.INFO)
    try:
        args = parser(arguments[0] if arguments else "").parse_args(arguments)
        return args.do(args)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] == "thesis_lib":
            raise
        print(f"thesis: error: needs the package {error.name}, which the small installation for a device leaves out: "
              "pip install 'thesis-lib[full]'", file=sys.stderr)
        return EXIT_USAGE
    except (ValueError, FileNotFoundError) as error:        # DataError, WeightsError, BatchError are ValueErrors
        print(f"thesis: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("thesis: interrupted; what was finished is stored, the same command goes on from there", file=sys.stderr)
        return EXIT_INTERRUPTED


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """Of the whole command line; with a command, the methods are left out where it is another one that has them: to
    list their options torch is imported, which a device does not have.
    """
    top = argparse.ArgumentParser(prog="thesis", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="execute the notebooks", description="Execute the notebooks of a profile in "
                              "fresh processes. Finished ones are skipped, a failed one does not stop the others.")
    run.add_argument("--profile", default="demo", help="smoke, demo, mvtec or pi of notebooks/runs.yml (default demo)")
    run.add_argument("--only", action="append", default=[], metavar="NOTEBOOK", help="number or name; may be repeated")
    run.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE",
                     help="set a parameter in every notebook that has it; may be repeated")
    run.add_argument("--jobs", type=int, default=1, help="notebooks at a time (default 1)")
    run.add_argument("--scheduler", metavar="ADDRESS", help="Dask scheduler whose workers execute the notebooks, "
                     "tcp://host:8786; data and outputs lie on a file system that all of them share")
    run.add_argument("--force", action="store_true", help="execute finished ones again, too")
    run.add_argument("--dry-run", action="store_true", help="show what would run, with parameters, and stop")
    run.set_defaults(do=_run)

    render = commands.add_parser("render", help="copy executed notebooks to outputs/rendered", description="Copy the "
                                 "executed notebooks to outputs/rendered; refuses stale, failing or too large ones.")
    render.add_argument("--profile", default="demo", help="whose executed notebooks (default demo)")
    render.set_defaults(do=_render)

    docs = commands.add_parser("docs", help="build the documentation site", description="Build the site from the "
                               "executed notebooks and docs/; refuses stale, failing or unexecuted ones.")
    docs.add_argument("--profile", default="demo", help="whose executed notebooks (default demo)")
    docs.set_defaults(do=_docs)

    method_cli.add(commands, command)
    device_cli.add(commands)

    data = commands.add_parser("data", help="list, verify or generate pictures", description="Look after data sets.")
    data.add_argument("action", choices=("list", "verify", "demo"),
                      help="list: categories and counts; verify: open every picture, compare with Table 2.1 of the "
                           "thesis; demo: generate the demo pictures")
    data.add_argument("--data", default=None, help="folder of categories (default: demo, and all folders under data/)")
    data.set_defaults(do=_data)

    doctor = commands.add_parser("doctor", help="check this machine", description="Versions, threads, folders; torch "
                                 "and faiss are tried in processes of their own: a crash is a line, not an end.")
    doctor.set_defaults(do=_doctor)
    return top


def _run(args) -> int:
    from thesis_lib import batch
    overrides = {}
    for item in args.parameter:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"-p {item}: needs name=value")
        # A notebook runs in another folder: a path is meant from here.
        overrides[name] = str(Path(value).resolve()) if "/" in value and Path(value).exists() else value
    tasks = batch.plan(args.profile, only=args.only, overrides=overrides)
    if args.dry_run:
        print(batch.describe(tasks, force=args.force))
    print(batch.estimate(tasks, jobs=args.jobs, force=args.force), flush=True)
    if args.dry_run:
        return 0
    if args.jobs > 1:
        print(f"{args.jobs} notebooks at a time share the processor: their times are not comparable", file=sys.stderr)
    outcomes = batch.run(tasks, jobs=args.jobs, scheduler=args.scheduler, force=args.force)
    print(batch.table(outcomes))
    if any(outcome.state in ("interrupted", "not started") for outcome in outcomes):
        return EXIT_INTERRUPTED
    return 0 if all(outcome.state in ("done", "skipped") for outcome in outcomes) else EXIT_FAILED


def _render(args) -> int:
    from thesis_lib import render
    for page in render.publish(args.profile):
        print(f"{page.name}  {page.stat().st_size / 1e6:.2f} MB")
    return 0


def _docs(args) -> int:
    from thesis_lib import site
    print(site.build(args.profile))
    return 0


def _data(args) -> int:
    from thesis_lib import data, paths
    if args.action == "demo":
        print(data.demo())
        return 0
    roots = [data.resolve(args.data)] if args.data else sorted(
        {folder.parent.parent.parent for folder in paths.data().glob("*/*/train/good")})
    if not roots:
        raise ValueError(f"{paths.data()}: no data set yet; `thesis data demo` generates one, data/README.md says "
                         "where real pictures come from")
    problems = False
    for root in roots:
        names = data.some_categories(root)
        print(f"{root}")
        if args.action == "verify":
            report = data.verify(root)
            problems |= bool((report["problems"] != "").any())
            print(report.to_string(index=False))
            continue
        for name in names:
            category = data.scan(root, name)
            kinds = sorted({sample.defect for sample in category.test} - {"good"})
            print(f"  {name}: {len(category.train)} train, {(category.labels == 0).sum()} good and "
                  f"{category.labels.sum()} anomalous test pictures ({', '.join(kinds) or 'no defect'}), "
                  f"{'masks' if category.has_masks else 'no masks'}")
    return EXIT_FAILED if problems else 0


def _doctor(args) -> int:
    from thesis_lib import doctor
    return 0 if doctor.examine() else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
