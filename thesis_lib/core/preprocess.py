"""From a picture's file to what a network sees: a path goes in, an array (3, H, W) or a mask (H, W) comes out.

Runs without torch, on a device, too.
"""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, wraps
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps

from thesis_lib.core.errors import ThesisError
from thesis_lib.core.parameters import one_of, parameter
from thesis_lib.core.region import Region

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
MAPS = "anomaly_maps"           # folder beside the pictures, for what `thesis detect --maps` writes
# Folders that systems and tools leave among pictures, in lower case; names that begin with a dot are hidden anyway.
NOT_THE_USERS = {MAPS, "__macosx", "__pycache__", "$recycle.bin", "system volume information", "lost+found", "recycler",
                 "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp", "network trash folder",
                 "temporary items"}
LEVELS = (256, 1024, 4096, 16384, 65536)        # grey levels of cameras with 8, 10, 12, 14 and 16 bits
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)      # tag of EXIF, and its values that exchange width and height
LOOKED_AT = 8           # training pictures of 8 bits, evenly spaced, that tell whether a set is dark
DARK = 0.25             # share of the full scale that a set should reach
Answer = TypeVar("Answer")
Size = int | tuple[int, int]      # of a picture: side of a square, or (H, W) as of an array
log = logging.getLogger("thesis_lib")
RESIZES = ("square", "short_side", "pad")
INTERPOLATIONS = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos")}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DataError(ThesisError):
    """A folder or picture is not what it should be; the message names it and says what would be right."""


@dataclass(frozen=True)
class Sample:
    """One picture of a category on disk, not opened yet."""

    path: Path
    split: str                  # "train" or "test": decides what may reach `fit`
    defect: str                 # name of the folder, "good" for a nominal picture
    mask: Path | None = None

    @property
    def label(self) -> int:
        """0 nominal, 1 anomalous."""
        return int(self.defect != "good")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """From a file to a normalised tensor; part of a result's identity.

    The thesis' text says 256 x 256, its code resized to 256 (Lanczos) and cropped the centre 224: both can be set.
    The official PatchCore code is resize="short_side", bilinear, crop 224.
    A rectangle is (width, height), the order of Pillow and of the command line; a tensor has (H, W), which is `shape`.
    A mask picture as `roi` is read at once and kept as the text of its `Region`: it counts by its pixels, whatever its
    name, and goes where the rest goes, into rows, saved detectors and bundles.

    >>> Preprocess(image_size=(256, 640)).shape
    (640, 256)
    """

    image_size: int | tuple[int, int] = parameter(256, "pixels after the resize: the side of a square, or width x "
                                                  "height such as 256x640")
    crop: int | None = parameter(None, "side in pixels of the centre crop after it, or none", neutral=True)
    resize: str = parameter("square", "square (each side by itself), short_side (keeps the aspect, needs a crop), or "
                            "pad (keeps the aspect; what is left of the size is padding, which does not count)",
                            neutral=True)
    roi: tuple[int, ...] | str | None = parameter(
        None, "region of interest in the original picture: x,y,w,h in pixels, cut out before the resize; or a mask "
        "picture of its size, above 0 inside: patches whose middle lies outside do not count; or none", neutral=True)
    interpolation: str = parameter("bilinear", "of the resize: " + ", ".join(INTERPOLATIONS))
    levels: int | str = parameter("auto", "grey levels of files with more than 8 bits: 4096 is that of 12 bits, "
                                  "full is 65536, auto is the next of " + ", ".join(map(str, LEVELS))
                                  + " above the training pictures", neutral=("auto", 256))

    def __post_init__(self) -> None:
        self._check_size()
        one_of("resize", self.resize, RESIZES)
        object.__setattr__(self, "roi", _region(self.roi))
        if self.resize == "pad" and self.crop is not None:
            raise ThesisError(f"resize=pad, crop={self.crop}: pad keeps the whole picture; needs no crop")
        if self.resize == "short_side" and self.crop is None:
            raise ThesisError("resize=short_side needs a crop: pictures of other aspect would not form a batch")
        one_of("interpolation", self.interpolation, INTERPOLATIONS)
        if self.levels == "full":
            object.__setattr__(self, "levels", LEVELS[-1])          # one configuration, by whatever name
        whole = isinstance(self.levels, int) and not isinstance(self.levels, bool)
        if self.levels != "auto" and not (whole and 2 <= int(self.levels) <= LEVELS[-1]):
            raise ThesisError(f"levels={self.levels!r}: needs auto, full or a number from 2 to {LEVELS[-1]}")

    def _check_size(self) -> None:
        """ThesisError for sides that are too small, and for a rectangle with what is made for squares; one of equal
        sides becomes a square: one configuration, by whatever name.
        """
        given = self.image_size
        sides = tuple(given) if isinstance(given, (tuple, list)) else (given, given)        # JSON has no tuples
        if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
            raise ThesisError(f"image_size={given!r}: needs the side of a square such as 256, or width and height such "
                              "as (256, 640)")
        width, height = sides
        object.__setattr__(self, "image_size", width if width == height else (width, height))
        told = in_pixels((height, width)) if width != height else str(width)
        if min(sides) < 32:
            raise ThesisError(f"image_size={told}: needs at least 32 pixels" + " a side" * (width != height))
        if width != height and (self.crop is not None or self.resize == "short_side"):
            raise ThesisError(f"image_size={told}: a rectangle is what a whole picture becomes; crop and "
                              "resize=short_side need a square")
        if self.crop is not None and not 32 <= self.crop <= width:
            raise ThesisError(f"crop={self.crop}: needs 32 to image_size={width} pixels, or none")

    @property
    def resized(self) -> tuple[int, int]:
        """Width and height after the resize of a whole picture, before a crop."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of what the network sees, in pixels."""
        width, height = self.resized
        return (self.crop, self.crop) if self.crop else (height, width)

    @property
    def side(self) -> int:
        """Side of what the network sees, in pixels, where that is a square; else ThesisError."""
        height, width = self.shape
        if height != width:
            raise ThesisError(f"image_size={in_pixels(self.shape)}: a rectangle has no side; needs `shape`, (H, W)")
        return height

    @property
    def masked(self) -> bool:
        """Whether parts of what the network sees do not count; `array` then has a fourth channel that says which do."""
        return self.resize == "pad" or isinstance(self.roi, str)

    def geometry(self, image: Image.Image, interpolation: str) -> Image.Image:
        """Of the region of interest, resized, and the centre cropped out of it: `shape` in pixels, with torchvision's
        rounding.

        resize=pad: the padding goes on with the pixels at the picture's rim, so that it has no colour of its own and no
        edge towards the picture.
        """
        height, width = self.shape
        if isinstance(self.roi, tuple):
            x, y, w, h = self.roi
            image = image.crop((x, y, x + w, y + h))
        if self.resize == "pad":
            left, top, right, bottom = self._frame(image.size)
            values = np.asarray(image.resize((right - left, bottom - top), INTERPOLATIONS[interpolation]))
            sides = ((top, height - bottom), (left, width - right), (0, 0))
            return Image.fromarray(np.pad(values, sides[:values.ndim], mode="edge"))
        resized = self.resized
        if self.resize == "short_side":         # the long side is cut off to whole pixels
            resized = image.width * resized[0] // min(image.size), image.height * resized[1] // min(image.size)
        image = image.resize(resized, INTERPOLATIONS[interpolation])
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)    # halves go to the even one
        return image.crop((left, top, left + width, top + height))

    def inside(self, size: tuple[int, int]) -> np.ndarray:
        """(H, W) bool: which of the pixels that the network sees of a picture of this width and height count.

        Raises DataError for a size that the region of interest does not fit.
        """
        self._check_region(size)
        counted = np.ones(self.shape, dtype=bool)
        if isinstance(self.roi, str):
            counted = np.array(self.geometry(Image.fromarray(Region.parse(self.roi).mask()), "nearest"), dtype=bool)
        if self.resize == "pad":
            left, top, right, bottom = self._frame(self.roi[2:] if isinstance(self.roi, tuple) else size)
            shown = np.zeros_like(counted)
            shown[top:bottom, left:right] = True
            counted &= shown
        return counted

    def _check_region(self, size: tuple[int, int]) -> None:
        """DataError, still without its file, for a picture of another size than the region of interest is for."""
        width, height = size
        if isinstance(self.roi, tuple):
            x, y, w, h = self.roi
            if x + w > width or y + h > height:
                raise DataError(f"is {width}x{height} pixels; roi={x},{y},{w},{h} reaches to {x + w}x{y + h}")
        elif self.roi is not None and (region := Region.parse(self.roi)).size != size:
            raise DataError(f"is {width}x{height} pixels, the mask of roi {region.size[0]}x{region.size[1]}; both must "
                            "be the same")

    def _frame(self, size: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a picture of this width and height inside its padding: in the middle."""
        height, width = self.shape
        scale = min(width / size[0], height / size[1])
        inner = max(1, round(scale * size[0])), max(1, round(scale * size[1]))
        left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
        return left, top, left + inner[0], top + inner[1]

    def decided(self, training: Iterable[Sample]) -> "Preprocess":
        """The same with `levels` as a number where it is auto: decided by these pictures, used for all others, too."""
        return replace(self, levels=levels_of([sample.path for sample in training], self.levels))

    def array(self, path: Path) -> np.ndarray:
        """(3, H, W) float32, ImageNet-normalised; where it is `masked` (4, H, W), the last channel 1 where pixels count
        and 0 elsewhere.
        """
        image = read_rgb(path, self.levels)
        self._fits(path, image.size)
        pixels = np.array(self.geometry(image, self.interpolation), dtype=np.float32) / 255
        normalised = (pixels - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
        channels = np.ascontiguousarray(normalised.transpose(2, 0, 1))
        return np.concatenate([channels, self.inside(image.size)[None]], dtype=np.float32) if self.masked else channels

    def _fits(self, path: Path, size: tuple[int, int]) -> None:
        """DataError that names the picture where the region of interest is not for its size."""
        try:
            self._check_region(size)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def mask(self, sample: Sample) -> np.ndarray:
        """(H, W) bool: every value above 0 is defect (MVTec LOCO uses values below 255); good pictures all False."""
        if sample.mask is None:
            return np.zeros(self.shape, dtype=bool)
        picture, mask = open_picture(sample.path), open_picture(sample.mask)
        if picture.size != mask.size:
            raise DataError(f"{sample.mask}: mask is {mask.width}x{mask.height}, its picture {sample.path.name} "
                            f"{picture.width}x{picture.height} pixels; both must be the same")
        self._fits(sample.path, picture.size)
        binary = Image.fromarray(_above_0(sample.mask, mask))
        return np.array(self.geometry(binary, "nearest"), dtype=bool) & self.inside(binary.size)


def _region(roi: object) -> tuple[int, int, int, int] | str | None:
    """A region of interest as `Preprocess` keeps it: x, y, w, h, or the text of the `Region` of a mask picture."""
    if roi is None:
        return None
    if isinstance(roi, (str, Path)):
        if re.match(r"\d+x\d+:", str(roi)):
            return str(Region.parse(str(roi)))
        file = Path(roi).expanduser()
        if not file.is_file():
            raise ThesisError(f"roi={roi}: needs x,y,w,h in pixels such as 10,20,300,200, or the file of a mask")
        mask = _above_0(file, open_picture(file))
        if not mask.any():
            raise DataError(f"{file}: no pixel above 0, so nothing lies inside this region of interest")
        return str(Region.of(mask))
    numbers = tuple(roi) if isinstance(roi, (tuple, list)) else ()          # JSON has no tuples
    if len(numbers) != 4 or not all(isinstance(number, int) for number in numbers):
        told = ",".join(map(str, numbers)) or repr(roi)
        raise ThesisError(f"roi={told}: needs four numbers x,y,w,h in pixels, such as 10,20,300,200")
    x, y, w, h = numbers
    if min(x, y) < 0 or min(w, h) < 1:
        raise ThesisError(f"roi={x},{y},{w},{h}: needs x and y of at least 0, w and h of at least 1 pixel")
    return x, y, w, h


def _above_0(path: Path, mask: Image.Image) -> np.ndarray:
    """(H, W) uint8: 1 where a channel of a mask picture is above 0, else 0; the path is for what cannot be read."""
    with _named(path):
        plain = len(mask.getbands()) == 1 and mask.mode != "P"      # its values are no places in a palette
        values = np.array(mask if plain else mask.convert("RGB"))
        above = values > 0 if values.ndim == 2 else (values > 0).any(axis=2)
        return np.asarray(above, dtype=np.uint8)


def height_width(size: Size) -> tuple[int, int]:
    """(H, W) of a size."""
    return (size, size) if isinstance(size, int) else size


def in_pixels(size: Size) -> str:
    """A size as it is told and asked for: width x height.

    >>> in_pixels((640, 256))
    '256x640'
    """
    height, width = height_width(size)
    return f"{width}x{height}"


def rectangle(width: int, height: int, short: int = 256) -> int | tuple[int, int]:
    """`image_size` that keeps the aspect of a picture: so many pixels on its short side, on the long one the nearest
    multiple of 32, which fits the grids of all levels; the side of a square where that is nearest.

    >>> rectangle(500, 1260), rectangle(1000, 960)
    ((256, 640), 256)
    """
    long = max(short, 32 * round(short * max(width, height) / min(width, height) / 32))
    if long == short:
        return short
    return (short, long) if width < height else (long, short)


def at_centres(pixels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(..., h, w): of pixels (..., H, W) those in the middle of each position of a grid that is laid over them.

    >>> at_centres(np.array([[0, 1, 2, 3]]), (1, 2))
    array([[1, 3]])
    """
    rows, columns = ((np.arange(count) * 2 + 1) * side // (2 * count)
                     for count, side in zip(grid, pixels.shape[-2:], strict=True))
    return pixels[..., rows[:, None], columns]


def _once_a_file(ask: Callable[[Path], Answer]) -> Callable[[Path], Answer]:
    """What `ask` says of a file, asked again only when its size or time has changed."""
    @lru_cache(maxsize=2**16)
    def known(path: Path, size: int, time_ns: int) -> Answer:
        return ask(path)

    @wraps(ask)
    def answer(path: Path) -> Answer:
        with _named(path):
            state = path.stat()
        return known(path, state.st_size, state.st_mtime_ns)

    return answer


class Depth(NamedTuple):
    """What a file says of its numbers."""

    bits: int               # of a channel, as far as it is read: 8, 16 or 32
    colour: bool            # several channels, of which Pillow keeps 8 bits
    pages: int              # the first is read
    profile: bool           # an ICC profile, which is not applied


_DEEP_COLOUR = ("colour of 16 bits a channel, of which 8 can be read: convert it to 8 bits a channel or to 16-bit "
                "grey; levels=full reads the upper 8, which is right where values reach 65535")


def levels_of(files: Sequence[Path], levels: int | str = "auto") -> int | str:
    """`levels` of these pictures as a number, where it is auto: the next of LEVELS above their largest value.

    Warns where they stay far below the full scale. Raises DataError naming a picture that cannot be read with it.
    """
    deep = []
    for file in files:
        found = depth(file)
        if found.colour and levels != LEVELS[-1]:
            raise DataError(f"{file}: {_DEEP_COLOUR}")
        if found.bits > 8:
            deep.append(file)
    # All of those that decide; of 8 bits some, which only decide about a warning.
    highest = max(map(maximum, deep or files[::max(1, len(files) // LOOKED_AT)]), default=LEVELS[0] - 1)
    if levels == "auto":
        levels = next(known for known in LEVELS if known > highest)
        if deep:
            _say_once(logging.INFO, f"{deep[0].parent}: values up to {highest}, read as {levels} grey levels")
    full = (int(levels) if deep else LEVELS[0]) - 1
    if highest < DARK * full:
        _say_once(logging.WARNING, f"{files[0].parent}: values reach only {highest} of {full}: dark pictures, "
                  "or another range than the files promise (see levels)")
    return levels


def read_rgb(path: Path, levels: int | str = LEVELS[-1]) -> Image.Image:
    """8-bit RGB from grey, palette, RGBA (alpha dropped), CMYK, or grey of more bits, whose levels - 1 becomes 255.

    The first page of a file of several; colour profiles are not applied. DataError names the file.
    """
    image, deep_colour = _opened(path)
    with _named(path):
        if deep_colour and levels != LEVELS[-1]:
            raise DataError(f"{path}: {_DEEP_COLOUR}")
        if deep_colour or _bits(image) == 8:
            return image.convert("RGB")
        values = np.asarray(image)
        highest = _highest(path, values)
        if levels == "auto":
            raise DataError(f"{path}: grey of more than 8 bits; levels=auto is decided from training pictures, by "
                            f"`Preprocess.decided`, or give levels, full or one of {', '.join(map(str, LEVELS))}")
        if highest >= int(levels):
            fitting = next(known for known in LEVELS if known > highest)
            raise DataError(f"{path}: value {highest} is beyond levels={levels}, which was given or decided from the "
                            f"training pictures; give levels={fitting}")
        scaled = (values.astype(np.float64) * 255 / (int(levels) - 1)).round()
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")


def open_picture(path: Path) -> Image.Image:
    """The first page, turned as its EXIF says; DataError that names the file where it cannot be read."""
    return _opened(path)[0]


@_once_a_file
def depth(path: Path) -> Depth:
    """From the head of a file, without its pixels."""
    with _named(path), Image.open(path) as image:
        colour = _is_deep_colour(image)
        pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
        return Depth(16 if colour else _bits(image), colour, pages, "icc_profile" in image.info)


@_once_a_file
def size_of(path: Path) -> tuple[int, int]:
    """Width and height as the picture is turned, from the head of its file."""
    with _named(path), Image.open(path) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(ORIENTATION, 1) in TURNED else (width, height)


@_once_a_file
def maximum(path: Path) -> int:
    """Largest value of any channel, on the scale of the file's depth."""
    image, deep_colour = _opened(path)
    with _named(path):
        if _bits(image) > 8:
            return _highest(path, np.asarray(image))
        largest = int(np.asarray(image.convert("RGB")).max())
        return largest * 257 if deep_colour else largest            # of its 16 bits the upper 8 were read


def pictures_in(folder: Path, below: bool = False) -> list[Path]:
    """Files of pictures in a folder, or in all below it, too, sorted; none where it is missing. See `hidden`."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):         # a category may lie elsewhere
        folders[:] = [name for name in folders if below and not hidden(name)]
        found += [Path(place, name) for name in names if Path(name).suffix.lower() in SUFFIXES and not hidden(name)]
    return sorted(found)


def hidden(name: str) -> bool:
    """Whether files and folders of this name are left out: hidden ones, those of systems, and this project's maps."""
    return name.startswith(".") or name.lower() in NOT_THE_USERS


def _opened(path: Path) -> tuple[Image.Image, bool]:
    """The first page, turned; and whether it is colour of which Pillow has cut 16 bits to 8."""
    with _named(path), Image.open(path) as image:
        deep_colour = _is_deep_colour(image)            # now: once it is read, a picture has forgotten its file
        return ImageOps.exif_transpose(image), deep_colour


def _bits(image: Image.Image) -> int:
    """Of a channel as it is read: 8, 16 or 32."""
    if image.mode in ("I", "F"):
        return 32
    return 16 if image.mode.startswith("I;16") else 8


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether the picture's mode has 8 bits a channel and its file more; the image is as `Image.open` gave it."""
    # The order of bytes stands behind the 16 of a PNG or TIFF; BGR;16 of a BMP is 16 bits of a whole pixel.
    cut = re.search(r";16[BLNS]", str([tile[3] for tile in getattr(image, "tile", ())]))
    stated = getattr(image, "tag_v2", {}).get(258, (8,))            # BitsPerSample of a TIFF
    return _bits(image) == 8 and (bool(cut) or max(stated) > 8)


def _highest(path: Path, values: np.ndarray) -> int:
    """Largest value; DataError for what is not grey of 0 to 65535."""
    if values.dtype.kind == "f":
        raise DataError(f"{path}: floating-point picture of unknown range; convert it to 8 or 16 bit")
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest >= LEVELS[-1]:
        raise DataError(f"{path}: integer values {lowest} to {highest}, needs 0 to 65535; convert it to 8 or 16 bit")
    return highest


@lru_cache
def _say_once(level: int, message: str) -> None:
    log.log(level, message)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever Pillow raises on a file as one line that names it; it raises nearly everything on damaged ones."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: not a readable picture ({reason}); replace or remove it") from error
