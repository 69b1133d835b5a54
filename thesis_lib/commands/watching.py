"""`thesis detect bundle --watch folder/`: its options, its signals, and how verdicts are printed."""

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from thesis_lib.core.errors import ThesisError

if TYPE_CHECKING:       # `thesis --help` should not wait for it
    from thesis_lib.device.verdicts import Verdict


def add(detect: argparse.ArgumentParser) -> None:
    """The options of a loop, to those of `thesis detect`."""
    loop = detect.add_argument_group("watching", "Pictures are scored as they come into a folder, until SIGTERM or "
                                     "Ctrl-C; the picture in hand is finished, and the exit code is then 0. What is "
                                     "done is kept in the hidden folder .thesis of that folder and survives a kill "
                                     "and a restart.")
    loop.add_argument("--watch", metavar="FOLDER", help="score the pictures in it and all that will come; names that "
                      "begin with a dot are ignored. A picture is an error when it cannot be read and has not changed "
                      "for 5 s. With --json there is a heartbeat every 10 s")
    loop.add_argument("--command", metavar="WORDS", help="run for each picture that is not OK, without a shell, one at "
                      "a time, for 10 s at most; {picture}, {score} (nan for an error) and {verdict} are filled in")
    loop.add_argument("--keep", type=int, metavar="N", help="copy pictures that are not OK into FOLDER/alarms, where "
                      "the last N stay")
    loop.add_argument("--done", metavar="WHAT", help="what happens to a picture that has its verdict: delete, or "
                      "move:DIR (default: it stays). One with an error stays for a minute, as somebody may still write "
                      "to it")


def check_unused(args: argparse.Namespace) -> None:
    """ThesisError for options of a loop, or no pictures, where nothing is watched."""
    for option in ("command", "keep", "done"):
        if getattr(args, option) is not None:
            raise ThesisError(f"--{option}: is for --watch FOLDER; leave it out, or watch a folder")
    if not args.pictures:
        raise ThesisError("no pictures: needs some, or --watch FOLDER")


def watch(args: argparse.Namespace) -> int:
    """Watch the folder until a signal; 0 then."""
    from thesis_lib.device import actions
    from thesis_lib.device.bundle import Bundle
    from thesis_lib.device.loop import Loop, Options

    if args.pictures:
        raise ThesisError(f"{args.pictures[0]}: is given beside --watch; needs pictures, or a folder to watch")
    if args.maps:
        raise ThesisError("--maps: would fill the disk of a watched folder; leave it out (--keep N keeps alarms)")
    if args.keep is not None and args.keep < 1:
        raise ThesisError(f"--keep {args.keep}: needs at least 1")
    with _stopping() as asked:
        options = Options(command=actions.command_of(args.command) if args.command is not None else (), keep=args.keep,
                          done=None if args.done is None else actions.done_of(args.done, args.watch),
                          history=args.history)
        loop = Loop(Bundle.open(args.bundle), args.watch, engine=args.engine, threads=args.threads, options=options,
                    tell=lambda verdict: tell(verdict, args.json), beat=_beat if args.json else lambda _: None,
                    say=lambda line: print(f"thesis: {line}", file=sys.stderr, flush=True))
        loop.run(lambda: bool(asked))
    return 0


def tell(verdict: "Verdict", as_json: bool) -> None:
    """One line, out of our hands when this returns; as text, an error goes to the error output."""
    if as_json:
        print(verdict.json(), flush=True)
    elif verdict.error is None:
        print(verdict.text(), flush=True)
    else:
        print(f"thesis: {verdict.text()}", file=sys.stderr, flush=True)


def _beat(heartbeat: dict[str, Any]) -> None:
    print(json.dumps(heartbeat), flush=True)


@contextmanager
def _stopping() -> Iterator[list[int]]:
    """A list that is empty until SIGTERM or Ctrl-C; a second Ctrl-C does not wait for the picture in hand."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
