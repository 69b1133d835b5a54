"""The command `thesis`: run the notebooks, evaluate, time or export one method, look after data and machine."""

import argparse
import logging
import os
import sys
import traceback
import warnings
from contextlib import suppress
from pathlib import Path

from thesis_lib.commands import device, exit_codes, methods, reproduce, study
from thesis_lib.core.errors import ThesisError, user_message


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is one of `exit_codes`. What is wrong is told in one line on the error output."""
    code = 0
    try:
        try:
            code = _command(sys.argv[1:] if arguments is None else arguments)
        finally:                        # also after --help: what is left in the buffer can still fail to be written
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        code = exit_codes.CLOSED
        _stop_writing()
    except OSError as error:
        _stop_writing()
        code = code or _refuse(f"standard output: {error.strerror}")
    return code


def _command(arguments: list[str]) -> int:
    """`main` without what can happen to its output."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("thesis_lib").setLevel(logging.INFO)
    # What Pillow warns of and logs of damaged pictures: what matters becomes an error.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    if sys.platform == "win32":
        return _refuse("runs on Linux and macOS; on Windows, install it in the Windows Subsystem for Linux (WSL 2)")
    try:
        args = parser(arguments[0] if arguments else "").parse_args(arguments)
        return args.do(args)
    except ModuleNotFoundError as error:
        if (error.name or "thesis_lib").partition(".")[0] == "thesis_lib":
            return _defect()
        return _refuse(f"needs the package {error.name}, which the small installation for a device leaves out: "
                       "pip install 'thesis-lib[full]'")
    except KeyboardInterrupt:
        print("thesis: interrupted; what was finished is stored, the same command goes on from there", file=sys.stderr)
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        line = user_message(error)
        return _defect() if line is None else _refuse(line)


def _stop_writing() -> None:
    """Python's own last flush goes nowhere, instead of failing once more with lines of its own."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(message: str) -> int:
    print(f"thesis: error: {message}", file=sys.stderr)
    return exit_codes.WRONG_INPUT


def _defect() -> int:
    traceback.print_exc()
    print("thesis: this is a defect of thesis_lib and not of your input; please report it with the lines above",
          file=sys.stderr)
    return exit_codes.DEFECT


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """Of the whole command line; with a command, the methods are left out where it is another one that has them: to
    list their options torch is imported, which a device does not have.
    """
    top = argparse.ArgumentParser(prog="thesis", description=__doc__, epilog=exit_codes.TEXT)
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

    quick = commands.add_parser("quick", help="first results in a minute", description="Draw one demo category, "
                                "evaluate PatchCore on it, and write outputs/quick/index.html.")
    quick.add_argument("--category", default="bracket", help="granulate, weave or bracket (default bracket)")
    quick.set_defaults(do=_quick)

    render = commands.add_parser("render", help="copy executed notebooks to outputs/rendered", description="Copy the "
                                 "executed notebooks to outputs/rendered; refuses stale, failing or too large ones.")
    render.add_argument("--profile", default="demo", help="whose executed notebooks (default demo)")
    render.set_defaults(do=_render)

    docs = commands.add_parser("docs", help="build the documentation site", description="Build the site from the "
                               "executed notebooks and docs/; refuses stale, failing or unexecuted ones.")
    docs.add_argument("--profile", default="demo", help="whose executed notebooks (default demo)")
    docs.set_defaults(do=_docs)

    study.add(commands, command)
    reproduce.add(commands)
    methods.add(commands, command)
    device.add(commands)

    data = commands.add_parser("data", help="list, verify or generate pictures", description="Look after data sets.")
    data.add_argument("action", choices=("list", "verify", "demo"),
                      help="list: categories and counts; verify: open every picture, compare with Table 2.1 of the "
                           "thesis; demo: generate the demo pictures")
    data.add_argument("--data", default=None, help="folder of categories (default: demo, and all folders under data/)")
    data.add_argument("--good-name", default="good", help="name of the folders of good parts (default good)")
    data.set_defaults(do=_data)

    doctor = commands.add_parser("doctor", help="check this machine", description="Versions, threads, folders; torch "
                                 "and faiss are tried in processes of their own: a crash is a line, not an end.")
    doctor.set_defaults(do=_doctor)
    return top


def _run(args: argparse.Namespace) -> int:
    from thesis_lib.batch import forecast, run
    from thesis_lib.batch.plan import plan
    overrides = {}
    for item in args.parameter:
        name, equals, value = item.partition("=")
        if not equals:
            raise ThesisError(f"-p {item}: needs name=value")
        # A notebook runs in another folder: a path is meant from here.
        overrides[name] = str(Path(value).resolve()) if "/" in value and Path(value).exists() else value
    tasks = plan(args.profile, only=args.only, overrides=overrides)
    if args.dry_run:
        print(run.describe(tasks, force=args.force))
    print(forecast.estimate(tasks, jobs=args.jobs, force=args.force), flush=True)
    if args.dry_run:
        return 0
    if args.jobs > 1:
        print(f"{args.jobs} notebooks at a time share the processor: their times are not comparable", file=sys.stderr)
    outcomes = run.run(tasks, jobs=args.jobs, scheduler=args.scheduler, force=args.force)
    print(run.table(outcomes))
    if any(outcome.state in ("interrupted", "not started") for outcome in outcomes):
        return exit_codes.INTERRUPTED
    return 0 if all(outcome.state in ("done", "skipped") for outcome in outcomes) else exit_codes.SOME_FAILED


def _quick(args: argparse.Namespace) -> int:
    from thesis_lib.report import quick
    page, line = quick.build(args.category)
    print(f"{args.category}: image AUROC {line['auroc']:.1f} %, 95 % interval {quick.in_words(line)}, on "
          f"{line['n_test']} pictures that PatchCore had not seen\nopen this page, it says what that means: {page}")
    return 0


def _render(args: argparse.Namespace) -> int:
    from thesis_lib.report import pages
    for page in pages.publish(args.profile):
        print(f"{page.name}  {page.stat().st_size / 1e6:.2f} MB")
    return 0


def _docs(args: argparse.Namespace) -> int:
    from thesis_lib.report import site
    print(site.build(args.profile))
    return 0


def _data(args: argparse.Namespace) -> int:
    from thesis_lib.core import paths
    from thesis_lib.data import folders
    if args.action == "demo":
        print(folders.demo())
        return 0
    if args.data:
        roots = [folders.resolve(args.data)]
    else:
        roots = [folder for folder in sorted(paths.data().glob("[!.]*"))
                 if folder.is_dir() and folders.categories(folder, args.good_name)]
    if not roots:
        raise ThesisError(f"{paths.data()}: no data set yet; `thesis data demo` generates one, data/README.md says "
                         "where real pictures come from")
    problems = False
    for root in roots:
        names = folders.some_categories(root, args.good_name)
        print(f"{root}")
        if args.action == "verify":
            report = folders.verify(root, args.good_name)
            problems |= bool((report["problems"] != "").any())
            print(report.drop(columns=["problems", "notes"]).to_string(index=False))
            for column, text in ("problems", "{}: {}"), ("notes", "{}: note: {}"):
                for row in report[report[column] != ""].itertuples():
                    print(text.format(row.category, getattr(row, column)))
            continue
        for name in names:
            category = folders.scan(root, name, args.good_name)
            kinds = sorted({sample.defect for sample in category.test} - {"good"})
            print(f"  {name}: {len(category.train)} train, {(category.labels == 0).sum()} good and "
                  f"{category.labels.sum()} anomalous test pictures ({', '.join(kinds) or 'no defect'}), "
                  f"{'masks' if category.has_masks else 'no masks'}")
    return exit_codes.SOME_FAILED if problems else 0


def _doctor(args: argparse.Namespace) -> int:
    from thesis_lib.commands import doctor
    return 0 if doctor.examine() else exit_codes.SOME_FAILED


if __name__ == "__main__":
    sys.exit(main())
