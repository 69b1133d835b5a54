"""python -m pretraining.pdn OUT.safetensors: distil a PDN from the patch embedding of a larger network."""

import sys

from pretraining.command import run
from thesis_lib.training.distillation import Recipe, pdn


def main(arguments: list[str] | None = None) -> int:
    return run("python -m pretraining.pdn", "Distil a PDN from the patch embedding of a larger network.", Recipe, pdn,
               arguments)


if __name__ == "__main__":
    sys.exit(main())
