"""What every method is: parameters, `fit` on nominal pictures, and a mapping of named stages.

The thesis cuts inference at five time stamps (sec. 3.4.1). Here the cut is the architecture: `predict` folds the
stages, the timing harness walks them with a clock, the evaluation reuses the first ones for several memory banks.
"""

import copy
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from sklearn.exceptions import NotFittedError

from thesis_lib import backbones, engines
from thesis_lib.features import Extracted, Stored

FORMAT = "1"            # of saved detectors


@dataclass(frozen=True)
class Prediction:
    score: torch.Tensor             # (B,) higher is more anomalous
    located: torch.Tensor | Callable[[], torch.Tensor]      # the map, or what works it out when it is asked for

    @cached_property
    def map(self) -> torch.Tensor:
        """(B, h, w) at grid resolution. The thesis times no segmentation, so a method may leave it until now."""
        return self.located() if callable(self.located) else self.located

    def full_map(self, side: int, sigma: float = 4.0) -> torch.Tensor:
        """(B, side, side): bilinear, then a Gaussian of sigma pixels, as the official PatchCore code does."""
        full = F.interpolate(self.map[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]
        return blur(full, sigma)


def blur(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """maps (B, h, w) after a Gaussian of sigma positions within each; 0 changes nothing."""
    return torch.from_numpy(gaussian_filter(maps.numpy(), (0, sigma, sigma))) if sigma else maps


def parameter(default: Any, help: str, *, identity: bool = True, features: bool = False) -> Any:
    """Dataclass field with the text that `thesis evaluate METHOD --help` shows.

    identity False: the parameter cannot change a result, so a stored row stays valid when it differs.
    features True: it decides what `gather` returns, so that detectors equal in these can share it.
    """
    return field(default=default, metadata={"help": help, "identity": identity, "features": features})


@dataclass(kw_only=True)
class Detector:
    """Constructor stores parameters, `fit` learns attributes with a trailing underscore."""

    seed: int = parameter(0, "seed of everything random in fit")

    name: ClassVar[str]
    shared: ClassVar[tuple[str, ...]] = ()      # leading stages that do not depend on the seed; the network first
    tap = "output"                              # of the network; a field where a method offers others
    trunk: ClassVar[str | None] = None          # engine of the network whose maps `gather` takes; None: `engine`

    @property
    def stages(self) -> Mapping[str, Callable]:
        """Ordered name -> callable; each takes what the previous one returned, the last returns a Prediction."""
        raise NotImplementedError

    @property
    def seeded(self) -> bool:
        """Whether the seed changes anything; where it does not, one evaluation says all."""
        return True

    def gather(self, maps: Extracted | Stored) -> Any:
        """What fit learns from and the seed has no part in, out of the feature maps of nominal pictures."""
        raise NotImplementedError

    def learn(self, collected: Any) -> "Detector":
        """The seeded part of fit; replaces what an earlier call learned."""
        raise NotImplementedError

    def state(self) -> dict[str, torch.Tensor]:
        """Learned tensors, enough for `restore`."""
        raise NotImplementedError

    def restore(self, state: dict[str, torch.Tensor], weights: dict) -> None:
        raise NotImplementedError

    def fit(self, images: Iterable[torch.Tensor]) -> "Detector":
        """Learn from nominal pictures, batches (b, 3, H, W). Refuses test pictures that come through `Pictures`."""
        return self.learn(self.collect(images))

    def collect(self, images: Iterable[torch.Tensor]) -> Any:
        """Load the network, then `gather_nominal`."""
        self.backbone_ = self.network(self.levels, images)
        return self.gather_nominal(Extracted(self.backbone_, images))

    def gather_nominal(self, maps: Extracted | Stored) -> Any:
        """`gather` behind the guard: the only way in for fit and for the evaluation."""
        _only_training(maps.samples)
        return self.gather(maps)

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels of the network that are needed."""
        return self.layers

    def network(self, levels: tuple[int, ...], images: Iterable[torch.Tensor]) -> backbones.Backbone | engines.Exported:
        """The network up to these levels, on its engine; int8 is calibrated on the images, nominal ones as in fit."""
        _only_training(getattr(images, "samples", ()))
        return engines.build(self.backbone, levels, self.weights, self.trunk or self.engine, images, self.calibration,
                             self.tap)

    @property
    def network_by(self) -> tuple:
        """Parameters of `network`; detectors equal in these can share one extraction. An eager network can be cut
        anywhere, so levels do not count for it.
        """
        engine = self.trunk or self.engine
        exported = () if engine == "eager" else (self.levels, self.calibration)
        return self.backbone, self.weights, self.tap, engine, *exported

    def predict(self, images: torch.Tensor) -> Prediction:
        """images (B, 3, H, W) -> Prediction; the input is left unchanged."""
        x = images
        for stage in self.stages.values():
            x = stage(x)
        return x

    @property
    def collected_by(self) -> tuple:
        """Method and parameters on which `gather` depends; equal ones can share what it returns."""
        return self.name, *(getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata["features"])

    @property
    def found_by(self) -> tuple | None:
        """Everything on which all stages but the last depend, the seed included; fitted detectors equal in it can
        share what these return. None: nothing can be shared.
        """
        return None

    def adopt(self, other: "Detector") -> None:
        """Take over what `gather` left in a detector with the same `collected_by`."""
        vars(self).update({name: value for name, value in vars(other).items() if name.endswith("_")})

    def reseeded(self, seed: int) -> "Detector":
        """The same detector with another seed, sharing what `gather` learned."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def parameters(self, identity_only: bool = False) -> dict:
        """Effective parameters by name, as a result row stores them."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)
                if f.metadata["identity"] or not identity_only}

    def save(self, path: str | Path) -> Path:
        """One safetensors file: tensors, and parameters as JSON in its header."""
        path = Path(path)
        tensors = {key: value.contiguous() for key, value in self.state().items()}
        header = {"format": FORMAT, "method": self.name, "parameters": json.dumps(self.parameters()),
                  "weights": json.dumps(self.backbone_.weights)}
        safetensors.torch.save_file(tensors, path, metadata=header)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Detector":
        """Detector as it was saved. Raises ValueError that names the file."""
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                state = {key: file.get_tensor(key) for key in file.keys()}     # noqa: SIM118  (no mapping)
        except (OSError, safetensors.SafetensorError) as error:
            raise ValueError(f"{path}: not a readable detector file ({error})") from error
        if header.get("format") != FORMAT or header.get("method") != cls.name:
            raise ValueError(f"{path}: holds method {header.get('method')} in format {header.get('format')}, "
                             f"needs {cls.name} in format {FORMAT}")
        parameters = json.loads(header["parameters"])
        detector = cls(**{key: tuple(value) if isinstance(value, list) else value
                          for key, value in parameters.items()})
        detector.restore(state, json.loads(header["weights"]))
        return detector

    def _learned(self, attribute: str) -> Any:
        try:
            return self.__dict__[attribute]
        except KeyError:
            raise NotFittedError(f"{type(self).__name__} has learned nothing yet: call fit first") from None


def _only_training(samples: Iterable) -> None:
    for sample in samples:
        if sample.split != "train":
            raise ValueError(f"{sample.path}: is a {sample.split} picture; fit takes training pictures only")


def one_of(name: str, value: str, known: Iterable[str]) -> None:
    """ValueError that lists what is known, for a parameter with another value."""
    if value not in known:
        raise ValueError(f"{name}={value!r}: needs one of {', '.join(known)}")
