"""Pictures as they are, through every method and on the way to a row: rectangles, and pictures that count in parts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from tests.methods.test_detectors import make, same
from thesis_lib import data
from thesis_lib.core.errors import ThesisError
from thesis_lib.data.pictures import load_image
from thesis_lib.evaluation import metrics, scores, stage_times
from thesis_lib.evaluation.configuration import Configuration
from thesis_lib.methods import METHODS
from thesis_lib.networks import backbones
from thesis_lib.networks import maps as maps_of
from thesis_lib.patches import embedding
from thesis_lib.report import figures, panels

pytestmark = pytest.mark.usefixtures("networks_built_once")

WIDE = data.Preprocess(image_size=(96, 64))         # width x height
PADDED = data.Preprocess(image_size=(96, 64), resize="pad")
LARGE = data.Preprocess(image_size=(192, 128), resize="pad")
IN_PARTS = [name for name, method in METHODS.items() if method.in_parts]
FREE = [name for name in METHODS if name != "efficientad"]


@pytest.fixture
def lying(tmp_path):
    """4 training and 3 + 3 test pictures of 150 x 60 pixels: noise, and a white bar that is its mask."""
    rng = np.random.default_rng(0)
    for kind, count in (("train/good", 4), ("test/good", 3), ("test/hole", 3)):
        folder = tmp_path / "lying/part" / kind
        folder.mkdir(parents=True)
        for index in range(count):
            values = rng.integers(90, 130, (60, 150, 3), dtype=np.uint8)
            if kind == "test/hole":
                mask = np.zeros((60, 150), dtype=np.uint8)
                mask[20:40, 100:140] = 255
                values[mask > 0] = 255
                masks = tmp_path / "lying/part/ground_truth/hole"
                masks.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(masks / f"{index:03d}_mask.png")
            Image.fromarray(values).save(folder / f"{index:03d}.png")
    return data.scan(tmp_path / "lying", "part")


@pytest.mark.parametrize("name", FREE)
def test_a_rectangle_goes_the_whole_way_to_a_row(name, lying):
    detector = make(name)
    row = scores.evaluate(detector, lying, WIDE, seeds=1).iloc[0]
    assert row["preprocess.image_size"] == [96, 64] and row["image_auroc"] == 1 and row["pixel_auroc"] > 0.5
    assert detector.image_size_ == WIDE.shape == (64, 96)
    prediction = detector.predict(load_image(lying.test[3].path, detector.preprocess_)[None])
    full = prediction.full_map(WIDE.shape)[0].numpy()
    assert full.shape == (64, 96)
    y, x = np.unravel_index(full.argmax(), full.shape)
    assert 15 <= y < 50 and 55 <= x < 96                # the bar lies in rows 21 to 43, columns 64 to 90
    again = scores.evaluate(make(name), lying, WIDE, seeds=1).iloc[0]
    assert again["id"] == row["id"], "its stored row is found again"
    assert stage_times.measure_time(detector, lying, WIDE, pictures=1, warmup=0, repeats=1)["total_ms"] > 0


def test_a_rectangle_equals_a_plain_restatement(lying):
    """PatchCore with all rows: resize, network, pooling, distances in float64, upsampling, without any of its code."""
    def patches(sample):
        image = np.asarray(Image.open(sample.path).resize((96, 64), Image.Resampling.BILINEAR), np.float64) / 255
        image = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        features = network(torch.from_numpy(image.transpose(2, 0, 1)[None]).float())[1]
        return F.avg_pool2d(features, 3, 1, 1)[0].flatten(1).T.double().numpy()             # (16 * 24, 64)

    network = backbones.load("resnet18", (1,), "random")
    bank = np.concatenate([patches(sample) for sample in lying.train])
    nearest = np.stack([cdist(patches(sample), bank).min(axis=1).reshape(16, 24) for sample in lying.test])
    row = scores.evaluate(make("patchcore", bank="100%"), lying, WIDE, seeds=1).iloc[0]
    np.testing.assert_allclose(row["scores"], nearest.max(axis=(1, 2)), rtol=1e-4)
    full = F.interpolate(torch.from_numpy(nearest)[:, None], (64, 96), mode="bilinear")[:, 0].numpy()
    masks = np.stack([WIDE.mask(sample) for sample in lying.test])
    assert masks.shape == (6, 64, 96)
    smooth = gaussian_filter(full, (0, 4, 4))
    assert row["pixel_auroc"] == pytest.approx(metrics.pixel_auroc(masks, smooth), abs=1e-4)


@pytest.mark.parametrize("name", ["patchcore", "simplenet"])
def test_kept_maps_and_a_saved_detector_know_the_rectangle(name, lying, tmp_path):
    pair = {"one": make(name), "other": make(name, **{"bank": 30} if name == "patchcore" else {"hidden": 8})}
    scores.evaluate_many(pair, lying, WIDE, seeds=1)            # two of a network: the second reads kept maps
    loaded = METHODS[name].load(pair["other"].save(tmp_path / "wide.safetensors"))
    assert loaded.preprocess_ == WIDE.decided(lying.train) and loaded.image_size_ == (64, 96)
    image = load_image(lying.test[3].path, loaded.preprocess_)[None]
    assert torch.equal(loaded.predict(image).score, pair["other"].predict(image).score)


def test_efficientad_stays_square_and_says_so_before_a_picture_is_read(lying, counted, monkeypatch):
    kind, read = counted
    monkeypatch.setattr(scores, "Pictures", kind)
    for call in (lambda: make("efficientad").fit(kind(lying.train, WIDE)),
                 lambda: scores.evaluate(make("efficientad"), lying, WIDE)):
        with pytest.raises(ThesisError, match=r"^images of 96x64 pixels: the autoencoder needs squares of 64, 96, "):
            call()
    assert read == []


def test_width_and_height_are_not_mixed_up_in_an_identity():
    ids = {size: Configuration.of(make("patchcore"), data.Preprocess(image_size=size)).id
           for size in (64, (64, 64), (96, 64), (64, 96))}
    assert ids[64] == ids[64, 64] and len(set(ids.values())) == 3
    row = {"id": "1", "method": "patchcore", "weights": {}, "parameters": {},
           "preprocess": {"image_size": [96, 64], "interpolation": "bilinear"}}         # as JSON has it
    assert Configuration.from_row(row).preprocess == data.Preprocess(image_size=(96, 64))


@pytest.mark.parametrize("preprocess", [WIDE, PADDED], ids=["rectangle", "letterbox"])
def test_figures_and_crops_show_them_as_they_are(lying, preprocess):
    detector = make("patchcore", bank=30)
    view = panels.view_of(detector, lying, preprocess)
    drawn = view.figure(3)
    pictures = {name: axis.get_images()[0].get_array().shape for name, axis in
                zip(("picture", "map"), drawn.axes, strict=False)}
    assert pictures["picture"][:2] == pictures["map"][:2] == (64, 96)
    crop, *_ = view.nearest(3)
    assert crop.shape == (24, 24, 3) and (crop == 255).any(), "cut out of where the white bar is"
    assert figures.pictures(lying.test[:2], preprocess).axes[0].get_images()[0].get_array().shape == (64, 96, 3)
    maps = torch.cat([prediction.full_map((64, 96)) for prediction in view.predictions[2:4]]).numpy()
    heat = figures.maps(lying.test[2:4], maps, [1, 2], preprocess).axes[2].get_images()[1]
    assert np.isfinite(heat.get_clim()).all() and heat.get_clim()[0] < heat.get_clim()[1]
    shown = heat.get_array()
    drawn_at = ~np.ma.getmaskarray(shown)
    assert drawn_at[ROWS].all()
    assert drawn_at[:13].any() == drawn_at[51:].any() == (not preprocess.masked), "nothing is drawn in the padding"


# ---- letterbox: of 64 rows of pixels 38 show the picture (150 x 60 -> 96 x 38), rows 13 to 50

ROWS = slice(13, 51)
INSIDE = [row for row in range(16) if 13 <= 4 * row + 2 < 51]           # of the grid of 16 x 24, by the middle


def pictures(samples, preprocess=PADDED):
    return next(iter(data.Pictures(samples, preprocess.decided(samples[:0]), batch_size=len(samples))))


def test_letterbox_keeps_the_aspect_and_says_what_counts(lying):
    image = pictures(lying.test[:1])[0]
    assert image.shape == (4, 64, 96)
    colours, counts = data.denormalise(image[:3]) * 255, image[3]
    assert counts[ROWS].all() and counts.sum() == 38 * 96
    small = Image.open(lying.test[0].path).resize((96, 38), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(colours[:, ROWS].permute(1, 2, 0), small, atol=1e-3)


def test_the_padding_has_no_colour_of_its_own(lying):
    """It goes on with the rim of the picture: whatever colour one would give it, none is there to have a part."""
    image = pictures(lying.test[3:4])[0]
    assert torch.equal(image[:3, :13], image[:3, 13:14].expand(-1, 13, -1))
    assert torch.equal(image[:3, 51:], image[:3, 50:51].expand(-1, 13, -1))


@pytest.mark.parametrize("name", IN_PARTS)
def test_patches_of_the_padding_have_no_part_in_anything(name, lying, monkeypatch):
    """Whatever they are, in fit and in prediction: the same learned, the same scores and maps, bit for bit."""
    def outcome():
        detector = make(name, **more).fit(data.Pictures(lying.train, PADDED))
        prediction = detector.predict(test)
        return prediction.score, prediction.map

    more = {"spade": {"kappa": 2}}.get(name, {})
    test = pictures(lying.test)
    expected = outcome()
    embed, generator = embedding.Embedding.__call__, torch.Generator().manual_seed(0)

    def disturbed(self, features):
        patches = embed(self, features)
        if patches.inside is None:              # shapes alone, before there is a picture
            return patches
        noise = 100 * torch.randn(patches.vectors.shape, generator=generator)
        return patches._replace(vectors=patches.vectors.where(patches.inside[..., None], noise))

    monkeypatch.setattr(embedding.Embedding, "__call__", disturbed)
    assert same(outcome(), expected)
    outside = [row for row in range(16) if row not in INSIDE]
    assert expected[0].isfinite().all() and expected[1][:, INSIDE].isfinite().all()
    assert (expected[1][:, outside] == -torch.inf).all() and outside == [0, 1, 2, 13, 14, 15]


def padded_patches(sample):
    """(P, 64) of level 1, pooled as avg_k3_s1_p1 does, and the map (16, 24, 64); nothing of it from the library."""
    image = np.asarray(Image.open(sample.path).resize((96, 38), Image.Resampling.BILINEAR), np.float64) / 255
    image = np.pad((image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], ((13, 13), (0, 0), (0, 0)), "edge")
    features = backbones.load("resnet18", (1,), "random")(torch.from_numpy(image.transpose(2, 0, 1)[None]).float())[1]
    return [maps[0].permute(1, 2, 0)[INSIDE].flatten(0, 1).double().numpy()
            for maps in (F.avg_pool2d(features, 3, 1, 1), features)]


@pytest.mark.parametrize("search", ["auto", "pruned"])
def test_letterboxed_patchcore_equals_a_plain_restatement(lying, search):
    bank = np.concatenate([padded_patches(sample)[0] for sample in lying.train])
    nearest = np.stack([cdist(padded_patches(sample)[0], bank).min(axis=1) for sample in lying.test])
    detector = make("patchcore", bank="100%", search=search)
    row = scores.evaluate(detector, lying, PADDED, seeds=1).iloc[0]
    np.testing.assert_allclose(row["scores"], nearest.max(axis=1), rtol=1e-4)
    assert sorted(detector.rows_) == [384 * number + 24 * line + column for number in range(4) for line in INSIDE
                                      for column in range(24)], "picture and place of every row of the bank"
    # Pixels count inside alone: weights of the Gaussian and of the interpolation add up to 1 over what is inside.
    heat, counts = np.zeros((6, 16, 24)), np.zeros((6, 16, 24))
    heat[:, INSIDE], counts[:, INSIDE] = nearest.reshape(6, len(INSIDE), 24), 1
    larger = [F.interpolate(torch.from_numpy(x)[:, None], (64, 96), mode="bilinear")[:, 0].numpy() for x in
              (heat, counts)]
    with np.errstate(invalid="ignore"):
        full = np.nan_to_num(larger[0] / larger[1])
    smooth, weights = (gaussian_filter(x, (0, 4, 4)) for x in (full, (larger[1] > 0).astype(float)))
    masks = np.stack([PADDED.mask(sample) for sample in lying.test])[:, ROWS]
    expected = metrics.pixel_auroc(masks, (smooth / weights)[:, ROWS])
    assert row["pixel_auroc"] == pytest.approx(expected, abs=1e-4) and 0.6 < expected < 1
    assert row["pro"] == pytest.approx(metrics.pro(masks, (smooth / weights)[:, ROWS]), abs=1e-3)


def test_letterboxed_spade_pools_what_counts(lying):
    detector = make("spade").fit(data.Pictures(lying.train, PADDED))
    kept = np.stack([padded_patches(sample)[1].mean(axis=0) for sample in lying.train])
    tests = np.stack([padded_patches(sample)[1].mean(axis=0) for sample in lying.test])
    expected = np.sort(cdist(tests, kept, "sqeuclidean"), axis=1)[:, :2].mean(axis=1)
    np.testing.assert_allclose(detector.predict(pictures(lying.test)).score, expected, rtol=1e-3)


@pytest.fixture
def mixed(tmp_path):
    """Training pictures of 96 x 64, 96 x 48, 96 x 48 and 96 x 32 pixels; test pictures of 96 x 64 and 96 x 32."""
    rng = np.random.default_rng(0)
    for split, heights in (("train", (64, 48, 48, 32)), ("test", (64, 32))):
        folder = tmp_path / "mixed/part" / split / "good"
        folder.mkdir(parents=True)
        for number, height in enumerate(heights):
            Image.fromarray(rng.integers(0, 256, (height, 96, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return data.scan(tmp_path / "mixed", "part")


def test_padim_has_a_gaussian_of_the_pictures_that_reach_a_position(mixed, caplog):
    detector = make("padim", channels=None, eps=0.1, sigma=0.0)
    detector.fit(data.Pictures(mixed.train, PADDED))
    # Only the first picture reaches the 2 upper and the 2 lower lines of the grid: 4 of 16, each of 24 positions.
    assert "96 of 384 positions count in fewer than 2 training pictures" in caplog.text
    vectors = detector.embed_of()(detector.backbone_(pictures(mixed.train))).vectors.double().numpy()
    test, = detector.embed_of()(detector.backbone_(pictures(mixed.test[:1]))).vectors.double().numpy()
    heat = detector.predict(pictures(mixed.test[:1])).map[0].flatten()
    for line, count in ((1, 0), (2, 3), (3, 3), (4, 4), (7, 4), (12, 3), (14, 0)):
        place = 24 * line + 5
        if not count:
            assert heat[place] == 0
            continue
        x = vectors[:count, place]
        covariance = np.cov(x, rowvar=False) + 0.1 * np.eye(64)
        away = test[place] - x.mean(axis=0)
        assert heat[place] == pytest.approx(np.sqrt(away @ np.linalg.solve(covariance, away)), rel=1e-4)


@pytest.mark.parametrize("name", IN_PARTS)
def test_pictures_of_several_shapes_score_alike_however_they_are_read(name, mixed, tmp_path):
    """In a batch, alone, out of a file, and from kept maps that two detectors share."""
    one, other = make(name), make(name, **{"padim": {"eps": 0.1}, "spade": {"k": 1}, "simplenet": {"margin": 0.4}}.get(
        name, {"bank": 30}))
    maps = maps_of.Stored(maps_of.Extracted(one.network(one.levels, ()), data.Pictures(mixed.train, PADDED)))
    for detector in (one, other):
        detector.backbone_ = maps.extracted.backbone
        detector.learn(detector.gather_nominal(maps))
        assert detector.image_size_ == (64, 96)
    test = pictures(mixed.test)
    plain = make(name).fit(data.Pictures(mixed.train, PADDED, batch_size=2))
    loaded = METHODS[name].load(other.save(tmp_path / "padded.safetensors"))
    together = one.predict(test)
    alone = [one.predict(image[None]) for image in test]
    torch.testing.assert_close(together.score, torch.cat([found.score for found in alone]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.map, torch.cat([found.map for found in alone]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.score, plain.predict(test).score, rtol=1e-3, atol=1e-3)
    for found, expected in zip(*((one.score, one.map) for one in (loaded.predict(test), other.predict(test))),
                               strict=True):
        assert torch.equal(found, expected)
    with pytest.raises(ThesisError, match=r"images of 3 channels: this .* was fitted on pictures with a channel"):
        loaded.predict(test[:, :3])


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(IN_PARTS)))
def test_methods_that_take_whole_pictures_say_so_before_one_is_read(name, lying, counted, monkeypatch):
    kind, read = counted
    monkeypatch.setattr(scores, "Pictures", kind)
    for call in (lambda: make(name).fit(kind(lying.train, PADDED)),
                 lambda: scores.evaluate(make(name), lying, PADDED)):
        with pytest.raises(ThesisError, match=f"^resize=pad: {name} takes whole pictures only; needs neither, or"):
            call()
    assert read == []


def test_a_picture_too_thin_for_the_grid_is_told():
    thin = torch.zeros(1, 4, 64, 96)
    thin[:, 3, 31] = 1          # between two middles of positions
    with pytest.raises(ThesisError, match="a picture has no patch that counts: of 24x16 no middle lies inside"):
        make("patchcore").fit([thin])


# ---- regions of interest

def test_a_region_is_cut_out_before_the_resize_and_gains_resolution(lying):
    cut = data.Preprocess(image_size=64, roi=(90, 10, 60, 50))
    row = scores.evaluate(make("patchcore"), lying, cut, seeds=1).iloc[0]
    assert row["image_auroc"] == 1 and row["preprocess.roi"] == [90, 10, 60, 50]
    assert cut.mask(lying.test[3]).sum() > 1.8 * WIDE.mask(lying.test[3]).sum() > 900


@pytest.fixture
def left(tmp_path):
    """A mask picture of 150 x 60 pixels: inside is the left half and a bit, in steps, without the white bars."""
    mask = np.zeros((60, 150), dtype=np.uint8)
    mask[:20, :90], mask[20:, :75] = 255, 1
    Image.fromarray(mask).save(tmp_path / "left.png")
    return tmp_path / "left.png"


def test_patches_whose_middle_lies_outside_a_mask_are_dropped(lying, left):
    """And nothing else changes: scores, bank and pixel metrics are those of the patches and pixels inside."""
    def patches(sample):
        features = network(load_image(sample.path, WIDE.decided(lying.train))[None])[1]
        return F.avg_pool2d(features, 3, 1, 1)[0].permute(1, 2, 0)[inside].double().numpy()

    network = backbones.load("resnet18", (1,), "random")
    # Of the grid of 16 x 24 a middle lies at 150 / 96 * (4 column + 2), 60 / 64 * (4 row + 2) of the picture.
    y, x = (np.arange(16) * 4 + 2.5) * 60 / 64, (np.arange(24) * 4 + 2.5) * 150 / 96
    inside = torch.from_numpy(np.where(y[:, None] < 20, x < 90, x < 75))
    bank = np.concatenate([patches(sample) for sample in lying.train])
    nearest = [cdist(patches(sample), bank).min(axis=1).max() for sample in lying.test]
    masked = data.Preprocess(image_size=(96, 64), roi=str(left))
    detector = make("patchcore", bank="100%")
    row = scores.evaluate(detector, lying, masked, seeds=1, pixels=False).iloc[0]
    np.testing.assert_allclose(row["scores"], nearest, rtol=1e-4)
    assert len(detector.bank_) == 4 * inside.sum() == len(bank)
    heat = detector.predict(pictures(lying.test, masked)).map
    assert torch.equal(heat[0] > -torch.inf, inside)


@pytest.mark.parametrize("name", IN_PARTS)
def test_what_a_mask_leaves_out_is_not_found(name, lying, left, caplog):
    """The white bars lie outside: they reach the patches inside through the network's field alone."""
    more = {"simplenet": {"epochs": 1}, "padim": {"sigma": 0.0}}.get(name, {})
    found = {}
    for masked in (WIDE, data.Preprocess(image_size=(96, 64), roi=str(left))):
        detector = make(name, **more).fit(data.Pictures(lying.train, masked))
        heat = detector.predict(pictures(lying.test, masked)).map
        found[masked.masked] = [divmod(int(one.argmax()), 24)[1] for one in heat[3:]]
    assert min(found[False]) >= 15 > max(found[True]), "columns of the grid; the bars lie in 16 to 22"
    row = scores.evaluate(make(name, **more), lying, masked, seeds=1).iloc[0]
    assert row["pixel_auroc"] is None and "3 of 3 masks have no pixel at 96x64" in caplog.text


# ---- tiles

def test_tiles_have_one_bank_and_the_score_is_the_maximum_over_them(lying):
    """Restated with the network on crops of the picture: left and right, each with 32 pixels of the other."""
    def patches(sample):
        image = load_image(sample.path, plain.decided(lying.train))[None]
        halves = network(image[..., :96 + 32])[2][..., :12], network(image[..., 96 - 32:])[2][..., 4:]
        return F.avg_pool2d(torch.cat(halves, 3), 3, 1, 1)[0].flatten(1).T.double().numpy()

    plain, network = replace(LARGE, resize="square"), backbones.load("resnet18", (2,), "random")
    bank = np.concatenate([patches(sample) for sample in lying.train])
    nearest = np.stack([cdist(patches(sample), bank).min(axis=1).reshape(16, 24) for sample in lying.test])
    detector = make("patchcore", layers=(2,), bank="100%", tiles=(2, 1))
    row = scores.evaluate(detector, lying, plain, seeds=1).iloc[0]
    of_tiles = [[heat[:, :12].max(), heat[:, 12:].max()] for heat in nearest]
    np.testing.assert_allclose(row["scores"], np.max(of_tiles, axis=1), rtol=1e-4)
    np.testing.assert_allclose(detector.predict(pictures(lying.test, plain)).map, nearest, rtol=1e-3, atol=1e-4)
    whole = make("patchcore", layers=(2,), bank="100%")
    scores.evaluate(whole, lying, plain, seeds=1)
    assert not torch.allclose(whole.bank_, detector.bank_, rtol=1e-3), "kept maps of the whole are not those of tiles"


def test_level_1_sees_so_little_that_tiles_change_nothing(lying):
    """21 pixels to each side, and a tile sees 32 beyond its own part."""
    image = pictures(lying.test, LARGE)
    whole = backbones.load("resnet18", (1, 2), "random")
    maps, of_tiles = whole(image), whole.tiled((3, 1))(image)
    assert whole.tiles is None and set(maps) == set(of_tiles) == {0, 1, 2}
    torch.testing.assert_close(of_tiles[1], maps[1], rtol=1e-4, atol=1e-4)
    differ = (of_tiles[2] - maps[2]).abs().amax((0, 1, 2)) > 1e-3               # by columns; seams at 8 and 16
    assert differ[6:10].any() and differ[14:18].any() and not differ[[0, 11, 12, 23]].any()


@pytest.mark.parametrize("name", IN_PARTS)
def test_tiles_go_the_whole_way_with_a_letterbox(name, lying, tmp_path):
    detector = make(name, layers=(2,), tiles=(2, 2))
    row = scores.evaluate(detector, lying, LARGE, seeds=1).iloc[0]
    assert row["parameters.tiles"] == [2, 2] and np.isfinite(row["scores"]).all() and 0 <= row["pixel_auroc"] <= 1
    loaded = METHODS[name].load(detector.save(tmp_path / "tiles.safetensors"))
    test = pictures(lying.test, LARGE)
    assert same(*((one.score, one.map) for one in (loaded.predict(test), detector.predict(test))))
    whole = make(name, layers=(2,)).fit(data.Pictures(lying.train, LARGE))
    assert not torch.allclose(loaded.predict(test).map, whole.predict(test).map, rtol=1e-5)
    assert whole.collected_by != detector.collected_by and whole.network_by != detector.network_by
    if name == "padim":
        assert detector.mean_.shape[0] == 16 * 24, "a Gaussian per place of the whole picture"


@pytest.mark.parametrize(("parameters", "told"), [
    ({"tiles": (0, 2)}, "tiles=0x2: needs columns x rows, each at least 1"),
    ({"tiles": (2,)}, "tiles=2: needs columns x rows"),
    ({"tiles": (2, 2), "backbone": "pdn_small"}, "tiles=2x2, backbone=pdn_small: it cuts off the rim")])
def test_tiles_that_cannot_be_are_refused(parameters, told):
    with pytest.raises(ThesisError, match=f"^{told}"):
        make("patchcore", **parameters)


def test_one_tile_is_the_whole_picture_and_too_many_are_told_before_a_picture_is_read(lying, counted):
    kind, read = counted
    assert make("patchcore", tiles=(1, 1)) == make("patchcore")
    ids = {tiles: Configuration.of(make("patchcore", tiles=tiles), WIDE).id for tiles in (None, (1, 1), (2, 1), (1, 2))}
    assert ids[None] == ids[1, 1] and len(set(ids.values())) == 3
    with pytest.raises(ThesisError, match=r"^tiles=2x3: of pictures of 96x64 pixels a tile would be less"):
        make("patchcore", tiles=(2, 3)).fit(kind(lying.train, WIDE))
    assert read == []
