"""The commands for a device: `thesis measure` and `thesis detect`. They need a bundle and neither torch nor FAISS."""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thesis_lib.commands import exit_codes, watching
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import MAPS, DataError


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Both commands, below those of `thesis`."""
    what = "check a bundle of `thesis export`, then its stage times by the thesis' protocol"
    measure = commands.add_parser("measure", help=what, description=what)
    measure.add_argument("bundle", help="folder that `thesis export` wrote")
    measure.add_argument("--images", metavar="DIR", help="folder of pictures to time (default: those of the bundle)")
    measure.add_argument("--threads", type=_numbers, default=(None,), metavar="1,2,4",
                         help="of the network and the search, one measurement each (default: all processors)")
    _engine(measure)
    measure.add_argument("--out", type=Path, help="file for the rows, one a line (default: outputs/results)")
    measure.add_argument("--pictures", type=int, default=5, help="pictures to time (default 5)")
    measure.add_argument("--warmup", type=int, default=3, help="untimed passes per picture (default 3)")
    measure.add_argument("--repeats", type=int, default=5, help="timed passes per picture (default 5)")
    measure.set_defaults(do=_measure)

    what = "score pictures with a bundle of `thesis export`"
    detect = commands.add_parser("detect", help=what, description=what + ". Of each it prints the score, OK or "
                                 "anomalous (above the threshold), and a confidence 1 / (1 + exp(-(score - threshold) "
                                 "/ s)), s the interquartile range of the scores of good pictures: 0.5 is the "
                                 "threshold, 1 far above it. It orders pictures and is no probability. A warning says "
                                 "that the light has changed when more of the last 50 pictures than chance explains "
                                 "are darker or brighter, of less or more contrast or sharpness, or stranger all over, "
                                 "than the good ones that the bundle was made from. A picture that "
                                 "cannot be read does not stop the others, but the exit code is then 1, or 2 where "
                                 "none could be.")
    detect.add_argument("bundle", help="folder that `thesis export` wrote")
    detect.add_argument("pictures", nargs="*", type=Path, metavar="PICTURE")
    _engine(detect)
    detect.add_argument("--threads", type=int, help="of the network and the search (default: all processors)")
    detect.add_argument("--maps", action="store_true", help=f"write {MAPS}/PICTURE.png beside each: grey, the "
                        "threshold is the middle")
    detect.add_argument("--history", type=Path, metavar="FILE", help="keeps the light of the last 50 pictures from one "
                        "call to the next; without it they are those of this call")
    detect.add_argument("--json", action="store_true", help="one object a line: time, picture, score, threshold, "
                        "verdict (OK, anomalous or error), confidence, region (x, y, w, h in the original, of an "
                        "anomalous picture), milliseconds, bundle, and error where there is one")
    watching.add(detect)
    detect.set_defaults(do=_detect)


def times(name: str, row: Mapping[str, Any]) -> str:
    """A row of stage times in one line."""
    stages = ", ".join(f"{stage} {ms:.2f}" for stage, ms in row["stage_ms"].items())
    return (f"{name}: {row['total_ms']:.2f} ms a batch of {row['batch_size']} ({stages}), "
            f"{row['images_per_s']:.1f} pictures/s, {row['threads']} threads, spread {100 * row['spread']:.0f} %")


def _measure(args: argparse.Namespace) -> int:
    from thesis_lib.core import files, results
    from thesis_lib.device import run
    from thesis_lib.device.bundle import Bundle

    bundle = Bundle.open(args.bundle)
    images = run.pictures_of(args.images) if args.images else ()
    rows = []
    for threads in args.threads:
        row = run.measure(bundle, engine=args.engine, threads=threads, images=images,
                          pictures=args.pictures, warmup=args.warmup, repeats=args.repeats)
        parity = row["parity"]
        plain, way = parity["pictures"] - parity["on_way"], parity["whole_way"]
        decoded = (f"; of {parity['on_way']} JPEGs, decoded and resized here: {100 * way:.2g} % (limit "
                   f"{100 * parity['way_limit']:.2g} %)") if way is not None else ""
        print(f"scores of the bundle's {plain} pictures: at most {100 * parity['difference']:.2g} % from those at "
              f"export (limit {100 * parity['limit']:.2g} %){decoded}")
        print(f"verdicts: {parity['pictures'] - len(parity['flipped'])} of {parity['pictures']} as at export")
        print(times(row["category"], row))
        steps = ", ".join(f"{step} {ms:.2f}" for step, ms in row["opening_ms"].items())
        whose = "" if images else ", of pictures of the bundle; --images times yours"
        print(f"  before that, ms a picture: {steps}{whose}")
        facts = [f"first call {row['first_call_ms']:.1f} ms", f"loading {row['load_ms']:.0f} ms",
                 f"peak memory {_gb(row['peak_memory_gb'])}"]
        facts += [f"{name} {row['before'][name]} to {then}" for name, then in row["after"].items() if then is not None]
        print("  " + ", ".join(facts))
        for line in run.complaints(row):
            print(f"thesis: warning: {line}", file=sys.stderr)
        rows.append(row)
        if not args.out:
            files.write(results.path_of(row), results.line(row))
            print(f"  {results.path_of(row)}")
    if args.out:
        files.write(args.out, "".join(map(results.line, rows)))
        print(f"{args.out}: for outputs/results/devices of the desktop, one row for each of threads "
              f"{', '.join(str(row['threads']) for row in rows)}")
    return 0


def _detect(args: argparse.Namespace) -> int:
    from thesis_lib.device import run
    from thesis_lib.device.bundle import Bundle
    from thesis_lib.device.verdicts import Judge

    if args.watch is not None:
        return watching.watch(args)
    watching.check_unused(args)
    bundle = Bundle.open(args.bundle)
    judge, failed = Judge(bundle, args.engine), 0
    if bundle.confidence(args.engine, judge.threshold) is None:
        print(f"thesis: {args.bundle}: was exported before confidences were known and shows none; export it anew",
              file=sys.stderr)
    # A pattern such as p/**/*.png finds the maps of an earlier call, too.
    pictures = [file for file in args.pictures if file.parent.name != MAPS]
    light = run.watch(bundle, args.engine, args.history)
    if not pictures:
        raise ThesisError(f"{args.pictures[0]}: lies in a folder {MAPS}, which is for maps; needs pictures")
    with run.opened(bundle, args.engine, args.threads) as find:
        for file in pictures:
            start = time.perf_counter()
            try:
                found = find(file)
            except DataError as error:
                watching.tell(judge(str(file), error, start), args.json)
                failed += 1
                continue
            watching.tell(judge(str(file), found, start), args.json)
            for line in light.see(found.values):
                print(f"thesis: warning: {line}", file=sys.stderr)
            if args.maps:
                try:
                    run.save_map(found, judge.threshold, bundle.preprocess.shape, file, bundle.floor(args.engine),
                                 bundle.sigma)
                except OSError as error:
                    print(f"thesis: {run.map_of(file)}: {error.strerror}; the map is not written", file=sys.stderr)
                    failed += 1
    light.save()
    return exit_codes.after(failed, len(pictures) - failed)


def _gb(size: float | None) -> str:
    return "not told by this system" if size is None else f"{size:.2f} GB"


def _engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", choices=("float", "int8"), default="float", help="float32 or 8 bit integers")


def _numbers(text: str) -> tuple[int, ...]:
    """Of an option such as 1,2,4."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: needs numbers such as 1,2,4") from None
