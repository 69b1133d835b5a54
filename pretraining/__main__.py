"""python -m pretraining OUT.safetensors: train ResNet-18 on pictures made by formula."""

import argparse
import dataclasses
import json
import logging
import sys
from pathlib import Path

from pretraining.training import Recipe, train


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pretraining", description="Train ResNet-18 on pictures made by "
                                     "formula. An interrupted run goes on when the same command is given again.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("out", type=Path, help="the weights, a .safetensors file")
    for field in dataclasses.fields(Recipe):
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default, help=field.metadata["help"])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="of the CPU; none: PyTorch decides")
    parser.add_argument("--every-s", type=float, default=60.0, help="seconds between two checkpoints")
    args = vars(parser.parse_args(arguments))
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        recipe = Recipe(**{field.name: args.pop(field.name) for field in dataclasses.fields(Recipe)})
        print(json.dumps(train(recipe, **args), indent=1))
    except ValueError as error:
        print(f"pretraining: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pretraining: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
