"""python -m pretraining OUT.safetensors: train ResNet-18 on pictures made by formula."""

import sys

from pretraining.command import run
from pretraining.training import Recipe, train


def main(arguments: list[str] | None = None) -> int:
    return run("python -m pretraining", "Train ResNet-18 on pictures made by formula.", Recipe, train, arguments)


if __name__ == "__main__":
    sys.exit(main())
