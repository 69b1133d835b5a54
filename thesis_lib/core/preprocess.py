"""From a picture's file to what a network sees: a path goes in, an array (3, H, W) or a mask (H, W) comes out.

Runs without torch, on a device, too.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from thesis_lib.core.errors import ThesisError
from thesis_lib.core.parameters import one_of, parameter

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
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
    """

    image_size: int = parameter(256, "side in pixels after the resize")
    crop: int | None = parameter(None, "side in pixels of the centre crop after it, or none", neutral=True)
    resize: str = parameter("square", "square, or short_side (keeps the aspect, needs a crop)", neutral=True)
    interpolation: str = parameter("bilinear", "of the resize: " + ", ".join(INTERPOLATIONS))

    def __post_init__(self) -> None:
        if self.image_size < 32:
            raise ThesisError(f"image_size={self.image_size}: needs at least 32 pixels")
        if self.crop is not None and not 32 <= self.crop <= self.image_size:
            raise ThesisError(f"crop={self.crop}: needs 32 to image_size={self.image_size} pixels, or none")
        one_of("resize", self.resize, ("square", "short_side"))
        if self.resize == "short_side" and self.crop is None:
            raise ThesisError("resize=short_side needs a crop: pictures of other aspect would not form a batch")
        one_of("interpolation", self.interpolation, INTERPOLATIONS)

    @property
    def side(self) -> int:
        """Side of what the network sees, in pixels."""
        return self.crop or self.image_size

    def geometry(self, image: Image.Image, interpolation: str) -> Image.Image:
        """Resized, and the centre cropped out of it: side x side pixels."""
        size = (self.image_size, self.image_size)
        if self.resize == "short_side":
            scale = self.image_size / min(image.size)
            width, height = (max(self.image_size, round(side * scale)) for side in image.size)
            size = (width, height)
        image = image.resize(size, INTERPOLATIONS[interpolation])
        left, top = (image.width - self.side) // 2, (image.height - self.side) // 2
        return image.crop((left, top, left + self.side, top + self.side))

    def array(self, path: Path) -> np.ndarray:
        """(3, H, W) float32, ImageNet-normalised."""
        pixels = np.array(self.geometry(read_rgb(path), self.interpolation), dtype=np.float32) / 255
        normalised = (pixels - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
        return np.ascontiguousarray(normalised.transpose(2, 0, 1))

    def mask(self, sample: Sample) -> np.ndarray:
        """(H, W) bool: every value above 0 is defect (MVTec LOCO uses values below 255); good pictures all False."""
        if sample.mask is None:
            return np.zeros((self.side, self.side), dtype=bool)
        picture, mask = open_picture(sample.path), open_picture(sample.mask)
        if picture.size != mask.size:
            raise DataError(f"{sample.mask}: mask is {mask.width}x{mask.height}, its picture {sample.path.name} "
                            f"{picture.width}x{picture.height} pixels; both must be the same")
        plain = len(mask.getbands()) == 1 and mask.mode != "P"      # its values are no places in a palette
        values = np.array(mask if plain else mask.convert("RGB"))
        defect = values > 0 if values.ndim == 2 else (values > 0).any(axis=2)
        binary = Image.fromarray(defect.astype(np.uint8))
        return np.array(self.geometry(binary, "nearest"), dtype=bool)


def read_rgb(path: Path) -> Image.Image:
    """8-bit RGB from grey, palette, RGBA (alpha dropped) or 16-bit grey (full range, 65535 -> 255)."""
    image = open_picture(path)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{path}: integer values {values.min()} to {values.max()}, needs 0 to 65535; "
                            "convert it to 8 or 16 bit")
        image = Image.fromarray((values.astype(np.uint32) / 257).round().astype(np.uint8))
    elif image.mode == "F":
        raise DataError(f"{path}: floating-point picture of unknown range; convert it to 8 or 16 bit")
    return image.convert("RGB")


def open_picture(path: Path) -> Image.Image:
    """Turned as its EXIF says; DataError that names it where it cannot be read."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError) as error:      # Pillow reports a broken PNG as SyntaxError
        raise DataError(f"{path}: not a readable picture ({error}); replace or remove it") from error
