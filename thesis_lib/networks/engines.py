"""What runs a backbone: torch ("eager"), or ONNX Runtime in float32 ("fast") or 8 bit integers ("int8").

All are called alike, images (B, 3, H, W) -> {level: (B, C, h, w)}, and declare name, layers, channels, strides and
weights. An exported network is bytes that ONNX Runtime reads by itself: a machine without torch can run it, too.
"""

import copy
import importlib
import io
import platform
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from thesis_lib.core.errors import ThesisError, one_line
from thesis_lib.core.identity import version_of
from thesis_lib.core.onnx_session import session
from thesis_lib.core.preprocess import DataError
from thesis_lib.data.pictures import Pictures, evenly
from thesis_lib.networks import backbones, quantize

ENGINES = ("eager", "fast", "int8")
OPSET = 17              # the first one with LayerNormalization
DEPRECATIONS = ("You are using the legacy TorchScript-based ONNX export", "The feature will be removed")
MODEL = "onnx"          # name of the bytes among the tensors of a saved detector


class EngineError(ThesisError):
    """An engine cannot be had here; the message says why."""


class Graph:
    """An ONNX model in ONNX Runtime, images (B, 3, H, W) -> its outputs.

    It runs on as many threads as torch is set to when it is called.
    """

    def __init__(self, model: bytes, what: str) -> None:
        self.model, self.what = model, what
        self._open()

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        if self._threads != torch.get_num_threads():
            self._open()
        outputs = self._session.run(None, {"images": images.detach().contiguous().numpy()})
        return [torch.from_numpy(values) for values in outputs]

    def _open(self) -> None:
        """A session keeps the threads it was made with, so another number needs another session."""
        _package("onnxruntime")
        self._threads = torch.get_num_threads()
        with _explained(self.what):
            self._session = session(self.model, self._threads)


class Exported:
    """A backbone in ONNX Runtime; tiles as of a `Backbone`."""

    tiles: tuple[int, int] | None = None

    def __init__(self, name: str, layers: Sequence[int], weights: dict[str, Any], model: bytes) -> None:
        self.name, self.layers, self.weights, self.model = name, tuple(layers), weights, model
        self.channels, self.strides = backbones.shapes(name, self.layers)
        self._graph = Graph(model, f"the network of {name}")

    def __call__(self, images: torch.Tensor) -> dict[int, torch.Tensor]:
        backbones.check_images(self.name, images)
        return backbones.features_of(self._graph, self, images)

    def cut(self, layers: Sequence[int]) -> "Exported":
        """Itself: a network that was exported ends where it was cut before."""
        if backbones.check(self.name, layers) != self.layers:
            raise EngineError(f"layers={','.join(map(str, layers))}: the exported network gives {self.layers}")
        return self

    def tiled(self, tiles: tuple[int, int] | None) -> "Exported":
        """The same, with pictures in so many columns and rows of tiles, or whole."""
        other = copy.copy(self)
        other.tiles = tiles
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the whole model file."""
        return len(self.model)


def check(engine: str, calibration: int) -> None:
    """ValueError naming the parameter that is wrong."""
    if engine not in ENGINES:
        raise ThesisError(f"engine={engine!r}: needs one of {', '.join(ENGINES)}")
    if calibration < 1:
        raise ThesisError(f"calibration={calibration}: needs at least 1 picture")


def check_packages(engine: str) -> None:
    """EngineError where a package is missing that the engine needs."""
    if engine != "eager":
        for package in ("onnx", "onnxruntime"):
            _package(package)


def build(name: str, layers: Sequence[int], weights: str = "imagenet", engine: str = "eager",
          images: Iterable[torch.Tensor] | None = None, calibration: int = 100,
          tap: str = "output") -> backbones.Backbone | Exported:
    """The backbone of `backbones.load` on an engine.

    int8 takes its ranges from at most `calibration` of the images, evenly spaced: `Pictures` or a list of batches
    (b, 3, H, W), and they must be nominal training pictures; the other engines do not look at them.
    Raises EngineError where a package is missing or the network does not convert.
    """
    check(engine, calibration)
    backbone = backbones.load(name, layers, weights, tap=tap)
    if engine == "eager":
        return backbone
    model = export(backbone)
    if engine == "int8":
        model = int8(model, f"the int8 network of {backbone.name}", _some(images, calibration))
    return Exported(backbone.name, backbone.layers, backbone.weights, model)


def export(backbone: backbones.Backbone) -> bytes:
    """The network as an ONNX model: input images (B, 3, H, W), one output per level, B, H and W free."""
    sides = {0: "B", 2: "H", 3: "W"}
    outputs = {}
    for level in backbone.layers:
        outputs[f"level{level}"] = {axis: f"{side}{level}" for axis, side in sides.items()}
    return convert(backbones.Maps(backbone), (torch.zeros(1, 3, 64, 64),), f"the network of {backbone.name}",
                   inputs=["images"], outputs=list(outputs), free={"images": sides, **outputs})


def convert(module: torch.nn.Module, example: tuple[torch.Tensor, ...], what: str, *, inputs: Sequence[str],
            outputs: Sequence[str], free: dict[str, dict[int, str]] | None = None) -> bytes:
    """module as an ONNX model; free: named axes, by input or output, that are not those of the example.

    By torch's first exporter: the newer one needs two more packages and gives the same operators here.
    """
    _package("onnx")
    file = io.BytesIO()
    with _explained(what), warnings.catch_warnings():
        for message in DEPRECATIONS:
            warnings.filterwarnings("ignore", message, DeprecationWarning)
        torch.onnx.export(module, example, file,        # type: ignore[arg-type]  # this exporter takes an open file, too
                          input_names=list(inputs), output_names=list(outputs), dynamic_axes=free,
                          opset_version=OPSET, dynamo=False)
    return file.getvalue()


def state(backbone: backbones.Backbone | Exported) -> dict[str, torch.Tensor]:
    """Tensors from which `restore` makes the same backbone again."""
    return packed(backbone.model) if isinstance(backbone, Exported) else backbone.levels.state_dict()


def restore(name: str, layers: Sequence[int], state: dict[str, torch.Tensor], weights: dict[str, Any],
            tap: str = "output") -> backbones.Backbone | Exported:
    """Backbone as a saved detector holds it; the engine is the one that it was saved with."""
    if MODEL in state:
        return Exported(name, backbones.check(name, layers), weights, unpacked(state))
    return backbones.restore(name, layers, state, weights, tap)


def packed(model: bytes) -> dict[str, torch.Tensor]:
    """A model as it lies among tensors, and out of them again: `unpacked`."""
    return {MODEL: torch.from_numpy(np.frombuffer(model, dtype=np.uint8).copy())}


def unpacked(state: dict[str, torch.Tensor]) -> bytes:
    """The bytes that `packed` was given."""
    return state[MODEL].numpy().tobytes()


def record(engine: str) -> dict[str, Any] | None:
    """What a result of ONNX Runtime depends on besides the parameters; part of its identity."""
    if engine == "eager":
        return None
    facts: dict[str, Any] = {"onnxruntime": version_of("onnxruntime")}
    if engine == "int8":
        facts["reduce_range"] = reduce_range()
    return facts


def reduce_range(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether weights keep to 7 bits here: x86 without VNNI adds two products u8*s8 in 16 bits, which can overflow.

    Also where nothing says whether an x86 processor has it.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return False
    try:
        return "vnni" not in Path(cpuinfo).read_text()
    except OSError:
        return True


def int8(model: bytes, what: str, images: Iterable[torch.Tensor], seven_bits: bool | None = None) -> bytes:
    """The model in 8 bit integers, its ranges those of the images.

    seven_bits: whether weights keep to 7 bits; None asks `reduce_range`.
    """
    _package("onnxruntime")
    with _explained(what):
        return quantize.qdq(model, images, reduce_range=reduce_range() if seven_bits is None else seven_bits)


def _some(images: Iterable[torch.Tensor] | None, count: int) -> Iterable[torch.Tensor]:
    """Batches of at most count pictures, evenly spaced."""
    if images is None or iter(images) is images:
        raise ThesisError("images: engine=int8 reads them once to calibrate and again to fit; needs Pictures or a list "
                         "of batches, not " + ("none" if images is None else "an iterator"))
    if isinstance(images, Pictures):
        return images.evenly(count)
    singles = [image for batch in images for image in batch]
    if not singles:
        raise ThesisError("images: no pictures to calibrate engine=int8 with")
    return [image[None] for image in evenly(singles, count)]


def _package(name: str) -> ModuleType:
    """The imported package; EngineError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EngineError(f"engine=fast and engine=int8 need the package {name} (pip install {name}); engine=eager "
                          f"does not ({error})") from error


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Exporter, quantiser and runtime have no common exception: whatever they raise becomes one line."""
    try:
        yield
    except DataError:                                       # a picture that cannot be read while calibrating
        raise
    except Exception as error:
        raise EngineError(f"ONNX Runtime does not take {what} ({one_line(error)}); engine=eager does without "
                          "it") from error
