"""Static post-training quantisation: the affine map by itself, and two tools that apply it to a whole network.

An array goes in, its integers come out; a float network and pictures to calibrate with go in, an integer one comes out.
Source: thesis sec. 2.5; Jacob et al. 2018 (arXiv 1712.05877). Differs from the thesis' text: the zero point is an
integer, the result is clipped, the range holds 0, and the step is S (the text divides it by 2^n once more).
`qdq` (ONNX Runtime) is behind engine="int8"; `torch_int8` is the thesis' way, kept to compare with.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from thesis_lib.core import files
from thesis_lib.core.errors import ThesisError
from thesis_lib.networks import backbones

OPERATORS = ["Conv", "MatMul", "Gemm", "Add", "MaxPool", "Relu"]     # norms and GELU of a ConvNeXt stay float
DEPRECATIONS = ("torch.ao.quantization is deprecated", "Please use quant_min and quant_max",
                "torch.quantize_per_tensor, torch.quantize_per_channel and other")


@dataclass(frozen=True)
class Affine:
    """Q(x) = clip(round(x / S) + Z, low, high) and back S (q - Z); one S and Z, or one per channel along `axis`.

    Rounds half to even; the reciprocal of S in float32, as torch.fake_quantize_* does: equal to it bit for bit.
    """

    scale: np.ndarray           # S, () or (C,) float32: the step
    zero_point: np.ndarray      # Z, () or (C,) int64: what 0.0 becomes
    low: int
    high: int
    axis: int | None = None

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Integers low..high, of x's shape."""
        steps = np.rint(np.asarray(x, dtype=np.float32) * self._along(np.float32(1) / self.scale, x))
        return np.clip(steps + self._along(self.zero_point, x), self.low, self.high).astype(np.int32)

    def dequantize(self, q: np.ndarray) -> np.ndarray:
        """float32; within `range` at most half a step S/2 away from what was quantised, beyond it at its ends."""
        return (q - self._along(self.zero_point, q)).astype(np.float32) * self._along(self.scale, q)

    @property
    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest number that survive, () or (C,) float32."""
        return self.scale * np.float32(self.low - self.zero_point), self.scale * np.float32(self.high - self.zero_point)

    def _along(self, values: np.ndarray, x: np.ndarray) -> np.ndarray:
        """values (C,) shaped so that they meet the channels of x; the one value of all as it is."""
        if self.axis is None:
            return values
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return values.reshape(shape)


def affine(x: np.ndarray, *, bits: int = 8, signed: bool = False, symmetric: bool = False, axis: int | None = None,
           quantile: float = 0.0) -> Affine:
    """S and Z for the values x: S = (max - min) / (2^n - 1), Z = low - round(min / S), the range widened to hold 0.

    symmetric: Z is the middle and S = 2 max|x| / (2^n - 1). axis: one map per channel along it.
    quantile: share of the values cut off at each end, 0 for min and max. Equal to torch's min/max observers.
    """
    x = np.asarray(x, dtype=np.float32)
    if not 2 <= bits <= 16:
        raise ThesisError(f"bits={bits}: needs 2 to 16")
    if not 0 <= quantile < 0.5:
        raise ThesisError(f"quantile={quantile}: needs 0 up to less than 0.5")
    if not x.size or not np.isfinite(x).all():
        raise ThesisError("x: needs finite numbers, at least one")
    # 1. One row of values per map: (1, all) or (C, values of a channel), and the 2^n integers they shall become.
    rows = x.reshape(1, -1) if axis is None else np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    low, high = (-2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2 ** bits - 1)
    # 2. The range [min, max], widened to hold 0: an exact zero (padding, ReLU) must stay one.
    smallest, largest = np.quantile(rows, [quantile, 1 - quantile], axis=1).astype(np.float32)
    smallest, largest = np.minimum(smallest, 0), np.maximum(largest, 0)
    if symmetric:
        reach = np.maximum(-smallest, largest)                          # max|x|
        smallest, largest = -reach, reach
    # 3. S spreads the range over 2^n - 1 steps, Z is where 0.0 comes to lie.
    scale = (largest - smallest) / np.float32(high - low)
    scale = np.maximum(scale, np.finfo(np.float32).eps)                 # a channel of zeros
    zero = np.clip(low - np.rint(smallest / scale), low, high)
    if symmetric:
        zero[:] = (low + high + 1) // 2
    shape = () if axis is None else (-1,)
    return Affine(scale.reshape(shape), zero.astype(np.int64).reshape(shape), low, high, axis)


def qdq(model: bytes, images: Iterable[torch.Tensor], *, reduce_range: bool = False, per_channel: bool = True) -> bytes:
    """ONNX float32 model -> int8 model, activations 8 bit affine, weights 8 bit symmetric (7 with reduce_range).

    The ranges are min and max over images, batches (b, 3, H, W). Raises ImportError without onnx and onnxruntime.
    """
    import onnxruntime.quantization as tool

    # The tool asks for one input of the network after the other, until it is given None.
    batches = iter(images)

    class Reader(tool.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(batches, None)
            return None if batch is None else {"images": batch[:, :3].contiguous().numpy()}

    with files.scratch_folder() as folder:
        plain, prepared, done = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "done"))
        plain.write_bytes(model)
        # 1. Batch norms are folded into the convolutions before them, constants computed.
        tool.quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        # 2. The float network runs over the images, which sets S and Z of every activation; those of the weights follow
        # from the weights. QDQ: each operator stands between a node that quantises and one that takes it back, and
        # ONNX Runtime puts an integer kernel in place of the three.
        tool.quantize_static(prepared, done, Reader(), quant_format=tool.QuantFormat.QDQ, per_channel=per_channel,
                             reduce_range=reduce_range, activation_type=tool.QuantType.QUInt8,
                             weight_type=tool.QuantType.QInt8, op_types_to_quantize=OPERATORS)
        return done.read_bytes()


class TorchInt8:
    """A backbone quantised by torch.ao, called like the float one. `nbytes`: its integers, scales and biases."""

    def __init__(self, backbone: backbones.Backbone, module: torch.nn.Module, engine: str) -> None:
        self.name, self.layers, self.weights = backbone.name, backbone.layers, backbone.weights
        self.channels, self.strides, self.engine, self._module = backbone.channels, backbone.strides, engine, module

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> dict[int, torch.Tensor]:
        backbones.check_images(self.name, images)
        with _torch_engine(self.engine):
            return dict(zip(self.layers, self._module(images), strict=True))

    @property
    def blocks(self) -> list[str]:
        """Kinds of the fused blocks in their order, e.g. ConvReLU2d: convolution, batch norm and ReLU in one kernel."""
        return [type(block).__name__ for block in self._blocks()]

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers: 1 of a weight, 8 of a scale with its zero point, 4 of a bias."""
        total = 0
        for block in self._blocks():
            weight = block.weight()
            scales = len(weight.q_per_channel_scales()) if weight.qscheme() == torch.per_channel_affine else 1
            total += weight.int_repr().nbytes + 8 * scales + block.bias().nbytes
        return total

    def _blocks(self) -> list[torch.ao.nn.quantized.Conv2d]:
        """Its quantised convolutions, fused with what follows them."""
        return [block for block in self._module.modules() if isinstance(block, torch.ao.nn.quantized.Conv2d)]


def torch_int8(backbone: backbones.Backbone, images: Iterable[torch.Tensor], *, engine: str = "x86",
               per_channel: bool | None = None, activations: str = "default") -> TorchInt8:
    """Fuse, observe images (batches (b, 3, H, W)), convert, with torch.ao.quantization in its FX form.

    engine: one of torch's own, see `torch_engines`. per_channel None: as the engine does by default (qnnpack per
    tensor, the others per channel). activations: "default" is torch's histogram, "minmax" the extremes. x86 and fbgemm
    keep activations to 7 bits either way. Raises ValueError for an engine that this build of torch lacks.
    """
    from torch.ao.quantization import observer, quantize_fx
    if activations not in ("default", "minmax"):
        raise ThesisError(f"activations={activations!r}: needs default or minmax")
    with _torch_engine(engine):
        config = torch.ao.quantization.get_default_qconfig(engine)
        if activations == "minmax":
            seven_bits = engine in ("x86", "fbgemm")
            config = config._replace(activation=observer.MinMaxObserver.with_args(reduce_range=seven_bits))
        if per_channel:
            config = config._replace(weight=observer.default_per_channel_weight_observer)
        elif per_channel is not None:
            config = config._replace(weight=observer.default_weight_observer)
        mapping = torch.ao.quantization.QConfigMapping().set_global(config)
        watched = None
        for batch in images:
            watched = watched or quantize_fx.prepare_fx(backbones.Maps(backbone), mapping, (batch,))
            with torch.no_grad():
                watched(batch)
        if watched is None:
            raise ThesisError("images: none to calibrate with")
        return TorchInt8(backbone, quantize_fx.convert_fx(watched), engine)


def torch_engines() -> list[str]:
    """Integer kernels that this build of torch has for this processor."""
    return [name for name in torch.backends.quantized.supported_engines if name != "none"]


@contextmanager
def _torch_engine(name: str) -> Iterator[None]:
    """torch keeps the engine in a global: set while it is needed, and its deprecations (known, 2.13) kept quiet."""
    if name not in torch_engines():
        raise ThesisError(f"engine={name!r}: this build of torch has {', '.join(torch_engines())}")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        with warnings.catch_warnings():
            for message in DEPRECATIONS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        torch.backends.quantized.engine = before
