"""Files as cameras and tools write them: bit depths, pages, profiles, and what is damaged."""

import io
import json
import logging
import re
import struct
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from thesis_lib import data
from thesis_lib.core import preprocess
from thesis_lib.core.parameters import deciding, values
from thesis_lib.core.preprocess import DataError, Preprocess, Sample, hidden, pictures_in, read_rgb
from thesis_lib.core.region import Region
from thesis_lib.data.pictures import Pictures, load_image
from thesis_lib.networks.weightfiles import torchvision

SMALL = Preprocess(image_size=32)


def samples(folder, values, split="train", suffix=".png"):
    """A picture (32, 32) of 16-bit grey for each value, with it in the middle and 0 elsewhere but for a ramp."""
    made = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, value in enumerate(values):
        grey = np.linspace(0, value, 1024).reshape(32, 32).round().astype(np.uint16)
        Image.fromarray(grey).save(folder / f"{number}{suffix}")
        made.append(Sample(folder / f"{number}{suffix}", split, "good"))
    return made


def deep_png(file, values):
    """16-bit colour (H, W, 3), which Pillow cannot write."""
    height, width, _ = values.shape

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
                     + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return file


def deep_tiff(file, values):
    """Uncompressed little-endian 16-bit colour (H, W, 3)."""
    height, width, _ = values.shape
    pixels = values.astype("<u2").tobytes()
    bits_at = 8 + 2 + 9 * 12 + 4
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits_at), (259, 3, 1, 1), (262, 3, 1, 2),
               (273, 4, 1, bits_at + 6), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(pixels))]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    file.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + struct.pack("<I3H", 0, 16, 16, 16)
                     + pixels)
    return file


# ---- bit depth

@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(("highest", "levels"), [(200, 256), (255, 256), (256, 1024), (1023, 1024), (1024, 4096),
                                                 (4095, 4096), (4096, 16384), (16384, 65536), (65535, 65536)])
def test_auto_is_the_next_scale_above_the_training_pictures(tmp_path, highest, levels, suffix):
    training = samples(tmp_path, [highest // 3, highest], suffix=suffix)
    decided = Preprocess().decided(training)
    assert decided.levels == levels
    grey = np.array(read_rgb(training[1].path, decided.levels))[..., 0]
    expected = np.linspace(0, highest, 1024).reshape(32, 32).round() * 255 / (levels - 1)
    assert np.abs(grey - expected).max() <= 0.5 and len(np.unique(grey)) > 60


def test_a_12_bit_camera_keeps_its_grey_levels_through_the_whole_way(tmp_path):
    """Values up to 4095 were read as if 65535 were white: 16 of 256 grey levels were left."""
    training = samples(tmp_path / "train", [4095] * 3)
    pictures = Pictures(training, SMALL)
    assert pictures.preprocess.levels == 4096
    assert len(np.unique(next(iter(pictures))[0, 0].numpy())) > 200
    # A darker test picture is read on the same scale, not on one of its own.
    (test,) = samples(tmp_path / "test", [1000], "test")
    read = data.denormalise(load_image(test.path, pictures.preprocess))
    assert abs(read.max().item() - 1000 / 4095) < 0.003


def test_levels_are_never_decided_by_a_single_or_a_test_picture(tmp_path):
    (test,) = samples(tmp_path, [4095], "test")
    with pytest.raises(DataError, match=r"0.png: grey of more than 8 bits; levels=auto is decided from training"):
        next(iter(Pictures([test], SMALL)))


def test_a_value_beyond_the_levels_is_refused_with_those_that_fit(tmp_path):
    (test,) = samples(tmp_path, [5000], "test")
    with pytest.raises(DataError, match=r"0.png: value 5000 is beyond levels=4096.*give levels=16384"):
        read_rgb(test.path, 4096)


@pytest.mark.parametrize("given", ["AUTO", "12", 1, 0, -1, 65537, 4096.5, True, None])
def test_levels_that_mean_nothing(given):
    with pytest.raises(ValueError, match=r"levels=.*needs auto, full or a number from 2 to 65536"):
        Preprocess(levels=given)


def test_full_is_a_number_and_8_bits_change_no_identity(make_category):
    assert Preprocess(levels="full") == Preprocess(levels=65536)
    category = data.scan(make_category(), "pad")
    decided = Preprocess().decided(category.train)
    assert decided.levels == 256
    for neutral in (Preprocess(), decided):
        assert "levels" not in deciding(neutral, values(neutral))
    deep = replace(decided, levels=4096)
    assert deciding(deep, values(deep))["levels"] == 4096


@pytest.mark.parametrize("make", [deep_png, deep_tiff])
def test_16_bit_colour_is_refused_unless_the_upper_bits_are_asked_for(tmp_path, make):
    """Pillow keeps the upper 8 bits without a word: of a 12-bit picture 16 levels."""
    values = np.linspace(0, 65535, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint16)
    file = make(tmp_path / "deep", values)
    assert preprocess.depth(file)[:2] == (16, True)
    with pytest.raises(DataError, match=r"deep: colour of 16 bits a channel.*convert it"):
        Preprocess().decided([Sample(file, "train", "good")])
    with pytest.raises(DataError, match="deep: colour of 16 bits a channel"):
        read_rgb(file, 4096)
    assert Preprocess(levels="full").decided([Sample(file, "train", "good")]).levels == 65536
    assert np.array_equal(np.array(read_rgb(file, 65536)), values >> 8)


def test_16_bits_of_a_whole_pixel_are_not_deep_colour(tmp_path):
    """A bitmap of 5 bits a channel: 16 bits to the pixel."""
    pixels = np.full((32, 32), 0b11111_00000_00000, dtype="<u2").tobytes()
    header = struct.pack("<2sIHHI", b"BM", 54 + len(pixels), 0, 0, 54)
    header += struct.pack("<IiiHHIIiiII", 40, 32, 32, 1, 16, 0, len(pixels), 2835, 2835, 0, 0)
    (tmp_path / "red.bmp").write_bytes(header + pixels)
    assert preprocess.depth(tmp_path / "red.bmp")[:2] == (8, False)
    assert np.array(read_rgb(tmp_path / "red.bmp", "auto"))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("highest", "levels", "bits"), [(4095, "full", 16), (900, 4096, 16), (50, "auto", 8)])
def test_a_set_far_below_its_scale_is_warned_about(tmp_path, caplog, highest, levels, bits):
    if bits == 16:
        training = samples(tmp_path, [highest])
    else:
        Image.fromarray(np.full((32, 32), highest, np.uint8)).save(tmp_path / "0.png")
        training = [Sample(tmp_path / "0.png", "train", "good")]
    with caplog.at_level(logging.WARNING, "thesis_lib"):
        Pictures(training, replace(SMALL, levels=levels)).preprocess.decided(training)
    assert f"{tmp_path}: values reach only {highest} of" in caplog.text


def test_a_set_that_reaches_its_scale_is_not(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "thesis_lib"):
        Pictures(samples(tmp_path, [4095]), SMALL)
    assert not caplog.records


# ---- geometry

@pytest.mark.parametrize("resize", ["short_side", "square"])
def test_resize_and_crop_are_torchvisions(resize):
    """Of pictures of any shape, pixel by pixel."""
    functional, rng = torchvision().transforms.functional, np.random.default_rng(0)
    for width, height in [(1000, 667), (667, 1000), (300, 300), *rng.integers(60, 1000, (60, 2)).tolist()]:
        image = Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8))
        size, crop = int(rng.integers(33, 120)), 32
        resized = functional.resize(image, size if resize == "short_side" else [size, size])
        found = Preprocess(image_size=size, crop=crop, resize=resize).geometry(image, "bilinear")
        assert np.array_equal(found, functional.center_crop(resized, [crop, crop])), (width, height, size)


# ---- regions of interest

def coloured(folder, width=80, height=60):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(folder / "picture.png")
    return folder / "picture.png"


def test_a_rectangle_is_cut_out_of_the_original(tmp_path):
    file = coloured(tmp_path)
    found = Preprocess(image_size=(48, 32), roi=[10, 20, 30, 40]).array(file)
    expected = Image.open(file).crop((10, 20, 40, 60)).resize((48, 32), Image.Resampling.BILINEAR)
    pixels = data.denormalise(torch.from_numpy(found)).permute(1, 2, 0).numpy() * 255
    assert np.abs(pixels - np.array(expected)).max() < 1e-3
    padded = Preprocess(image_size=48, resize="pad", roi=(10, 20, 30, 40))
    assert padded.array(file)[3].sum() == padded.inside((80, 60)).sum() == 48 * 36
    assert Preprocess(roi=(0, 0, 80, 60)).array(file).shape == (3, 256, 256), "all of it"


def test_a_region_is_its_run_lengths():
    rng = np.random.default_rng(0)
    for share in (0, 0.1, 0.9, 1):
        mask = (rng.random((7, 11)) < share).astype(np.uint8)
        text = str(Region.of(mask))
        assert np.array_equal(Region.parse(text).mask(), mask) and Region.parse(text) == Region.of(mask)
    assert str(Region.of(np.ones((2, 3)))) == "3x2:0,6"


def test_a_mask_counts_by_its_pixels_whatever_its_file(tmp_path):
    mask = np.zeros((60, 80), np.uint8)
    mask[10:30, 20:70] = 7
    Image.fromarray(mask).save(tmp_path / "one.png")
    Image.fromarray(mask).convert("RGB").save(tmp_path / "other.bmp")
    one, other = (Preprocess(image_size=64, roi=str(tmp_path / name)) for name in ("one.png", "other.bmp"))
    assert one == other and str(tmp_path) not in str(one)
    told = json.loads(json.dumps(values(one)))
    (tmp_path / "one.png").unlink()
    assert Preprocess(**told) == one == replace(one, levels="auto")
    expected = np.array(Image.fromarray(mask > 0).convert("L").resize((64, 64), Image.Resampling.NEAREST)) > 0
    array = one.array(coloured(tmp_path))
    assert np.array_equal(array[3] == 1, expected) and array.shape == (4, 64, 64)
    assert np.array_equal(array[:3], Preprocess(image_size=64).array(tmp_path / "picture.png"))


@pytest.mark.parametrize(("given", "told"), [
    ((1, 2, 3), "roi=1,2,3: needs four numbers x,y,w,h"), ((-1, 0, 5, 5), "roi=-1,0,5,5: needs x and y of at least 0"),
    ((0, 0, 0, 5), "roi=0,0,0,5: needs x and y"), ((0, 0, 5.5, 5), "roi=0,0,5.5,5: needs four"),
    (7, "roi=7: needs four"),
    ("nowhere.png", "roi=nowhere.png: needs x,y,w,h in pixels such as 10,20,300,200, or the file of a mask"),
    ("4x2:1,2", "roi='4x2:1,2'...: its runs add up to 3, not to 4x2 pixels"), ("4x2:,", "roi='4x2:,': is no region")])
def test_a_region_that_means_nothing_is_refused(given, told):
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        Preprocess(roi=given)


def test_a_region_that_does_not_fit_names_the_picture(tmp_path):
    file = coloured(tmp_path)
    sample = Sample(file, "test", "hole", tmp_path / "mask.png")
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(sample.mask)
    Image.fromarray(np.ones((61, 80), np.uint8)).save(tmp_path / "larger.png")
    outside = Preprocess(roi=(30, 20, 51, 40)), "is 80x60 pixels; roi=30,20,51,40 reaches to 81x60"
    unlike = Preprocess(roi=tmp_path / "larger.png"), "is 80x60 pixels, the mask of roi 80x61; both must be the same"
    for prepared, told in (outside, unlike):
        for ask in (lambda prepared=prepared: prepared.array(file), lambda prepared=prepared: prepared.mask(sample)):
            with pytest.raises(DataError, match=f"^{re.escape(f'{file}: {told}')}$"):
                ask()
    with pytest.raises(DataError, match=r"mask.png: no pixel above 0"):
        Preprocess(roi=sample.mask)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken.png: not a readable picture"):
        Preprocess(roi=tmp_path / "broken.png")


# ---- pages and profiles

def test_of_several_pages_the_first_is_read(tmp_path):
    pages = [Image.fromarray(np.full((32, 32), grey, np.uint8)) for grey in (200, 10, 20)]
    pages[0].save(tmp_path / "many.tif", save_all=True, append_images=pages[1:])
    assert preprocess.depth(tmp_path / "many.tif").pages == 3
    assert np.array(read_rgb(tmp_path / "many.tif")).min() == 200


def test_a_colour_profile_changes_no_number(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image.save(tmp_path / "with.png", icc_profile=profile)
    assert preprocess.depth(tmp_path / "with.png").profile
    assert np.array_equal(np.array(read_rgb(tmp_path / "with.png")), np.array(image))


# ---- what is damaged

def sound_files():
    """(name, bytes) of small pictures in every supported format and mode."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))
    grey16 = Image.fromarray(rng.integers(0, 65536, (20, 24), dtype=np.uint16))
    grey32 = Image.fromarray(rng.integers(0, 65536, (20, 24), dtype=np.int32))
    ways = [(format_, mode, rgb.convert(mode), {}) for format_, modes in (
        ("PNG", ("1", "L", "LA", "P", "RGB", "RGBA")), ("JPEG", ("L", "RGB", "CMYK")),
        ("BMP", ("1", "L", "P", "RGB", "RGBA")), ("TIFF", ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")))
        for mode in modes]
    ways += [("TIFF", f"RGB {way}", rgb, {"compression": way})
             for way in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")]
    ways += [("TIFF", "1 group4", rgb.convert("1"), {"compression": "group4"}),
             ("JPEG", "progressive", rgb, {"progressive": True}),
             ("PNG", "16", grey16, {}), ("TIFF", "16", grey16, {}), ("TIFF", "32", grey32, {}),
             ("TIFF", "pages", rgb, {"save_all": True, "append_images": [rgb, rgb]})]
    exif = Image.Exif()
    exif[0x0112] = 6
    ways += [("JPEG", "turned", rgb, {"exif": exif}), ("PNG", "turned", rgb, {"exif": exif})]
    for format_, name, image, options in ways:
        with io.BytesIO() as stream:
            image.save(stream, format_, **options)
            yield f"{format_} {name}", stream.getvalue()


def damaged(content, rng):
    """Cut off, or some bytes changed, most often near the head, where the sizes stand; or a piece twice or gone."""
    content = bytearray(content)
    kind = rng.integers(5)
    if kind == 0:
        return bytes(content[:rng.integers(len(content))])
    if kind == 1:
        start, stop = sorted(rng.integers(0, len(content), 2))
        return bytes(content[:start] + content[stop:] if rng.random() < 0.5 else content[:stop] + content[start:])
    reach = len(content) if kind == 2 else min(len(content), 200)
    for place in rng.integers(0, reach, rng.integers(1, 9)):
        content[place] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
    return bytes(content)


def test_thousands_of_damaged_files_are_read_or_named(tmp_path):
    """Pillow raises SyntaxError, struct.error, zlib.error, its DecompressionBombError and more: each is one line."""
    rng, read, refused = np.random.default_rng(0), 0, set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")             # as the command line does with those of Pillow
        for name, content in sound_files():
            file = tmp_path / f"{name.replace(' ', '_')}.picture"
            file.write_bytes(content)
            assert read_rgb(file).size in ((24, 20), (20, 24)), name
            assert preprocess.size_of(file) == read_rgb(file).size, name
            for number in range(100):
                # A name for every file: what is known of one is kept by its name, size and time.
                broken = file.with_name(f"{file.stem}_{number}{file.suffix}")
                broken.write_bytes(damaged(content, rng))
                for ask in (read_rgb, preprocess.depth, preprocess.maximum, preprocess.size_of):
                    try:
                        answer = ask(broken)
                        read += 1
                        if ask is read_rgb:
                            assert answer.mode == "RGB" and min(answer.size) > 0
                    except DataError as error:
                        assert str(error).startswith(f"{broken}: ") and "\n" not in str(error)
                        refused.add(type(error.__cause__).__name__)
                broken.unlink()
    assert read > 2000 and len(refused) > 5, "nothing was damaged, or everything in one way"


def test_a_picture_too_large_for_pillow_is_one_line(tmp_path):
    Image.new("1", (16_000, 12_000)).save(tmp_path / "large.png")
    with pytest.raises(DataError, match=r"large.png: not a readable picture \(.*192000000 pixels"):
        read_rgb(tmp_path / "large.png")


# ---- what is no picture of the user's

@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", "._001.png", ".DS_Store", ".Trash-1000", "@eaDir",
                                  "$RECYCLE.BIN", "System Volume Information", "lost+found", "anomaly_maps"])
def test_hidden_names(name):
    assert hidden(name)


@pytest.mark.parametrize("name", ["good", "Größe #3", "$50", "@home", "_scratch", "~1", "lost", "a.b.png"])
def test_names_of_users(name):
    assert not hidden(name)


def test_pictures_in_a_folder_and_below(tmp_path):
    for name in ("b.PNG", "a.jpeg", "c.bmp", "d.txt", "._a.jpeg", "sub/e.tiff", ".hidden/f.png", "sub/__MACOSX/g.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [file.name for file in pictures_in(tmp_path)] == ["a.jpeg", "b.PNG", "c.bmp"]
    assert [file.name for file in pictures_in(tmp_path, below=True)] == ["a.jpeg", "b.PNG", "c.bmp", "e.tiff"]
    assert pictures_in(tmp_path / "absent") == []
