"""SPADE: the distance of a picture to its nearest training pictures, and of its patches to theirs.

Nothing is learned but kept: of every training picture its pooled vector and its feature maps.
Source: Cohen and Hoshen 2020 (arXiv 2005.02357); thesis sec. 2.6. The image stage is DN2 (Bergman, Cohen and Hoshen
2020, arXiv 2002.10445). Differs from the paper by default: the pooled vector is that of the deepest of `layers` (the
paper's is the last level of the network, pooled=4). Nothing is random. Unlike byungjae89/SPADE-pytorch, the levels are
joined as in the paper, where that averages a map of each, and nothing is added to the differences of two patches
(there 1e-6 to each number, up to 3.4e-6 of a map).
Letters: N training pictures, B pictures, P positions, D embedding, K nearest pictures, kappa nearest patches.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch

from thesis_lib.core import memory
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.parameters import one_of, parameter
from thesis_lib.core.preprocess import Size
from thesis_lib.methods.base import PatchDetector, Prediction, Stages, State
from thesis_lib.networks import backbones
from thesis_lib.networks.backbones import INSIDE, Features
from thesis_lib.networks.maps import Extracted, Stored
from thesis_lib.patches import embedding, search
from thesis_lib.patches.embedding import OUTSIDE, Patches
from thesis_lib.patches.search import Search


class Described(NamedTuple):
    vectors: torch.Tensor           # (B, C) mean over all positions of one level
    features: Features


class Retrieved(NamedTuple):
    distances: torch.Tensor         # (B, K) ascending
    pictures: torch.Tensor          # (B, K) training pictures
    features: Features


@dataclass(kw_only=True)
class SPADE(PatchDetector):
    layers: tuple[int, ...] = parameter((1, 2, 3), "levels of the pixel stage, 1 to 4", features=True)
    pooled: int | None = parameter(None, "level whose pooled vector gives the image score, 4 in the paper; none is the "
                                   "deepest of layers", features=True)
    k: int = parameter(50, "K nearest training pictures: mean distance is the image score, patches are the gallery")
    kappa: int = parameter(1, "nearest patches of the gallery whose mean distance is the map")
    distance: str = parameter("l2_squared", "l2_squared as in the paper, or l2; of both stages")
    embedding: str = parameter("identity", "of the pixel stage: identity, or pooling such as avg_k3_s2_p1, 16 times "
                               "less work")
    join: str = parameter("repeat", "how a deeper level reaches the finest grid: repeat or interpolate")
    search: str = parameter("auto", "engine: " + ", ".join(search.ENGINES))
    search_threads: int | None = parameter(None, "threads of the search, none leaves its own", identity=False)

    name: ClassVar[str] = "spade"
    seeded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pooled = max(self.layers) if self.pooled is None else backbones.check(self.backbone, (self.pooled,))[0]
        one_of("search", self.search, search.ENGINES)
        one_of("distance", self.distance, search.DISTANCES)
        for name in ("k", "kappa", "search_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ThesisError(f"{name}={value}: needs at least 1")

    @property
    def stages(self) -> Stages:
        finder = self._learned("search_")

        def retrieve(described: Described) -> Retrieved:
            distances, pictures = finder.query(described.vectors, self.k)
            return Retrieved(distances, pictures, described.features)

        def score(nearest: Retrieved) -> Prediction:
            # The map is worked out when it is asked for: the thesis times the image score alone.
            return Prediction(nearest.distances.mean(dim=1), lambda: self.locate(nearest.features, nearest.pictures))

        return {"extraction": self.extract, "embedding": self._pool, "search": retrieve, "score": score}

    def locate(self, features: Features, pictures: torch.Tensor) -> torch.Tensor:
        """The pixel stage: map (B, h, w) = mean distance of each patch to its kappa nearest ones in the gallery.

        The gallery holds all positions of the training pictures retrieved, pictures (B, K). It is searched picture
        by picture, which gives the same neighbours and never needs its K*P*D numbers at once.
        """
        patches, values = self.patches(features), []
        for test, nearest in zip(patches.counted.split(patches.counts), pictures.tolist(), strict=True):
            # 1. Of each of the K training pictures the kappa patches nearest to each patch of the test picture.
            candidates = []
            for picture in nearest:
                gallery = self.patches(self._stored(picture)).counted               # (P, D)
                kappa = min(self.kappa, len(gallery))           # it has no more patches to be near to
                distances, _ = self._engine().fit(gallery).query(test, kappa)       # (P, kappa)
                candidates.append(distances)
            # 2. The kappa nearest of all are among these; their mean is the value of the map.
            best = torch.cat(candidates, dim=1)                                     # (P, K * kappa)
            if self.kappa > best.shape[1]:
                raise ThesisError(f"kappa={self.kappa}: the gallery of k={self.k} pictures has {best.shape[1]} patches")
            values.append(best.topk(self.kappa, dim=1, largest=False).values.mean(dim=1))
        return patches.spread(torch.cat(values), OUTSIDE).unflatten(1, patches.grid)

    def patches(self, features: Features) -> Patches:
        """Patches of the pixel stage (B, P, D) from the feature maps of a batch."""
        return self.embed_of()({level: x for level, x in features.items() if level in (INSIDE, *self.layers)})

    @property
    def levels(self) -> tuple[int, ...]:
        return tuple(sorted({*self.layers, self._pooled_level}))

    def check_pictures(self, count: int, size: Size) -> None:
        super().check_pictures(count, size)
        self._check_k(count)
        places, _ = self.shape(size)
        if self.kappa > self.k * places:
            raise ThesisError(f"kappa={self.kappa}: the gallery of k={self.k} pictures has {self.k * places} patches")

    def gather(self, maps: Extracted | Stored) -> np.ndarray:
        """Pooled vector and feature maps of each picture in one row (N, F) float32, in an unnamed file on disk."""

        def rows() -> Iterator[torch.Tensor]:
            for features in maps.batches(self.levels):
                kept = [*self.layers, *({INSIDE} & features.keys())]
                self.shapes_ = {level: tuple(features[level].shape[1:]) for level in kept}
                flat = [features[level].flatten(1) for level in kept]               # (b, C * h * w) each
                yield torch.cat([self._pool(features).vectors, *flat], dim=1)

        return memory.on_disk(rows())

    def learn(self, collected: np.ndarray) -> Self:
        self._check_k(len(collected))
        self.pictures_ = collected                                                  # (N, F)
        width = self.backbone_.channels[self._pooled_level]                         # the vector is the row's begin
        self.search_ = self._engine().fit(torch.from_numpy(np.array(collected[:, :width])))
        return self

    def state(self) -> State:
        self._learned("search_")
        return {"pictures": torch.from_numpy(np.array(self.pictures_)),
                "shapes": torch.tensor(list(self.shapes_.values()))}

    def restore(self, state: State) -> None:
        shapes = state["shapes"].tolist()       # of the levels, and one more where not all pixels count
        self.shapes_ = {level: tuple(shape) for level, shape in zip((*self.layers, INSIDE), shapes, strict=False)}
        self.learn(state["pictures"].numpy())

    @property
    def _pooled_level(self) -> int:
        """`pooled`, which is no longer None when the detector is there."""
        assert self.pooled is not None
        return self.pooled

    def _check_k(self, count: int) -> None:
        if self.k > count:
            raise ThesisError(f"k={self.k}: needs 1 to {count}, the training pictures")

    def _engine(self) -> Search:
        return search.ENGINES[self.search](self.distance, self.search_threads)

    def _pool(self, features: Features) -> Described:
        maps = features[self._pooled_level]
        if INSIDE not in features:
            return Described(maps.mean(dim=(2, 3)), features)
        vectors = embedding.parse("identity")({level: features[level] for level in (INSIDE, self._pooled_level)})
        return Described(torch.stack([counted.mean(dim=0) for counted in vectors.counted.split(vectors.counts)]),
                         features)

    def _stored(self, picture: int) -> Features:
        """Feature maps {level: (1, C, h, w)} of one training picture, cut out of its row as `gather` has put them."""
        row, features = torch.from_numpy(np.array(self.pictures_[picture])), {}
        start = self.backbone_.channels[self._pooled_level]
        for level, shape in self.shapes_.items():
            features[level] = row[start:start + math.prod(shape)].reshape(1, *shape)
            start += math.prod(shape)
        return features
