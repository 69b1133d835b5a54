"""Embeddings equal plain loops over numpy arrays; every refusal states the rule that was broken."""

import math

import numpy as np
import pytest
import torch

from thesis_lib.patches import embedding


def maps(*shapes, batch=2, seed=0):
    """{level: (B, C, h, w)} from 1 on; positive and negative, so that padding shows."""
    generator = torch.Generator().manual_seed(seed)
    return {level: torch.randn(batch, *shape, generator=generator) for level, shape in enumerate(shapes, 1)}


def windows(n, size):
    """Start and end of each window of an adaptive pooling from n to `size` values."""
    return [(i * n // size, math.ceil((i + 1) * n / size)) for i in range(size)]


def adaptive_1d(values, size):
    return np.array([values[start:end].mean() for start, end in windows(len(values), size)])


def bilinear(x, grid):
    """(h, w) onto the grid, pixel centres aligned, clamped at the border."""
    def line(n, size):
        at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, n - 1), at - low

    (top, bottom, v), (left, right, u) = line(x.shape[0], grid[0]), line(x.shape[1], grid[1])
    rows = x[top] * (1 - v)[:, None] + x[bottom] * v[:, None]
    return rows[:, left] * (1 - u) + rows[:, right] * u


def blockwise(x, grid):
    return np.array([[x[i * x.shape[0] // grid[0], j * x.shape[1] // grid[1]] for j in range(grid[1])]
                     for i in range(grid[0])])


def pool(x, kind, k, s, p):
    """(h, w): zeros count in the mean, never in the maximum."""
    padded = np.pad(x, p, constant_values=0 if kind == "avg" else -np.inf)
    side = [(n + 2 * p - k) // s + 1 for n in x.shape]
    reduce = np.mean if kind == "avg" else np.max
    return np.array([[reduce(padded[i * s:i * s + k, j * s:j * s + k]) for j in range(side[1])]
                     for i in range(side[0])])


def adaptive(x, size):
    rows, columns = (windows(n, size) for n in x.shape)
    return np.array([[x[a:b, c:d].mean() for c, d in columns] for a, b in rows])


def each_map(features, function):
    """function on every (h, w) map -> {level: list per picture of list per channel}."""
    return {level: [[function(channel) for channel in picture] for picture in x.double().numpy()]
            for level, x in features.items()}


def joined(pooled, join):
    """Levels on the first one's grid, channels in order -> (B, P, D)."""
    grid = pooled[1][0][0].shape
    pictures = [[join(channel, grid).ravel() for level in sorted(pooled) for channel in pooled[level][number]]
                for number in range(len(pooled[1]))]
    return np.array(pictures).transpose(0, 2, 1), grid


def original(features, dim, per_level=None):
    """3x3 neighbourhoods flattened channel by channel, resized, pooled to per_level, stacked, pooled again to dim."""
    grid = features[1].shape[-2:]
    levels = []
    for x in features.values():
        x = np.pad(x.double().numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
        h, w = x.shape[2] - 2, x.shape[3] - 2
        around = np.array([[x[:, c, i:i + h, j:j + w] for i in range(3) for j in range(3)]
                           for c in range(x.shape[1])])                         # (C, 9, B, h, w)
        flat = around.reshape(-1, *around.shape[2:]).transpose(1, 0, 2, 3)      # (B, C*9, h, w)
        flat = np.array([[bilinear(one, grid) for one in picture] for picture in flat])
        levels.append([[adaptive_1d(vector, per_level or dim) for vector in picture.reshape(len(picture), -1).T]
                       for picture in flat])
    return np.array([[adaptive_1d(np.concatenate(vectors), dim) for vectors in zip(*pictures, strict=True)]
                     for pictures in zip(*levels, strict=True)])


def close(patches, expected, grid=None):
    np.testing.assert_allclose(patches.vectors, expected, atol=1e-5)
    assert grid is None or patches.grid == grid


@pytest.mark.parametrize("dim", [1, 4, 10, 27, 40])
@pytest.mark.parametrize("shapes", [[(3, 4, 6)], [(2, 6, 4), (3, 3, 2)], [(2, 6, 6), (3, 4, 4), (4, 2, 2)]])
def test_original_equals_a_loop(dim, shapes):
    features = maps(*shapes)
    patches = embedding.parse(f"original_d{dim}")(features)
    close(patches, original(features, dim), shapes[0][1:])


@pytest.mark.parametrize("shapes", [[(3, 4, 6)], [(2, 6, 4), (3, 3, 2)]])
def test_levels_may_be_pooled_to_another_width_first(shapes):
    features = maps(*shapes)
    close(embedding.Original(7, 12)(features), original(features, 7, 12), shapes[0][1:])


@pytest.mark.parametrize(("embed", "at"), [
    (embedding.Original(384, 1024), [-0.02943894, -0.107854012, -0.045451663, -0.035776536, -0.074270572, 0.015064731,
                                     -0.050412427, 0.26445676, -0.006813372]),
    (embedding.parse("original_d384"), [-0.02943894, -0.151988098, -0.037529611, -0.051800835, -0.176451633,
                                        0.019665341, -0.121873084, 0.285599092, -0.013338494])])
def test_original_gives_the_numbers_of_the_published_code(embed, at):
    """amazon-science/patchcore-inspection@fcaa92f on drawn maps, levels pooled to 1024 and to 384, then to 384."""
    rng = np.random.RandomState(201)
    levels = {2: rng.standard_normal((6, 128, 8, 8)), 3: rng.standard_normal((6, 256, 4, 4))}
    vectors = embed({level: torch.from_numpy(x).float() for level, x in levels.items()}).vectors.flatten()
    places = [k * (len(vectors) - 1) // 8 for k in range(9)]
    np.testing.assert_allclose(vectors[places], at, atol=1e-6)


def test_original_with_nine_values_per_window_is_one_channel():
    features = maps((5, 4, 4))
    vectors = embedding.parse("original_d5")(features).vectors
    torch.testing.assert_close(vectors, embedding.parse("avg_k3_s1_p1")(features).vectors)


@pytest.mark.parametrize("kind", ["avg", "max"])
@pytest.mark.parametrize(("k", "s", "p"), [
    (1, 1, 0), (3, 1, 1), (3, 2, 1), (3, 3, 1), (5, 2, 2), (2, 2, 1), (3, 1, 0)])
def test_pooling_equals_a_loop(kind, k, s, p):
    features = maps((3, 7, 8))
    pooled = each_map(features, lambda x: pool(x, kind, k, s, p))
    patches = embedding.parse(f"{kind}_k{k}_s{s}_p{p}")(features)
    close(patches, *joined(pooled, blockwise))
    assert patches.grid == tuple((n + 2 * p - k) // s + 1 for n in (7, 8))
    assert patches.vectors.is_contiguous()


def test_avgmax_is_average_then_maximum_of_each_level():
    features = maps((2, 8, 8), (3, 4, 4))
    average, maximum = (each_map(features, lambda x, kind=kind: pool(x, kind, 3, 1, 1))
                        for kind in ("avg", "max"))
    both = {level: [a + b for a, b in zip(average[level], maximum[level], strict=True)] for level in features}
    close(embedding.parse("avgmax_k3_s1_p1")(features), *joined(both, blockwise))


@pytest.mark.parametrize("side", [1, 3, 7, 9])
def test_adaptive_equals_a_loop(side):
    features = maps((2, 8, 8), (3, 4, 4))
    pooled = each_map(features, lambda x: adaptive(x, side))
    close(embedding.parse(f"adaptive_{side}")(features), *joined(pooled, blockwise))


def test_identity_only_reorders():
    x = maps((3, 4, 5))[1]
    patches = embedding.parse("identity")({1: x})
    assert patches.grid == (4, 5)
    assert torch.equal(patches.vectors.transpose(1, 2).reshape(x.shape), x)


@pytest.mark.parametrize(("join", "oracle"), [("repeat", blockwise), ("interpolate", bilinear)])
@pytest.mark.parametrize("name", ["identity", "avg_k3_s1_p1"])
def test_joins_equal_a_loop(join, oracle, name):
    features = maps((2, 8, 4), (3, 4, 2), (1, 2, 1))
    pooled = each_map(features, (lambda x: x) if name == "identity" else lambda x: pool(x, "avg", 3, 1, 1))
    close(embedding.parse(name, join)(features), *joined(pooled, oracle))


def test_interpolate_where_sides_do_not_divide():
    features = maps((1, 7, 5), (2, 3, 3))
    close(embedding.parse("identity", "interpolate")(features),
          *joined(each_map(features, lambda x: x), bilinear))


@pytest.mark.parametrize("name", ["original_d6", "avg_k3_s1_p1", "avgmax_k3_s2_p1", "adaptive_2", "identity"])
def test_order_of_the_levels_does_not_matter_and_input_stays(name):
    features = maps((2, 8, 8), (3, 4, 4))
    before = {level: x.clone() for level, x in features.items()}
    turned = dict(reversed(features.items()))
    embed = embedding.parse(name)
    assert torch.equal(embed(features).vectors, embed(turned).vectors)
    assert all(torch.equal(features[level], before[level]) for level in features)


@pytest.mark.parametrize(("name", "join", "message"), [
    ("avg_k0_s1_p0", "repeat", "k >= 1"),
    ("avg_k3_s0_p1", "repeat", "s >= 1"),
    ("max_k3_s1_p2", "repeat", r"p <= floor\(k/2\) = 1"),
    ("original_d0", "repeat", "d must be at least 1"),
    ("adaptive_0", "repeat", "embedding='adaptive_0': needs original_d1024"),
    ("avg_k3", "repeat", "embedding='avg_k3': needs original_d1024"),
    ("avg_k3_s1_p1_", "repeat", "embedding='avg_k3_s1_p1_'"),
    ("median_k3_s1_p1", "repeat", "embedding='median_k3_s1_p1'"),
    ("identity", "nearest", "join='nearest': needs one of repeat, interpolate")])
def test_refusals_name_the_rule(name, join, message):
    with pytest.raises(ValueError, match=message):
        embedding.parse(name, join)


@pytest.mark.parametrize(("name", "message"), [
    ("avg_k9_s1_p2", r"in \+ 2p = 8 < k = 9"), ("max_k9_s1_p0", r"in \+ 2p = 4 < k = 9")])
def test_kernel_larger_than_the_padded_map(name, message):
    with pytest.raises(ValueError, match=message):
        embedding.parse(name)(maps((2, 4, 6)))


@pytest.mark.parametrize(("h", "w"), [(7, 6), (6, 7)])
def test_repeat_needs_sides_that_divide(h, w):
    with pytest.raises(ValueError, match=rf"3x3 does not repeat block-wise onto {h}x{w}.*join=interpolate"):
        embedding.parse("identity")(maps((1, h, w), (1, 3, 3)))


@pytest.mark.parametrize("name", ["avg_k3_s1_p1", "max_k3_s2_p1", "avgmax_k2_s2_p0", "adaptive_4", "identity"])
@pytest.mark.parametrize("join", embedding.JOINS)
def test_the_layout_in_memory_changes_nothing(name, join):
    """An engine may hand over either; the vectors come out in one piece, and the maps stay as they are."""
    features = maps((5, 8, 8), (6, 4, 4))
    other = {level: x.contiguous(memory_format=torch.channels_last) for level, x in features.items()}
    before = {level: x.clone() for level, x in features.items()}
    embed = embedding.parse(name, join)
    one, two = embed(features), embed(other)
    assert torch.equal(one.vectors, two.vectors) and one.grid == two.grid
    assert one.vectors.is_contiguous() and two.vectors.is_contiguous()
    assert all(torch.equal(before[level], x) for level, x in features.items())
