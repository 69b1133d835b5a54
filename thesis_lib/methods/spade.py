"""SPADE: the distance of a picture to its nearest training pictures, and of its patches to theirs.

Source: Cohen and Hoshen 2020 (arXiv 2005.02357); thesis sec. 2.6. Differs from the paper by default: the pooled vector
is that of the deepest of `layers` (the paper's is the last level of the network, pooled=4). Nothing is random.
Letters: N training pictures, B pictures, P positions, D embedding, K nearest pictures, kappa nearest patches.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from thesis_lib.core import memory
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.parameters import one_of, parameter
from thesis_lib.methods.base import PatchDetector, Prediction
from thesis_lib.networks import backbones
from thesis_lib.networks.backbones import Features
from thesis_lib.patches import search
from thesis_lib.patches.embedding import Patches
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
            if (value := getattr(self, name)) is not None and value < 1:
                raise ThesisError(f"{name}={value}: needs at least 1")

    @property
    def stages(self):
        finder = self._learned("search_")

        def retrieve(pooled: Described) -> Retrieved:
            return Retrieved(*finder.query(pooled.vectors, self.k), pooled.features)

        def score(found: Retrieved) -> Prediction:
            return Prediction(found.distances.mean(dim=1), lambda: self.locate(found.features, found.pictures))

        return {"extraction": self.backbone_, "embedding": self._pool, "search": retrieve, "score": score}

    def locate(self, features: Features, pictures: torch.Tensor) -> torch.Tensor:
        """The pixel stage: map (B, h, w) = mean distance of each patch to its kappa nearest ones in the gallery.

        The gallery holds all positions of the training pictures retrieved, pictures (B, K). It is searched picture
        by picture, which gives the same neighbours and never needs its K*P*D numbers at once.
        """
        tests, grid = self.patches(features)                                       # (B, P, D)
        kappa, maps = min(self.kappa, tests.shape[1]), []
        for test, nearest in zip(tests, pictures.tolist(), strict=True):
            found = [self._engine().fit(self.patches(self._stored(picture)).vectors[0]).query(test, kappa)[0]
                     for picture in nearest]                                        # K times (P, kappa)
            best = torch.cat(found, dim=1)
            if self.kappa > best.shape[1]:
                raise ThesisError(f"kappa={self.kappa}: the gallery of k={self.k} pictures has {best.shape[1]} patches")
            maps.append(best.topk(self.kappa, dim=1, largest=False).values.mean(dim=1).unflatten(0, grid))
        return torch.stack(maps)

    def patches(self, features: Features) -> Patches:
        """Patches of the pixel stage (B, P, D) from the feature maps of a batch."""
        return self.embed_of()({level: features[level] for level in self.layers})

    @property
    def levels(self):
        return tuple(sorted({*self.layers, self.pooled}))

    def gather(self, maps) -> np.ndarray:
        """Pooled vector and feature maps of each picture in one row (N, F) float32, in an unnamed file on disk."""

        def rows():
            for features in maps.batches(self.levels):
                self.shapes_ = {level: tuple(features[level].shape[1:]) for level in self.layers}
                yield torch.cat([self._pool(features).vectors, *(features[level].flatten(1) for level in self.layers)],
                                dim=1)

        return memory.on_disk(rows())

    def learn(self, collected):
        if self.k > len(collected):
            raise ThesisError(f"k={self.k}: needs 1 to {len(collected)}, the training pictures")
        self.pictures_ = collected                                                  # (N, F)
        width = self.backbone_.channels[self.pooled]
        self.search_ = self._engine().fit(torch.from_numpy(np.array(collected[:, :width])))
        return self

    def state(self):
        self._learned("search_")
        return {"pictures": torch.from_numpy(np.array(self.pictures_)),
                "shapes": torch.tensor([self.shapes_[level] for level in self.layers])}

    def restore(self, state):
        self.shapes_ = dict(zip(self.layers, map(tuple, state["shapes"].tolist()), strict=True))
        self.learn(state["pictures"].numpy())

    def _engine(self) -> Search:
        return search.ENGINES[self.search](self.distance, self.search_threads)

    def _pool(self, features: Features) -> Described:
        return Described(features[self.pooled].mean(dim=(2, 3)), features)

    def _stored(self, picture: int) -> Features:
        """Feature maps {level: (1, C, h, w)} of one training picture."""
        row, features = torch.from_numpy(np.array(self.pictures_[picture])), {}
        start = self.backbone_.channels[self.pooled]
        for level, shape in self.shapes_.items():
            features[level] = row[start:start + math.prod(shape)].reshape(1, *shape)
            start += math.prod(shape)
        return features
