"""What the commands of this package share: a recipe's fields as options, one JSON object printed at the end."""

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from thesis_lib.commands.methods import converter
from thesis_lib.core.errors import ThesisError
from thesis_lib.training.descent import TrainingError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def run(program: str, purpose: str, recipe: "type[DataclassInstance]",
        train: Callable[..., dict[str, Any] | None], arguments: list[str] | None) -> int:
    """Exit code 0, 2 for wrong input, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog=program, description=f"{purpose} An interrupted run goes on when the same "
                                     "command is given again.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("out", type=Path, help="the weights, a .safetensors file")
    for field in dataclasses.fields(recipe):
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        parser.add_argument(f"--{field.name}", type=converter(field.type), default=default,
                            help=field.metadata["help"])
    parser.add_argument("--torch-device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="of the CPU; none: PyTorch decides")
    parser.add_argument("--every-s", type=float, default=60.0, help="seconds between two checkpoints")
    args = vars(parser.parse_args(arguments))

    def work() -> dict[str, Any] | None:
        threads = args.pop("threads")
        if threads is not None and threads < 1:
            raise TrainingError(f"threads={threads}: needs at least 1")
        torch.set_num_threads(threads or torch.get_num_threads())
        chosen = recipe(**{field.name: args.pop(field.name) for field in dataclasses.fields(recipe)})
        return train(chosen, **args)

    return printed(work)


def printed(work: Callable[[], dict[str, Any] | None]) -> int:
    """Print what the work gives, as JSON; its exit code: 0, 2 for wrong input, 130 after Ctrl-C."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        print(json.dumps(work(), indent=1))
    except ThesisError as error:
        print(f"pretraining: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pretraining: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0
