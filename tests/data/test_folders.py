"""Folders and pictures of every kind are read right or refused by name; geometry equals Pillow's own."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from thesis_lib import data
from thesis_lib.core import paths
from thesis_lib.core.preprocess import INTERPOLATIONS, DataError, Sample, read_rgb
from thesis_lib.data import folders, synthetic
from thesis_lib.data.pictures import load_image

GREY = data.Preprocess(image_size=64)


def paint(file, values, **options):
    """Write an array or a Pillow image, folders made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(file, **options)
    return file


def gradient(width=80, height=60):
    """(height, width, 3) uint8, no two rows, columns or channels alike."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 4, columns * 3, rows + columns], axis=2).astype(np.uint8)


def read(file):
    return np.asarray(read_rgb(file))


# ---- what is on disk

def test_scan_lists_split_defect_and_mask(make_category):
    root = make_category(train=2, good=1, bad=2)
    category = data.scan(root, "pad")
    assert (category.name, len(category.train)) == ("pad", 2)
    assert {(one.split, one.defect, one.label) for one in category.train} == {("train", "good", 0)}
    listed = [(sample.path.relative_to(root).as_posix(), sample.split, sample.defect,
               sample.mask and sample.mask.relative_to(root).as_posix()) for sample in category.test]
    assert listed == [
        ("pad/test/good/000.png", "test", "good", None),
        ("pad/test/hole/000.png", "test", "hole", "pad/ground_truth/hole/000_mask.png"),
        ("pad/test/hole/001.png", "test", "hole", "pad/ground_truth/hole/001_mask.png")]
    assert category.labels.tolist() == [0, 1, 1]


def test_words_in_the_path_do_not_decide(make_category, tmp_path):
    """A root called test/good and a category called train: labels come from the two folders only."""
    root = tmp_path / "test" / "good"
    shutil.move(make_category("train"), root)
    category = data.scan(root, "train")
    assert category.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert {sample.split for sample in category.train} == {"train"}
    assert category.has_masks


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".PNG", ".Jpg"])
def test_every_suffix_in_any_case(make_category, suffix):
    category = data.scan(make_category(suffix=suffix), "pad")
    assert (len(category.train), len(category.test)) == (4, 6)
    assert category.has_masks
    assert load_image(category.train[0].path, GREY).shape == (3, 64, 64)


def test_hidden_and_other_files_are_left_out(make_category):
    root = make_category()
    for folder in ("train/good", "test/good", "ground_truth/hole"):
        for name in ("._000.png", ".DS_Store", "Thumbs.db", "notes.txt"):
            (root / "pad" / folder / name).write_text("no picture")
    category = data.scan(root, "pad")
    assert (len(category.train), len(category.test)) == (4, 6)


def test_mask_may_have_the_name_of_its_picture(make_category):
    root = make_category()
    for file in (root / "pad/ground_truth/hole").iterdir():
        file.rename(file.with_name(file.name.replace("_mask", "")))
    assert data.scan(root, "pad").has_masks


@pytest.mark.parametrize(("removed", "has_masks"), [
    ((), True), (("001",), False), (("000", "001", "002"), False)])
def test_pixel_metrics_need_all_masks(make_category, removed, has_masks):
    root = make_category()
    for number in removed:
        (root / f"pad/ground_truth/hole/{number}_mask.png").unlink()
    assert data.scan(root, "pad").has_masks is has_masks


def test_no_anomalous_picture_has_no_masks(make_category):
    category = data.scan(make_category(bad=0), "pad")
    assert category.labels.tolist() == [0, 0, 0]
    assert not category.has_masks


def test_categories_are_folders_with_train_good(make_category):
    make_category("b")
    root = make_category("a")
    (root / "c" / "test" / "good").mkdir(parents=True)
    assert data.categories(root) == ["a", "b"]


def test_missing_category_lists_those_there_are(make_category):
    make_category("bolt")
    with pytest.raises(DataError, match="nut: no such category; categories here: bolt, pad"):
        data.scan(make_category(), "nut")


@pytest.mark.parametrize("files", [[], ["readme.txt"]])
def test_empty_category_names_the_folder(tmp_path, files):
    folder = tmp_path / "empty" / "train" / "good"
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text("")
    with pytest.raises(DataError, match=r"empty/train/good: no pictures \(.bmp, .*nominal"):
        data.scan(tmp_path, "empty")


def test_no_test_folder_is_no_test_pictures(make_category):
    root = make_category()
    shutil.rmtree(root / "pad/test")
    category = data.scan(root, "pad")
    assert category.test == ()
    assert category.subset(test=4).test == ()


def test_resolve_path_then_name_under_data(make_category, monkeypatch):
    root = make_category()
    assert data.resolve(root) == data.resolve(str(root)) == root
    shutil.copytree(root, paths.data() / "mine")
    assert data.resolve("mine") == paths.data() / "mine"
    monkeypatch.chdir(root.parent)
    assert data.resolve("set") == root
    with pytest.raises(DataError, match=f"nowhere: no such folder.*{paths.data()}"):
        data.resolve("nowhere")


def test_resolve_demo_generates(monkeypatch, tmp_path):
    monkeypatch.setattr(synthetic, "write", lambda root: root / "written")
    assert data.resolve("demo") == paths.demo_data() / "written" == tmp_path / "data" / "demo" / "written"


# ---- subsets and identity

@pytest.mark.parametrize(("wanted", "good", "bad"), [
    (0, 10, 30), (40, 10, 30), (99, 10, 30), (20, 5, 15), (8, 2, 6), (2, 1, 1), (3, 1, 2), (1, 0, 1)])
def test_subset_keeps_the_share_of_both_classes(make_category, wanted, good, bad):
    category = data.scan(make_category(good=10, bad=30, size=32), "pad").subset(test=wanted)
    assert np.bincount(category.labels, minlength=2).tolist() == [good, bad]
    assert list(category.test) == sorted(category.test, key=lambda sample: (sample.defect, sample.path))


def test_subset_is_evenly_spaced(make_category):
    category = data.scan(make_category(train=9, size=32), "pad")
    assert [sample.path.stem for sample in category.subset(train=3).train] == ["000", "004", "008"]
    assert category.subset(train=3).test == category.test
    assert category.subset(train=100) == category.subset() == category


@pytest.mark.parametrize(("good", "bad"), [(5, 0), (0, 5)])
def test_subset_of_one_class(make_category, good, bad):
    category = data.scan(make_category(good=good, bad=bad), "pad")
    assert len(category.subset(test=3).test) == 3


def test_fingerprint_follows_names_bytes_and_masks(make_category):
    root = make_category()
    folder = root / "pad"
    prints = [data.scan(root, "pad").fingerprint]
    assert data.scan(root, "pad").fingerprint == prints[0]

    def changed():
        prints.append(data.scan(root, "pad").fingerprint)

    paint(folder / "train/good/000.png", gradient())
    changed()
    paint(folder / "test/hole/000.png", gradient(90))
    changed()
    paint(folder / "ground_truth/hole/000_mask.png", np.zeros((64, 64), dtype=np.uint8))
    changed()
    (folder / "test/good/000.png").rename(folder / "test/good/zzz.png")
    changed()
    (folder / "test/good").rename(folder / "test/scratch")
    changed()
    assert len(set(prints)) == 6
    assert data.scan(root, "pad").subset(train=2).fingerprint not in prints


def test_copy_of_a_training_picture_is_found(make_category):
    root = make_category()
    shutil.copy(root / "pad/train/good/002.png", root / "pad/test/good/copy.png")
    with pytest.raises(DataError, match=r"good/copy.png: test picture is a copy of .*good/002.png"):
        _ = data.scan(root, "pad").fingerprint
    assert "copy of" in data.verify(root).loc[0, "problems"]


# ---- pictures of every mode

def test_grey_palette_alpha_and_one_bit(tmp_path):
    rgb = Image.fromarray(gradient())
    grey = rgb.convert("L")
    for name, image, expected in [
            ("grey", grey, grey.convert("RGB")),
            ("palette", rgb.quantize(16), rgb.quantize(16).convert("RGB")),
            ("one_bit", grey.convert("1"), grey.convert("1").convert("RGB")),
            ("grey_alpha", grey.convert("LA"), grey.convert("RGB"))]:
        np.testing.assert_array_equal(read(paint(tmp_path / f"{name}.png", image)), expected, name)


def test_alpha_is_dropped_not_blended(tmp_path):
    rgb = gradient()
    clear = np.dstack([rgb, np.zeros(rgb.shape[:2], dtype=np.uint8)])
    np.testing.assert_array_equal(read(paint(tmp_path / "clear.png", clear)), rgb)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_keeps_its_full_range(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257], [32896, 65278, 65407, 65535]], dtype=np.uint16)
    pixels = read(paint(tmp_path / f"deep{suffix}", values))
    assert pixels[..., 0].tolist() == [[0, 0, 1, 1], [128, 254, 255, 255]]
    assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize(("values", "message"), [
    (np.full((8, 8), 0.5, dtype=np.float32), "floating-point picture of unknown range"),
    (np.full((8, 8), 70000, dtype=np.int32), "integer values 70000 to 70000, needs 0 to 65535"),
    (np.full((8, 8), -1, dtype=np.int32), "integer values -1 to -1")])
def test_ranges_that_are_unknown_are_refused(tmp_path, values, message):
    with pytest.raises(DataError, match=f"odd.tif: {message}"):
        read(paint(tmp_path / "odd.tif", values))


def test_exif_orientation_is_applied(tmp_path):
    image = Image.fromarray(gradient())
    exif = Image.Exif()
    exif[0x0112] = 6        # turn by 90 degrees clockwise to see it upright
    turned = read(paint(tmp_path / "turned.png", image, exif=exif))
    np.testing.assert_array_equal(turned, np.rot90(gradient(), -1))


@pytest.mark.parametrize("harm", ["truncated", "empty", "text", "missing"])
def test_broken_picture_is_named(tmp_path, harm):
    file = paint(tmp_path / "broken.png", gradient())
    content = file.read_bytes()
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes({"truncated": content[:len(content) // 2], "empty": b"", "text": b"hello"}[harm])
    with pytest.raises(DataError, match=r"broken\.png: not a readable picture"):
        load_image(file, GREY)


# ---- geometry

@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("size", "crop", "resize", "scaled"), [
    (48, None, "square", (48, 48)), (48, 32, "square", (48, 48)), (48, 33, "square", (48, 48)),
    (48, 32, "short_side", (64, 48)), (100, 64, "short_side", (133, 100))])
def test_geometry_is_pillows(tmp_path, interpolation, size, crop, resize, scaled):
    file = paint(tmp_path / "one.png", gradient())
    preprocess = data.Preprocess(image_size=size, crop=crop, resize=resize, interpolation=interpolation)
    expected = Image.fromarray(gradient()).resize(scaled, getattr(Image.Resampling, interpolation.upper()))
    side = crop or size
    left, top = (round((length - side) / 2) for length in scaled)
    pixels = np.asarray(expected)[top:top + side, left:left + side].astype(np.float64) / 255
    normalised = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    image = load_image(file, preprocess)
    assert (image.dtype, tuple(image.shape), preprocess.side) == (torch.float32, (3, side, side), side)
    assert image.is_contiguous()
    np.testing.assert_allclose(image, normalised.transpose(2, 0, 1), atol=1e-5)


def test_a_rectangle_is_width_and_height_and_scales_each_side_by_itself(tmp_path):
    file, preprocess = paint(tmp_path / "one.png", gradient()), data.Preprocess(image_size=(48, 120))
    expected = Image.fromarray(gradient()).resize((48, 120), Image.Resampling.BILINEAR)
    image = data.denormalise(load_image(file, preprocess))
    assert image.shape == (3, 120, 48) and preprocess.shape == (120, 48)
    np.testing.assert_allclose(image.permute(1, 2, 0) * 255, expected, atol=1e-3)
    assert data.Preprocess(image_size=(64, 64)) == data.Preprocess(image_size=64)
    with pytest.raises(ValueError, match="image_size=48x120: a rectangle has no side"):
        preprocess.side             # noqa: B018
    sample = Sample(file, "test", "hole", paint(tmp_path / "mask.png", gradient()[..., 0] // 128))
    np.testing.assert_array_equal(preprocess.mask(sample), np.asarray(Image.open(sample.mask).resize(
        (48, 120), Image.Resampling.NEAREST)) > 0)


def test_upright_and_lying_pictures_form_a_batch(tmp_path):
    preprocess = data.Preprocess(image_size=48, crop=48, resize="short_side")
    for shape in ((80, 60), (60, 80), (60, 61)):
        assert load_image(paint(tmp_path / "one.png", gradient(*shape)), preprocess).shape == (3, 48, 48)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"image_size": 16}, "image_size=16.*32"), ({"crop": 16}, "crop=16: needs 32 to image_size=256"),
    ({"crop": 257}, "crop=257"), ({"resize": "long_side"}, "resize='long_side': needs one of square, short_side"),
    ({"resize": "short_side"}, "short_side needs a crop"),
    ({"image_size": (0, 64)}, "image_size=0x64: needs at least 32 pixels a side"),
    ({"image_size": (64, 64, 64)}, r"image_size=\(64, 64, 64\): needs the side of a square such as 256, or width and"),
    ({"image_size": "256x640"}, "image_size='256x640': needs the side"),
    ({"image_size": 64.0}, "image_size=64.0: needs the side"),
    ({"image_size": (256, 640), "crop": 224}, "image_size=256x640: a rectangle is what a whole picture becomes; crop"),
    ({"image_size": (256, 640), "crop": 224, "resize": "short_side"}, "image_size=256x640: a rectangle"),
    ({"interpolation": "area"}, "interpolation='area'.*nearest, bilinear, bicubic, lanczos")])
def test_preprocess_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.Preprocess(**arguments)


def masked(tmp_path, mask, shape=(80, 60)):
    picture = paint(tmp_path / "000.png", gradient(*shape))
    return Sample(picture, "test", "hole", paint(tmp_path / "000_mask.png", mask))


@pytest.mark.parametrize("value", [1, 128, 255])
def test_mask_is_everything_above_zero(tmp_path, value):
    values = np.random.default_rng(0).choice([0, value], (60, 80)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(values).resize((48, 48), Image.Resampling.NEAREST))[8:40, 8:40] > 0
    mask = data.Preprocess(image_size=48, crop=32).mask(masked(tmp_path, values))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "LA", "I;16"])
def test_mask_in_every_mode(tmp_path, mode):
    values = np.zeros((64, 64), dtype=np.uint8)
    values[:32] = 1 if mode == "I;16" else 255
    deep = mode == "I;16"
    image = Image.fromarray(values.astype(np.uint16)) if deep else Image.fromarray(values).convert(mode)
    np.testing.assert_array_equal(GREY.mask(masked(tmp_path, image, (64, 64))), values > 0)


def test_mask_of_another_size_names_both(tmp_path):
    with pytest.raises(DataError, match=r"000_mask.png: mask is 60x80, its picture 000.png 80x60"):
        GREY.mask(masked(tmp_path, np.zeros((80, 60), dtype=np.uint8)))


def test_good_picture_has_an_empty_mask(pad):
    assert not GREY.mask(pad.test[0]).any()
    assert GREY.mask(pad.test[0]).shape == (64, 64)


# ---- batches

@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 4), (3, [3, 1]), (4, [4]), (9, [4])])
def test_batches_hold_every_picture_in_order(pad, batch_size, sizes):
    pictures = data.Pictures(pad.train, GREY, batch_size)
    assert len(pictures) == len(sizes)
    assert [len(batch) for batch in pictures] == sizes
    expected = torch.stack([load_image(sample.path, GREY) for sample in pad.train])
    assert torch.equal(torch.cat(list(pictures)), expected)
    assert torch.equal(torch.cat(list(pictures)), expected), "a second pass reads again"


# ---- verify

def test_verify_counts_and_finds_nothing_wrong(make_category):
    make_category("bolt", train=5, masks=False)
    report = data.verify(make_category())
    assert report.to_numpy().tolist() == [["bolt", 5, 3, 3, 0, "8", "255", "256", 0, "", ""],
                                          ["pad", 4, 3, 3, 3, "8", "255", "256", 0, "", ""]]


@pytest.mark.parametrize(("file", "problem"), [
    ("train/good/001.png", "not a readable"), ("test/hole/001.png", "not a readable"),
    ("ground_truth/hole/001_mask.png", "001_mask.png: not a readable")])
def test_verify_opens_everything(make_category, file, problem):
    root = make_category()
    (root / "pad" / file).write_bytes(b"broken")
    report = data.verify(root)
    assert problem in report.loc[0, "problems"]
    assert file.split("/")[-1] in report.loc[0, "problems"]


def test_verify_names_masks_that_are_missing_or_of_another_size(make_category):
    root = make_category()
    (root / "pad/ground_truth/hole/001_mask.png").unlink()
    assert "1 anomalous pictures without a mask, first" in data.verify(root).loc[0, "problems"]
    paint(root / "pad/ground_truth/hole/001_mask.png", np.zeros((9, 9), dtype=np.uint8))
    assert "mask is 9x9" in data.verify(root).loc[0, "problems"]


def test_verify_compares_with_table_2_1(make_category):
    make_category("toothbrush", train=60, good=12, bad=30, size=32)
    report = data.verify(make_category("bottle", size=32)).set_index("category")
    assert len(report) == 15
    assert "total" not in report.index
    assert report.loc["toothbrush", "problems"] == ""
    assert report.loc["bottle", "problems"] == (
        "train should be 209; test_good should be 20; test_defective should be 63")
    assert report.loc["carpet"].tolist() == [0, 0, 0, 0, "", "", "", 0, "not on disk", ""]


def test_verify_tells_depth_range_pages_and_profiles(make_category, tmp_path):
    root = make_category()
    for file in (root / "pad").rglob("*.png"):
        if "ground_truth" not in file.parts:
            grey = np.array(Image.open(file).convert("L")).astype(np.uint16) * 16
            Image.fromarray(grey).save(file)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    first = Image.open(root / "pad/train/good/000.png")
    first.save(root / "pad/train/good/000.png", icc_profile=profile)
    page = Image.fromarray(np.full((64, 64), 2000, np.uint16))
    page.save(root / "pad/train/good/pages.tif", save_all=True, append_images=[page])
    row = data.verify(root).loc[0]
    assert row[["bits", "maximum", "levels", "problems"]].tolist() == ["16", "4080", "4096", ""]
    assert row["notes"] == ("values up to 4080 in files of 16 bits: read as 4096 levels; files of several pages, of "
                            "which the first is read: 1; pictures with a colour profile, which is not applied: 1")


@pytest.mark.parametrize(("sizes", "told"), [
    ([(64, 160)] * 3, "pictures of 64x160: {} of 2.5; --image-size 256x640 keeps it"),
    ([(160, 64)] * 3, "pictures of 160x64: {} of 2.5; --image-size 640x256 keeps it"),
    ([(64, 86)] * 2, "pictures of 64x86: {} of 1.3; --image-size 256x352 keeps it"),
    ([(64, 85), (85, 64)], ""), ([(64, 64)], ""), ([(64, 160), (70, 160), (160, 80)],
     "pictures of several shapes, 64x160 to 160x80: {} of up to 2.5; --resize pad keeps it")])
def test_verify_warns_where_a_square_squeezes(tmp_path, sizes, told):
    for number, size in enumerate(sizes):
        paint(tmp_path / f"part/train/good/{number}.png", np.full((*size[::-1], 3), 200, np.uint8))
    row = data.verify(tmp_path).loc[0]
    assert row["notes"] == told.format("a square changes their aspect by a factor") and row["problems"] == ""


def test_verify_names_a_test_picture_beyond_the_levels(make_category):
    root = make_category()
    for file in (root / "pad/train/good").iterdir():
        Image.fromarray(np.full((64, 64), 900, np.uint16)).save(file)
    Image.fromarray(np.full((64, 64), 1100, np.uint16)).save(root / "pad/test/good/001.png")
    assert "test/good/001.png: value 1100 is beyond levels=1024" in data.verify(root).loc[0, "problems"]


# ---- folders as people and their systems have them

JUNK = (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".thumbnails", "anomaly_maps", "System Volume Information")


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("where", ["pad/test", "pad/test/hole", "pad/train/good", "pad", "", "pad/ground_truth/hole"])
def test_hidden_and_system_folders_are_no_defects_no_categories_and_no_pictures(make_category, junk, where):
    root = make_category()
    before = data.scan(root, "pad")
    for below in ("", "train/good", "good"):
        (root / where / junk / below).mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "pad/train/good/000.png", root / where / junk / below / "copy.png")
    assert data.scan(root, "pad") == before and data.categories(root) == ["pad"]
    row = data.verify(root).loc[0]
    assert row["problems"] == "" and row["ignored"] == (0 if where == "" else 3)


def test_forks_of_macos_are_ignored(make_category):
    root = make_category()
    before = data.scan(root, "pad")
    for file in before.train:
        file.path.with_name(f"._{file.path.name}").write_bytes(b"\0\5\x16\7")
    assert data.scan(root, "pad") == before and data.verify(root).loc[0, "ignored"] == 4


@pytest.mark.parametrize("name", ["OK", "ok", "Gut", "GOOD", "Normal", "i.O.", "defect-free", "non defective", "pass"])
def test_another_name_of_the_good_ones_is_named(make_category, name):
    """Counted as a defect, it would turn the AUROC upside down."""
    root = make_category()
    (root / "pad/test/good").rename(root / "pad/test" / name)
    told = f"pad/test/{name}: seems to hold the good parts; call it good, or give --good-name {name}"
    with pytest.raises(DataError, match=re.escape(told)):
        data.scan(root, "pad")
    (root / "pad/train/good").rename(root / "pad/train" / name)
    with pytest.raises(DataError, match=re.escape(f"pad/train/{name}: seems to hold the good parts; call it good")):
        data.scan(root, "pad")
    category = data.scan(root, "pad", name)
    assert category.labels.tolist() == [0, 0, 0, 1, 1, 1] and len(category.train) == 4
    assert {sample.defect for sample in category.test} == {"good", "hole"}
    assert data.categories(root, name) == ["pad"] and data.verify(root, name).loc[0, "test_good"] == 3


def test_the_only_folder_of_train_must_be_the_good_one(make_category):
    root = make_category()
    (root / "pad/train/good").rename(root / "pad/train/xyz")
    for ask in (lambda: data.scan(root, "pad"), lambda: folders.some_categories(root)):
        with pytest.raises(DataError, match="pad/train/xyz: seems to hold the good parts; call it good"):
            ask()


def test_pictures_right_in_train_are_told_where_to_go(make_category):
    root = make_category()
    for file in (root / "pad/train/good").iterdir():
        file.rename(root / "pad/train" / file.name)
    with pytest.raises(DataError, match=r"pad/train: its 4 pictures of good parts belong into .*pad/train/good"):
        data.scan(root, "pad")


def test_a_folder_of_defects_alone_is_no_good_one(make_category):
    root = make_category(good=0)
    assert data.scan(root, "pad").labels.tolist() == [1, 1, 1]


def test_the_good_name_may_hold_signs_of_patterns(make_category):
    root = make_category()
    for split in ("train", "test"):
        (root / "pad" / split / "good").rename(root / "pad" / split / "ok [1]*")
    assert data.categories(root, "ok [1]*") == ["pad"] and data.categories(root, "ok*") == []
    assert data.scan(root, "pad", "ok [1]*").labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_verify_of_nothing_is_an_empty_table(tmp_path):
    assert data.verify(tmp_path).empty


def test_samples_cannot_be_changed(pad):
    with pytest.raises(AttributeError):
        pad.train[0].split = "test"
    assert replace(pad.train[0], split="test").split == "test"
