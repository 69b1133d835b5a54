"""Where weights come from: torchvision's download, a file that ships with the project, or one that is given.

The name of a network and of its weights goes in; a checkpoint by torchvision's key names, or a record of it, comes out.
"""

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from thesis_lib.core import files, paths
from thesis_lib.core.errors import ThesisError

if TYPE_CHECKING:       # see `torchvision`
    from torchvision.models import WeightsEnum

BUNDLED = {     # file, first digits of its SHA-256
    "resnet18": ("resnet18_procedural.safetensors", "46c50604f8db1e41"),
    "pdn_small": ("pdn_small_procedural.safetensors", "09fdf2c4e42649fd")}
_KEEP: list[torch.library.Library] = []


class WeightsError(ThesisError):
    """Weights are missing or do not fit; the message says what to do."""


class WeightsMissing(WeightsError):
    """They may be all right elsewhere, but this network's are not at hand here."""


def read(name: str, weights: str) -> dict[str, torch.Tensor]:
    """Checkpoint by the key names of torchvision, or of the published PDNs; WeightsError where it cannot be had."""
    if weights == "imagenet":
        return imagenet(name)
    path = bundled(name) if weights == "bundled" else Path(weights).expanduser()
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error


def write(state: Mapping[str, torch.Tensor], card: Mapping[str, Any], out: Path) -> None:
    """float16 file that `read` takes, with its card as JSON in the header; complete or not at all."""
    tensors = {key: value.detach().half().contiguous().cpu() for key, value in state.items()
               if not key.endswith("num_batches_tracked")}
    with files.replaced(out) as partial:
        safetensors.torch.save_file(tensors, partial, metadata={"card": json.dumps(card)})


def record(name: str, weights: str, seed: int = 0) -> dict[str, Any]:
    """Where the weights come from, without loading them: part of a result's identity."""
    if weights == "random":
        return {"source": "random", "seed": seed, "sha256": None}
    if weights == "imagenet":
        return {"source": "imagenet", "sha256": str(_tag(name))}
    if weights == "bundled":
        path, wanted = bundled(name), BUNDLED[name][1]
        sha256 = _sha256(path)
        if sha256 != wanted:
            raise WeightsError(f"{path}: hash {sha256}, the project's file has {wanted}; it is damaged or another one, "
                               "install the project again")
        return {"source": "bundled", "sha256": sha256}
    path = Path(weights).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        raise WeightsError(f"weights={weights!r}: needs imagenet, bundled, random or an existing .safetensors file")
    # The name of the file, not its folder: a result must not depend on where it lies.
    return {"source": path.name, "sha256": _sha256(path)}


def bundled(name: str) -> Path:
    """File of the weights that ship with the project; WeightsError where there is none."""
    if name not in BUNDLED:
        raise WeightsMissing(f"weights=bundled: there are none for {name}, only for {', '.join(BUNDLED)}; "
                           "give imagenet, random or a .safetensors file")
    return paths.weights() / BUNDLED[name][0]


def torchvision() -> ModuleType:
    """torchvision, also where its compiled operators do not load (PyPI's wheel beside the CPU build of torch).

    Only nms and qnms are declared, and only after the import has failed for want of them: none of them is
    used here, and where the operators do load a second declaration would be an error.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    for module in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
        del sys.modules[module]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEEP.append(library)       # the declaration lives as long as this object
    return importlib.import_module("torchvision")


def _sha256(path: Path) -> str:
    """First digits of a file's hash; WeightsError where it cannot be read."""
    try:
        return files.digest_of(path)[:16]
    except OSError as error:
        raise WeightsError(f"{path}: not readable ({error.strerror}); install the project again") from error


def _tag(name: str) -> "WeightsEnum":
    """torchvision's first version of the weights."""
    if name not in torchvision().models.list_models():
        raise WeightsMissing(f"weights=imagenet: torchvision has none for {name}; give a .safetensors file, bundled or "
                             "random")
    return torchvision().models.get_model_weights(name).IMAGENET1K_V1


def imagenet(name: str) -> dict[str, torch.Tensor]:
    """torchvision's file, downloaded once and hash-checked."""
    tag = _tag(name)
    try:
        return tag.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except OSError as error:                                # URLError is one, too
        raise WeightsMissing(
            f"weights=imagenet: {tag.url.rsplit('/', 1)[-1]} could not be downloaded ({error}); with a network it is "
            f"fetched once into torch's cache; without one give weights=bundled ({', '.join(BUNDLED)}), a .safetensors "
            "file or weights=random") from error
    except RuntimeError as error:                           # torch reports a hash mismatch as RuntimeError
        raise WeightsError(f"weights=imagenet: {error}; delete the file in torch's cache and try again") from error
