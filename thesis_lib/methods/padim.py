"""PaDiM: the Mahalanobis distance of each patch to a Gaussian of its own position in the picture.

What is learned, per position: the mean mu and the factor L^-1 of the inverse covariance, d numbers and d x d. With a
diagonal covariance, what channels have to do with each other left out, L^-1 is d numbers, too, 1 / deviation.
Source: Defard et al. 2021 (arXiv 2011.08785); thesis sec. 2.7. Differs from the paper: a deeper level reaches the
finest grid by repetition, and the map is smoothed on that grid (1 position = the paper's 4 pixels) before its maximum.
The thesis' formula has no smoothing: sigma=0.
Letters: N training pictures, B pictures, P positions, D all channels, d channels kept.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch

from thesis_lib.core import memory
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.parameters import at_least, one_of, parameter
from thesis_lib.core.preprocess import Size
from thesis_lib.core.progress import track
from thesis_lib.methods.base import PatchDetector, Prediction, Stages, State, blur
from thesis_lib.networks.maps import Extracted, Stored
from thesis_lib.patches.embedding import OUTSIDE, Patches

log = logging.getLogger("thesis_lib")
COVARIANCES = ("full", "diagonal")
PANEL = 32              # rows of the factor kept together: what lies above the diagonal is stored only within them
WORKSPACE = 0.25        # GB of float64 that one block of positions may take while learning
CACHED = 16             # positions whose matrices are worked on together: what they need stays in the cache


@dataclass(kw_only=True)
class PaDiM(PatchDetector):
    layers: tuple[int, ...] = parameter((1, 2, 3), "levels whose feature maps are joined, 1 to 4", features=True)
    embedding: str = parameter("identity", "identity, or pooling such as avg_k3_s2_p1: fewer positions, less memory",
                               features=True)
    channels: int | None = parameter(100, "channels kept, drawn by the seed; none keeps all, and nothing is random")
    eps: float = parameter(0.01, "added to the diagonal of every covariance")
    covariance: str = parameter("full", "full, or diagonal: the variance of every channel alone, which is d numbers "
                                "a position in place of about d x d / 2", neutral=True)
    sigma: float = parameter(1.0, "positions of the Gaussian over the map before its maximum is the score; 0 for none")
    memory_limit_gb: float | None = parameter(None, "refuse above it; none is 3/4 of the memory", identity=False)

    name: ClassVar[str] = "padim"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels is not None and self.channels < 1:
            raise ThesisError(f"channels={self.channels}: needs at least 1, or none for all")
        if not self.eps > 0:
            raise ThesisError(f"eps={self.eps}: needs a number above 0; with fewer pictures than channels the "
                             "covariance has no inverse without it")
        at_least(self, 0, "sigma")
        one_of("covariance", self.covariance, COVARIANCES)

    @property
    def seeded(self) -> bool:
        return self.channels is not None

    @property
    def stages(self) -> Stages:
        factor = self._learned("factor_")

        def search(patches: Patches) -> torch.Tensor:
            found = distances(self._deviations(patches), factor)                                # (B, P)
            return patches.only_inside(found, OUTSIDE).unflatten(1, self.grid_)                 # (B, h, w)

        def score(heat: torch.Tensor) -> Prediction:
            return Prediction(blur(heat, self.sigma).flatten(1).amax(dim=1), heat)

        return {"extraction": self.extract, "embedding": self.embed_of(), "search": search, "score": score}

    def check_pictures(self, count: int, size: Size) -> None:
        super().check_pictures(count, size)
        self._check_count(count)
        self._check(*self.shape(size))

    def gather(self, maps: Extracted | Stored) -> np.ndarray:
        """All channels of all positions (N, P, D) float32, in an unnamed file on disk, whatever the seed keeps; NaN
        where a position of a picture does not count.
        """
        embed = self.embed_of()

        def patches() -> Iterator[torch.Tensor]:
            for features in maps.batches(self.layers):
                patches = embed(features)
                self.grid_ = patches.grid
                self._check(*patches.vectors.shape[1:])
                yield patches.only_inside(patches.vectors, torch.nan)               # (b, P, D)

        return memory.on_disk(patches())

    def drawn(self, total: int) -> np.ndarray:
        """Numbers (d,) of the channels that are kept of so many, ascending; the seed draws them."""
        return np.sort(np.random.default_rng(self.seed).choice(total, self.channels or total, replace=False))

    def learn(self, collected: np.ndarray) -> Self:
        """Mean and covariance of every position in float64, one block of positions after the other."""
        n, positions, total = collected.shape
        self._check_count(n)
        d = self._check(positions, total)
        self.channels_ = torch.from_numpy(self.drawn(total))
        self.mean_ = torch.empty(positions, d)
        full = self.covariance == "full"
        # Of the full one panels (P, rows, columns), of the diagonal one (P, d).
        self.factor_ = [torch.empty(positions, *shape) for shape in (panels(d) if full else [(d,)])]
        # float64 numbers of one position: what is read of it, and of that the d channels kept, both as float32, so half
        # of them. Its matrices count little: there are never more than those of CACHED positions.
        block = max(1, int(WORKSPACE * 1e9 / 8 / (n * total / 2 + n * d / 2)))
        starts = range(0, positions, block)
        for start in track(starts, len(starts), "gaussians"):
            part = slice(start, start + block)
            vectors = torch.from_numpy(np.array(collected[:, part]))[..., self.channels_]       # (N, p, d)
            for first, few in enumerate(vectors.transpose(0, 1).split(CACHED)):
                mean, inverse = gaussians(few.double(), self.eps, self.covariance)
                place = slice(start + first * CACHED, start + first * CACHED + len(few))
                self.mean_[place] = mean
                for panel in self.factor_:
                    rows, columns = panel.shape[-2:]
                    panel[place] = inverse[:, columns - rows:columns, :columns] if full else inverse
            memory.release(collected)
        unknown = int((self.factor_[0].flatten(1)[:, 0] == 0).sum())
        if unknown:
            log.warning("padim: %d of %d positions count in fewer than 2 training pictures: whatever is there, their "
                        "distance is 0", unknown, positions)
        return self

    def state(self) -> State:
        self._learned("factor_")
        state = {"channels": self.channels_, "mean": self.mean_, "grid": torch.tensor(self.grid_)}
        for number, panel in enumerate(self.factor_):
            state[f"factor.{number:03d}"] = panel
        return state

    def restore(self, state: State) -> None:
        self.channels_, self.mean_ = state["channels"], state["mean"]
        height, width = state["grid"].tolist()
        self.grid_ = height, width
        self.factor_ = [state[key] for key in sorted(state) if key.startswith("factor.")]

    def _deviations(self, patches: Patches) -> torch.Tensor:
        """y - mu, (B, P, d)."""
        return patches.vectors[..., self.channels_] - self.mean_

    def _check_count(self, pictures: int) -> None:
        if pictures < 2:
            raise ThesisError(f"{pictures} training picture: a covariance needs at least 2")

    def _check(self, positions: int, total: int) -> int:
        """Channels kept of all, or an error where there are fewer or their factors do not fit into memory."""
        d = total if self.channels is None else self.channels
        if d > total:
            raise ThesisError(f"channels={d}: layers {','.join(map(str, self.layers))} have {total}")
        memory.check(factor_gb(positions, d, self.covariance) + WORKSPACE, self.memory_limit_gb,
                     f"Gaussians of {positions} positions and {d} channels", "use fewer channels, a pooling stride in "
                     "the embedding or a deeper first level")
        return d


def gaussians(vectors: torch.Tensor, eps: float, covariance: str = "full") -> tuple[torch.Tensor, torch.Tensor]:
    """vectors (P, N, d) float64 -> mu (P, d), L^-1 (P, d, d) with L L^T = 1/(N-1) sum (x-mu)(x-mu)^T + eps I.

    Thesis sec. 2.7.1. The work is O(d^3), here and only here: once per position, not once per distance.
    covariance: of "diagonal" everything beside the diagonal is taken for 0, and that of L^-1 is returned, (P, d).
    Of a position N is how many of its vectors are not NaN; where these are fewer than 2, mu and L^-1 are 0.
    """
    absent = vectors.isnan().any(dim=2)                                                 # (P, N)
    if absent.any():
        return _gaussians_of_some(vectors, absent, eps, covariance)
    mean = vectors.mean(dim=1)
    return mean, _whitening(_products(vectors - mean[:, None], covariance) / (vectors.shape[1] - 1), eps)


def _gaussians_of_some(vectors: torch.Tensor, absent: torch.Tensor, eps: float,
                       covariance: str) -> tuple[torch.Tensor, torch.Tensor]:
    """`gaussians` where some vectors are absent (P, N): zeros in their place add nothing to the sums."""
    n = (~absent).sum(dim=1, keepdim=True)                                              # (P, 1)
    enough = (n > 1).to(vectors.dtype)
    mean = enough * vectors.nansum(dim=1) / n.clamp(min=1)
    centred = (vectors - mean[:, None]).masked_fill(absent[..., None], 0)
    sums = _products(centred, covariance)
    of_each = (-1, *[1] * (sums.ndim - 1))                      # one number for all that a position has
    factor = _whitening(sums / (n - 1).clamp(min=1).view(of_each), eps)
    return mean, enough.view(of_each) * factor


def _products(centred: torch.Tensor, covariance: str) -> torch.Tensor:
    """Sums of x x^T over N, (P, N, d) -> (P, d, d), or their diagonals (P, d)."""
    return centred.mT @ centred if covariance == "full" else centred.square().sum(dim=1)


def _whitening(covariance: torch.Tensor, eps: float) -> torch.Tensor:
    """L^-1 of covariance + eps I = L L^T, (P, d, d) or of diagonals (P, d); the covariance is changed."""
    if covariance.ndim == 2:
        return covariance.add_(eps).rsqrt_()
    covariance.diagonal(dim1=1, dim2=2).add_(eps)
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), identity, upper=False)


def distances(deviations: torch.Tensor, factor: list[torch.Tensor]) -> torch.Tensor:
    """sqrt((y-mu)^T Sigma^-1 (y-mu)) = |L^-1 (y-mu)|: deviations (B, P, d), panels of L^-1, O(d^2) each, or its
    diagonal (P, d) -> (B, P).
    """
    if factor[0].ndim == 2:
        return (deviations * factor[0]).norm(dim=2)
    y = deviations.permute(1, 2, 0)                                                 # (P, d, B)
    squared = torch.zeros(y.shape[0], y.shape[2])                                   # (P, B)
    # A panel (P, r, c) holds r rows of L^-1 up to their last diagonal entry: all further columns of them are 0, so the
    # first c numbers of y give r numbers of L^-1 (y - mu), and the squares of all panels add up.
    for panel in factor:
        squared += torch.bmm(panel, y[:, :panel.shape[2]]).square().sum(dim=1)
    return squared.sqrt().T


def panels(d: int) -> list[tuple[int, int]]:
    """(rows, columns) of the panels of a lower triangular d x d matrix: a panel ends with its last diagonal entry."""
    return [(min(PANEL, d - first), min(first + PANEL, d)) for first in range(0, d, PANEL)]


def factor_gb(positions: int, d: int, covariance: str = "full") -> float:
    """Gigabytes of all factors and means in float32."""
    numbers = sum(rows * columns for rows, columns in panels(d)) if covariance == "full" else d
    return positions * (d + numbers) * 4 / 1e9
