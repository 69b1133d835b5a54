"""What every method is: parameters, `fit` on nominal pictures, and a mapping of named stages.

In come batches of normalised pictures (B, 3, H, W), out comes a `Prediction`: a score (B,) and a map (B, h, w). The
thesis cuts inference at five time stamps (sec. 3.4.1). Here the cut is the architecture: `predict` folds the stages,
the timing harness walks them with a clock, the evaluation reuses the first ones for several memory banks.
"""

import copy
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from thesis_lib.core import files, parameters
from thesis_lib.core import tiles as tiling
from thesis_lib.core.errors import NotFittedError, ThesisError
from thesis_lib.core.parameters import parameter
from thesis_lib.core.preprocess import Preprocess, Sample, Size, height_width, in_pixels
from thesis_lib.data.pictures import Pictures
from thesis_lib.networks import backbones, engines
from thesis_lib.networks.maps import Extracted, Stored
from thesis_lib.networks.torch_setup import check_finite
from thesis_lib.patches.embedding import OUTSIDE, Embedding, parse

FORMAT = "2"            # of saved detectors; 1 did not know the size of its pictures
State = dict[str, torch.Tensor]
Stages = Mapping[str, Callable[[Any], Any]]


@dataclass(frozen=True)
class Prediction:
    """What a detector says of a batch of B pictures."""

    score: torch.Tensor             # (B,) higher is more anomalous
    located: torch.Tensor | Callable[[], torch.Tensor]      # the map, or what works it out when it is asked for
    sigma: float = 4.0              # pixels of the Gaussian over the full map, the method's `map_sigma`; 0 for none

    @cached_property
    def map(self) -> torch.Tensor:
        """(B, h, w) at grid resolution, OUTSIDE where nothing counts. The thesis times no segmentation, so a method may
        leave it until now.
        """
        return self.located() if callable(self.located) else self.located

    def full_map(self, size: Size) -> torch.Tensor:
        """(B, H, W) of this size: bilinear, then the Gaussian; what pixel AUROC and PRO are computed from."""
        def larger(maps: torch.Tensor) -> torch.Tensor:
            return F.interpolate(maps[:, None], height_width(size), mode="bilinear", align_corners=False)[:, 0]

        return blur(_averaged(larger, self.map), self.sigma)


def blur(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """maps (B, h, w) after a Gaussian of sigma positions within each; 0 changes nothing."""
    def smooth(maps: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(gaussian_filter(maps.numpy(), (0, sigma, sigma)))

    return _averaged(smooth, maps) if sigma else maps


def _averaged(average: Callable[[torch.Tensor], torch.Tensor], maps: torch.Tensor) -> torch.Tensor:
    """A weighted mean of neighbours, in which what is OUTSIDE has no part; it is OUTSIDE where all neighbours are."""
    outside = maps.isneginf()
    if not outside.any():
        return average(maps)
    weights = average((~outside).to(maps.dtype))
    return (average(maps.masked_fill(outside, 0)) / weights).where(weights > 0, OUTSIDE)


class _Offered:
    """What a method makes a field where it can be chosen, and a constant of its class where it cannot."""

    layers: tuple[int, ...]         # levels of the network
    tap: str = "output"             # what a level gives


@dataclass(kw_only=True)
class Detector(_Offered):
    """Constructor stores parameters, `fit` learns attributes with a trailing underscore.

    What every method has is told here; a subclass tells a field again where its default or help is another.
    """

    backbone: str = parameter("resnet18", "network: " + ", ".join(backbones.NAMES), features=True)
    weights: str = parameter("imagenet", "imagenet, bundled, random or a .safetensors file in torchvision's "
                             "key names", features=True)
    engine: str = parameter("eager", "what runs the network: eager (torch), fast (ONNX Runtime) or int8", features=True)
    calibration: int = parameter(100, "training pictures, evenly spaced, that set the ranges of int8", features=True)
    seed: int = parameter(0, "seed of everything random in fit")

    name: ClassVar[str]
    shared: ClassVar[tuple[str, ...]] = ()      # leading stages that do not depend on the seed; the network first
    trunk: ClassVar[str | None] = None          # engine of the network whose maps `gather` takes; None: `engine`
    in_parts: ClassVar[bool] = False            # whether it takes pictures of which parts do not count
    map_sigma: ClassVar[float] = Prediction.sigma       # pixels; 4 in the references of most, 0 where theirs has none

    def __post_init__(self) -> None:
        self.layers = backbones.check(self.backbone, self.layers, self.tap)
        engines.check(self.engine, self.calibration)

    @property
    def stages(self) -> Stages:
        """Ordered name -> callable; each takes what the previous one returned, the last returns a Prediction."""
        raise NotImplementedError

    @property
    def score_stages(self) -> Stages:
        """`stages` for one who asks for no map: the same scores to 1e-5, and less work where a method knows a way."""
        return self.stages

    @property
    def seeded(self) -> bool:
        """Whether the seed changes anything; where it does not, one evaluation says all."""
        return True

    def gather(self, maps: Extracted | Stored) -> Any:
        """What fit learns from and the seed has no part in, out of the feature maps of nominal pictures."""
        raise NotImplementedError

    def learn(self, collected: Any) -> Self:
        """The seeded part of fit; replaces what an earlier call learned."""
        raise NotImplementedError

    def state(self) -> State:
        """Learned tensors, enough for `restore`; without the network, which `save` adds."""
        raise NotImplementedError

    def restore(self, state: State) -> None:
        """Take over what `state` gave; the network is there."""
        raise NotImplementedError

    def fit(self, images: Iterable[torch.Tensor]) -> Self:
        """Learn from nominal pictures, batches (b, 3, H, W). Refuses test pictures that come through `Pictures`."""
        return self.learn(self.collect(images))

    def collect(self, images: Iterable[torch.Tensor]) -> Any:
        """Load the network, then `gather_nominal`; of `Pictures` it is checked beforehand what can be."""
        if isinstance(images, Pictures):
            _only_training(images.samples)
            self.check_training(len(images.samples), images.preprocess)
        self.backbone_ = self.network(self.levels, images)
        return self.gather_nominal(Extracted(self.backbone_, images))

    def gather_nominal(self, maps: Extracted | Stored) -> Any:
        """`gather` behind the guard: the only way in for fit and for the evaluation."""
        _only_training(maps.samples)
        collected = self.gather(maps)
        self.image_size_, self.preprocess_ = maps.image_size, maps.preprocess
        return collected

    def check_training(self, count: int, preprocess: Preprocess) -> None:
        """`check_pictures` for pictures that are prepared so, and ThesisError where parts of them do not count and the
        method takes only whole ones.
        """
        if preprocess.masked and not self.in_parts:
            what = "resize=pad" if preprocess.resize == "pad" else "roi of a mask picture"
            raise ThesisError(f"{what}: {self.name} takes whole pictures only; needs neither, or a method that "
                              "compares patches (patchcore, padim, spade, simplenet)")
        self.check_pictures(count, preprocess.shape)

    def check_pictures(self, count: int, size: Size) -> None:
        """ThesisError for what so many training pictures of this size cannot give these parameters.

        Whoever is about to read them asks first: the network must not see all of them to say what was known before.
        """
        if count < 1:
            raise ThesisError("fit was given no pictures")
        engines.check_packages(self.engine)
        backbones.maps(self.backbone, self.levels, height_width(size))

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

    def extract(self, images: torch.Tensor) -> backbones.Features:
        """The first stage of most methods: images (B, 3, H, W), of the size that fit has seen -> feature maps."""
        self.check_images(images)
        return self.backbone_(images)

    def check_images(self, images: torch.Tensor) -> None:
        """ThesisError for pictures of another size than those of fit, or with NaN: their scores would mean nothing."""
        wanted, given = self._learned("image_size_"), (images.shape[-2], images.shape[-1])
        if given != wanted:
            raise ThesisError(f"images of {in_pixels(given)} pixels: this {self.name} was fitted on "
                              f"{in_pixels(wanted)}; prepare them in the same way (`preprocess_` says how)")
        prepared = vars(self).get("preprocess_")
        if prepared is not None and prepared.masked != (images.shape[1] == 4):
            raise ThesisError(f"images of {images.shape[1]} channels: this {self.name} was fitted on pictures "
                              f"{'with' if prepared.masked else 'without'} a channel that says what of them counts; "
                              "prepare them in the same way (`preprocess_` says how)")
        check_finite("images", images)

    def predict(self, images: torch.Tensor) -> Prediction:
        """images (B, 3, H, W) -> Prediction; the input is left unchanged."""
        x: Any = images
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

    @property
    def serial(self) -> bool:
        """Whether the stages after the shared ones keep to one thread: several detectors can then be asked at once."""
        return False

    def adopt(self, other: "Detector") -> None:
        """Take over what `gather` left in a detector with the same `collected_by`."""
        vars(self).update({name: value for name, value in vars(other).items() if name.endswith("_")})

    def reseeded(self, seed: int) -> Self:
        """The same detector with another seed, sharing what `gather` learned."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def parameters(self, identity_only: bool = False) -> dict[str, Any]:
        """Effective parameters by name; identity_only: those that can change a result, as a row stores them."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)
                if f.metadata["identity"] or not identity_only}

    def deciding(self) -> dict[str, Any]:
        """What an identity is made of: without the neutral parameters that have their default."""
        return parameters.deciding(self, self.parameters(identity_only=True))

    def save(self, path: str | Path, *, compact: bool = False, card: Mapping[str, Any] | None = None) -> Path:
        """One safetensors file: tensors, and in its header parameters, size of the pictures and how they were
        prepared, as JSON.

        compact: trained networks as float16, and without a backbone of bundled weights, which `load` takes from the
        project. card: what else is to be told of it, as JSON in the header.
        """
        path, trunk = Path(path), self._learned("backbone_")
        learned, network = self.state(), {f"backbone.{key}": value for key, value in engines.state(trunk).items()}
        if compact:
            learned = {key: value.half() if key.startswith("networks.") and value.is_floating_point() else value
                       for key, value in learned.items()}
            network = {} if trunk.weights["source"] == "bundled" and self.engine == "eager" else network
        tensors = {key: value.contiguous() for key, value in (learned | network).items()}
        prepared = self.preprocess_ and parameters.values(self.preprocess_)
        header = {"format": FORMAT, "method": self.name, "parameters": json.dumps(self.parameters()),
                  "weights": json.dumps(self.backbone_.weights), "image_size": json.dumps(self.image_size_),
                  "preprocess": json.dumps(prepared)} | ({"card": json.dumps(card)} if card else {})
        with files.replaced(path) as partial:
            safetensors.torch.save_file(tensors, partial, metadata=header)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Detector as it was saved; `preprocess_` prepares pictures for it where fit got `Pictures`, else it is None.
        `card_` is what `save` was told of it.

        Raises ThesisError that names the file.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                state = {key: file.get_tensor(key) for key in file.keys()}     # noqa: SIM118  (no mapping)
        except (OSError, safetensors.SafetensorError) as error:
            raise ThesisError(f"{path}: not a readable detector file ({error})") from error
        for name, values in state.items():
            try:
                check_finite(name, values)
            except ThesisError as error:
                raise ThesisError(f"{path}: {error}; fit and save it again") from None
        if header.get("format") != FORMAT or header.get("method") != cls.name:
            raise ThesisError(f"{path}: holds method {header.get('method')} in format {header.get('format')}, "
                              f"needs {cls.name} in format {FORMAT}; fit and save it again")
        given = json.loads(header["parameters"])
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value
                                  for key, value in given.items()}
        detector = cls(**fields)
        height, width = json.loads(header["image_size"])
        detector.image_size_ = height, width
        prepared = json.loads(header["preprocess"])
        detector.preprocess_ = prepared and Preprocess(**prepared)
        # Tensors of the network begin with "backbone."; all others are what the method has learned.
        trunk = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
        learned = {key: value.float() if value.dtype == torch.float16 else value for key, value in state.items()
                   if not key.startswith("backbone.")}
        weights = json.loads(header["weights"])
        if trunk:
            detector.backbone_ = engines.restore(detector.backbone, detector.levels, trunk, weights, detector.tap)
        else:
            detector.backbone_ = backbones.load(detector.backbone, detector.levels, "bundled", tap=detector.tap)
            if detector.backbone_.weights != weights:
                raise ThesisError(f"{path}: belongs to {weights}, the bundled weights are "
                                  f"{detector.backbone_.weights}; fit and save it again")
        detector.backbone_ = detector.backbone_.tiled(getattr(detector, "tiles", None))
        detector.restore(learned)
        vars(detector)["card_"] = json.loads(header.get("card", "{}"))
        return detector

    def _learned(self, attribute: str) -> Any:
        try:
            return self.__dict__[attribute]
        except KeyError:
            raise NotFittedError(f"{type(self).__name__} has learned nothing yet: call fit first") from None


@dataclass(kw_only=True)
class PatchDetector(Detector):
    """What the methods have in common that compare patch vectors: how feature maps become these."""

    layers: tuple[int, ...]         # levels whose feature maps become patches; each method has a default of its own
    embedding: str = parameter("identity", "identity, original_d1024, avg_k3_s1_p1, max_..., avgmax_... or adaptive_7",
                               features=True)
    join: str = parameter("repeat", "how a deeper level reaches the finest grid: repeat or interpolate", features=True)
    tiles: tuple[int, int] | None = parameter(
        None, "columns x rows of tiles, such as 2x2, in which the network sees a picture, one after the other, each "
        f"with {tiling.OVERLAP} pixels of its neighbours: less memory; or none", features=True, neutral=True)

    shared: ClassVar[tuple[str, ...]] = ("extraction", "embedding")
    in_parts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.embed_of()
        if self.tiles is None:
            return
        if len(self.tiles) != 2 or min(self.tiles) < 1:
            raise ThesisError(f"tiles={'x'.join(map(str, self.tiles))}: needs columns x rows, each at least 1")
        if self.tiles == (1, 1):                # the whole picture, by whatever name
            self.tiles = None
        elif self.backbone in backbones.PDNS:
            raise ThesisError(f"tiles={self.tiles[0]}x{self.tiles[1]}, backbone={self.backbone}: it cuts off the rim "
                              "of what it sees, so tiles do not fit together; needs a ResNet or ConvNeXt")

    def network(self, levels: tuple[int, ...], images: Iterable[torch.Tensor]) -> backbones.Backbone | engines.Exported:
        return super().network(levels, images).tiled(self.tiles)

    @property
    def network_by(self) -> tuple:
        return *super().network_by, self.tiles

    def embed_of(self) -> Embedding:
        """Feature maps {level: (B, C, h, w)} -> Patches, as the parameters say."""
        return parse(self.embedding, self.join)

    def shape(self, size: Size) -> tuple[int, int]:
        """(P, D) of a picture of this size before there is one; ThesisError where the maps give no patches."""
        features = backbones.maps(self.backbone, self.levels, height_width(size))
        _, places, dim = self.embed_of()({level: features[level] for level in self.layers}).vectors.shape
        return places, dim

    def check_pictures(self, count: int, size: Size) -> None:
        super().check_pictures(count, size)
        self.shape(size)
        if self.tiles is not None:
            tiling.check(height_width(size), self.tiles)


def _only_training(samples: Iterable[Sample]) -> None:
    for sample in samples:
        if sample.split != "train":
            raise ThesisError(f"{sample.path}: is a {sample.split} picture; fit takes training pictures only")
