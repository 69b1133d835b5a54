"""PatchCore: the distance of test patches to a coreset of nominal patches.

What is learned: the memory bank, M rows of D numbers, and the scaling of the channels where one is asked for.
Source: Roth et al. 2022 (arXiv 2106.08265); thesis ch. 3. Differs from the paper by default as the thesis does from
sec. 3.5.2 on: pooled embedding and plain maximum. The paper's own parts are embedding="original_d1024" and
score="reweighted".  Letters: B images, P patches, D embedding, M bank rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch

from thesis_lib.core import memory
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.parameters import one_of, parameter
from thesis_lib.core.preprocess import Size
from thesis_lib.methods.base import PatchDetector, Prediction, Stages, State
from thesis_lib.networks.backbones import INSIDE, Features
from thesis_lib.networks.maps import Extracted, Stored
from thesis_lib.patches import coreset, scoring, search, selection, transforms
from thesis_lib.patches.embedding import OUTSIDE, Patches


@dataclass(kw_only=True)
class PatchCore(PatchDetector):
    # None can be given; when the detector is there, the network's usual level stands in its place.
    layers: tuple[int, ...] | None = parameter(             # type: ignore[assignment]
        None, "levels whose feature maps are used, 1 to 4, e.g. 2,3; none: the network's usual one, 2 (of a PDN 1)",
        features=True)
    tap: str = parameter("output", "what a level gives: output, preactivation (before its last ReLU; ResNet) or branch "
                         "(inside its last block; ConvNeXt)", features=True, neutral=True)
    activation: str = parameter("identity", "function of every feature map: " + ", ".join(transforms.ACTIVATIONS),
                                features=True, neutral=True)
    embedding: str = parameter("avg_k3_s1_p1", "original_d1024 (original_d384 is not that of the official ensembles, "
                               "which pool each level to 1024 first), avg_k3_s1_p1, max_..., avgmax_..., adaptive_7 or "
                               "identity", features=True)
    scaling: str = parameter("none", "of the embedding's channels: " + ", ".join(transforms.SCALINGS), features=True,
                             neutral=True)
    entropy_base: float = parameter(2.0, "of the logarithm in normalise_weight: 2 in the thesis' text, 2.718281828 in "
                                    "its code", features=True)
    bank: int | str = parameter(1000, "rows of the memory bank, 1000 or 1%")
    coreset: str = parameter("greedy", "how they are chosen: greedy or random")
    projection: int | None = parameter(None, "dimensions of the random projection before greedy, or none", neutral=True)
    search: str = parameter("auto", "engine: " + ", ".join(search.ENGINES))
    distance: str = parameter("l2", "l2 or l2_squared")
    score: str = parameter("max", "rule: " + ", ".join(scoring.RULES))
    neighbours: int = parameter(9, "b of the weighted rules")
    search_threads: int | None = parameter(None, "threads of the search, none leaves its own", identity=False)
    memory_limit_gb: float | None = parameter(None, "refuse above it; none is 3/4 of the memory", identity=False)

    name: ClassVar[str] = "patchcore"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("activation", self.activation, transforms.ACTIVATIONS)
        one_of("scaling", self.scaling, transforms.SCALINGS)
        if not self.entropy_base > 1:
            raise ThesisError(f"entropy_base={self.entropy_base}: needs a number above 1")
        coreset.size(self.bank, 10**12)
        if str(self.bank).strip().isdigit():    # "1000" and 1000 are one configuration
            self.bank = int(self.bank)
        one_of("coreset", self.coreset, coreset.METHODS)
        one_of("search", self.search, search.ENGINES)
        one_of("distance", self.distance, search.DISTANCES)
        one_of("score", self.score, scoring.RULES)
        for name in ("projection", "search_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ThesisError(f"{name}={value}: needs at least 1, or none")
        if scoring.RULES[self.score].weighted and (self.distance != "l2" or self.neighbours < 2):
            raise ThesisError(f"score={self.score}: needs distance=l2 and neighbours from 2 on (with 1 the weight is 0 "
                             f"everywhere), not distance={self.distance}, neighbours={self.neighbours}")

    @property
    def stages(self) -> Stages:
        return self._stages(isinstance(self._learned("search_"), search.Pruned))

    @property
    def score_stages(self) -> Stages:
        return self._stages(self.coreset == "greedy")       # whose first rows bound the distance to all of them

    def _stages(self, bounded: bool) -> Stages:
        """bounded: bounds of the distances are enough for the score; the map, which is not timed, then searches for
        all patches when it is asked for.
        """
        rule, finder = scoring.RULES[self.score], self._learned("search_")
        k = rule.searched(self.neighbours)
        bounded = bounded and k == 1

        def find(patches: Patches) -> scoring.Neighbours:
            distances, indices = finder.query(patches.counted, k)
            return scoring.Neighbours(patches.spread(distances, OUTSIDE), patches.spread(indices, 0), patches)

        def bound(patches: Patches) -> scoring.Neighbours:
            pictures = patches.counted.split(patches.counts)
            distances, indices = zip(*map(finder.bounds, pictures), strict=True)    # of each picture two (n, 1)
            return scoring.Neighbours(patches.spread(torch.cat(distances), OUTSIDE),
                                      patches.spread(torch.cat(indices), 0), patches)

        def score(neighbours: scoring.Neighbours) -> Prediction:
            def located() -> torch.Tensor:
                exact = find(neighbours.patches) if bounded else neighbours
                return exact.distances[..., 0].unflatten(1, exact.patches.grid)             # (B, h, w)

            return Prediction(rule.score(neighbours, finder, self.neighbours), located if bounded else located())

        return {"extraction": self.extract, "embedding": self._embedding(self.scaling_),
                "search": bound if bounded else find, "score": score}

    @property
    def found_by(self) -> tuple:
        """All but the rule; of it the number of neighbours that it needs."""
        k = scoring.RULES[self.score].searched(self.neighbours)
        return k, *(value for name, value in self.parameters().items() if name not in ("score", "neighbours"))

    @property
    def serial(self) -> bool:
        return self.search == "cdist"

    def check_pictures(self, count: int, size: Size) -> None:
        super().check_pictures(count, size)
        places, dim = self.shape(size)
        rows = coreset.size(self.bank, count * places)
        if scoring.RULES[self.score].weighted and self.neighbours > rows:
            raise ThesisError(f"neighbours={self.neighbours}: needs at most {rows}, the rows of bank={self.bank}")
        coreset.check_memory(count * places, dim, self.memory_limit_gb, self.projection)

    def gather(self, maps: Extracted | Stored) -> np.ndarray:
        """Patches of all pictures (N, D) float32, in an unnamed file on disk, so that memory stays bounded.

        `places_` are their numbers among all patches, those that do not count included; None where all do.
        """
        self.keeps_, embed = maps.keeps, self._embedding()
        n, expected = 0, len(maps.samples)                                  # pictures, where known beforehand
        inside: list[torch.Tensor] = []

        def patches() -> Iterator[torch.Tensor]:
            nonlocal n
            for features in maps.batches(self.levels):
                embedded = embed(features)
                vectors, (_, places, dim) = embedded.counted, embedded.vectors.shape        # of (b, P, D) those inside
                n += len(vectors)
                coreset.check_memory(max(n, expected * places), dim, self.memory_limit_gb, self.projection)
                if embedded.inside is not None:
                    inside.append(embedded.inside.flatten())
                yield vectors

        collected = memory.on_disk(patches())
        self.places_ = torch.cat(inside).nonzero()[:, 0].numpy() if inside else None
        self.scaling_ = transforms.fit(self.scaling, collected, self.entropy_base)
        return collected if self.scaling_ is None else self.scaling_.in_place(collected)

    def learn(self, collected: np.ndarray) -> Self:
        rows = coreset.size(self.bank, len(collected))
        if self.coreset == "greedy" and self.keeps_:
            self.rows_, self.found_seconds_ = selection.select(collected, rows, seed=self.seed,
                                                               projection=self.projection)
        else:
            self.found_seconds_ = 0.0
            self.rows_ = coreset.select(collected, rows, method=self.coreset, seed=self.seed,
                                        projection=self.projection)
        self._set_bank(torch.from_numpy(np.array(collected[self.rows_])))
        if self.places_ is not None:            # what a row of the bank was: picture and place
            self.rows_ = self.places_[self.rows_]
        return self

    def state(self) -> State:
        state = {"bank": self._learned("bank_")}
        if self.scaling_ is not None:
            state |= {"scaling.shift": self.scaling_.shift, "scaling.factor": self.scaling_.factor}
        return state

    def restore(self, state: State) -> None:
        self.scaling_ = None
        if self.scaling != "none":
            self.scaling_ = transforms.Scaling(state["scaling.shift"], state["scaling.factor"])
        self._set_bank(state["bank"])

    def _embedding(self, scaling: transforms.Scaling | None = None) -> Callable[[Features], Patches]:
        """Feature maps -> Patches: activation, pooling, scaling of the channels."""
        embed, activate = self.embed_of(), transforms.ACTIVATIONS[self.activation]

        def patches(features: Features) -> Patches:
            embedded = embed({level: x if level == INSIDE else activate(x) for level, x in features.items()})
            return embedded if scaling is None else embedded._replace(vectors=scaling(embedded.vectors))

        return patches

    def _set_bank(self, bank: torch.Tensor) -> None:
        self.bank_ = bank                                                   # (M, D)
        self.search_ = search.ENGINES[self.search](self.distance, self.search_threads).fit(bank)
