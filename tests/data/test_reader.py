import os
import resource
import time

import cv2
import numpy as np
import pytest
from conftest import bare_config
from models import png_of_zeros
from PIL import Image

from ssdlite_d2 import InputError
from ssdlite_d2.data import SSDDatasetMapper
from ssdlite_d2.data.reader import read_image
from ssdlite_d2.diagnostics.defects import read_facts

SIZE = (61, 83)


@pytest.fixture(scope="module")
def pixels():
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pixels):
    folder = tmp_path_factory.mktemp("images")
    image = Image.fromarray(pixels)
    for name in ("rgb.jpg", "rgb.png", "rgb.bmp", "rgb.webp", "rgb.tif", "rgb.gif"):
        image.save(folder / name)
    for mode in ("L", "LA", "RGBA", "P", "1"):
        image.convert(mode).save(folder / f"{mode}.png")
    image.convert("L").save(folder / "L.jpg")
    image.convert("CMYK").save(folder / "CMYK.jpg")
    image.save(folder / "progressive.jpg", progressive=True)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(folder / f"exif{orientation}.jpg", exif=exif)
    image.resize((1, 1)).save(folder / "1x1.jpg")
    image.resize((10000, 10)).save(folder / "long.jpg")
    (folder / "trailing.jpg").write_bytes((folder / "rgb.jpg").read_bytes() + b"trailing bytes")
    return folder


def pillow(path):
    from PIL import ImageOps

    return np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))


def test_every_kind_of_image_is_read_as_pillow_reads_it(folder):
    names = sorted(p.name for p in folder.iterdir())
    assert len(names) == 25
    for name in names:
        found, expected = read_image(str(folder / name)), pillow(folder / name)
        assert found.shape == expected.shape, name
        assert np.abs(found.astype(int) - expected).max() <= 1, name
        bgr = read_image(str(folder / name), "BGR")
        assert np.array_equal(bgr[..., ::-1], found), name


def test_16_bits_are_scaled_to_8(tmp_path, pixels):
    """Pillow saturates them."""
    path = str(tmp_path / "a.png")
    cv2.imwrite(path, pixels[..., 0].astype(np.uint16) * 257)
    assert np.abs(read_image(path).astype(int) - pixels[..., :1]).max() <= 1


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("name", ["rgb.jpg", "rgb.png", "exif6.jpg", "rgb.gif", "1x1.jpg"])
def test_reduced_images(folder, name, reduction):
    """Rounded up in size, and a JPEG is the mean of the pixels that fall together."""
    whole = read_image(str(folder / name)).astype(np.float32)
    reduced = read_image(str(folder / name), reduction=reduction)
    height, width = (-(-n // reduction) for n in whole.shape[:2])
    assert reduced.shape == (height, width, 3)
    if name == "rgb.jpg":
        rows, columns = height - 1, width - 1  # whole blocks
        blocks = whole[: rows * reduction, : columns * reduction]
        means = blocks.reshape(rows, reduction, columns, reduction, 3).mean(axis=(1, 3))
        assert np.abs(reduced[:-1, :-1] - means).mean() < 2.5


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("gone.jpg", None, "No such file"),
        ("zero.jpg", b"", "cannot identify"),
        ("text.jpg", b"hello", "cannot identify"),
        ("half.jpg", "rgb.jpg", "truncated"),
        ("half2.jpg", "progressive.jpg", "truncated"),
        ("half.png", "rgb.png", "truncated"),
    ],
)
def test_bad_files_are_named(folder, tmp_path, name, content, words):
    if isinstance(content, str):
        content = (folder / content).read_bytes()
        content = content[: len(content) // 2]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read_image(str(tmp_path / name))
    message = str(error.value)
    assert message.startswith(f"image {tmp_path / name} cannot be read: ") and words in message
    assert "\n" not in message


def test_an_image_above_the_limit_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "huge.png"
    png_of_zeros(path, 30_000, 30_000)
    assert path.stat().st_size < 120_000
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    words = "30000 x 30000 pixels, and INPUT.MAX_PIXELS is 100000000"
    with pytest.raises(InputError, match=words):
        read_image(str(path))
    assert "30000 x 30000" in read_facts(str(path)).problem[1]
    record = {"file_name": str(path), "height": 30_000, "width": 30_000, "annotations": []}
    with pytest.raises(InputError, match=words):
        SSDDatasetMapper(bare_config(3), True)(record)
    assert time.perf_counter() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif", "gif"])
def test_the_limit_is_on_the_pixels_of_the_file(folder, suffix):
    path, pixels = str(folder / f"rgb.{suffix}"), SIZE[0] * SIZE[1]
    image = read_image(path, max_pixels=pixels)
    assert np.array_equal(image, read_image(path, max_pixels=0))
    with pytest.raises(InputError, match="83 x 61 pixels, and INPUT.MAX_PIXELS is 5062"):
        read_image(path, reduction=2, max_pixels=pixels - 1)


def test_the_key_reaches_the_mapper(folder):
    cfg = bare_config(3, "INPUT.MAX_PIXELS", 100)
    record = {"file_name": str(folder / "rgb.jpg"), "height": 61, "width": 83, "annotations": []}
    for is_train in (True, False):
        with pytest.raises(InputError, match="INPUT.MAX_PIXELS is 100"):
            SSDDatasetMapper(cfg, is_train)(record)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", "/dev/zero", tmp_path):
        with pytest.raises(InputError, match=f"image {path} cannot be read: "):
            read_image(str(path))
    assert read_facts(str(tmp_path / "pipe.jpg")).problem[1] == "not a regular file"


def test_damaged_png_is_refused(folder, tmp_path):
    """Whichever byte is changed; OpenCV alone reads on, to other pixels."""
    data = (folder / "rgb.png").read_bytes()
    path, expected = tmp_path / "a.png", read_image(str(folder / "rgb.png"))
    for place in np.random.default_rng(0).integers(8, len(data) - 12, 100):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        with pytest.raises(InputError, match="a.png cannot be read: .* (damaged|truncated)"):
            read_image(str(path))
    path.write_bytes(data[:-4])  # all pixels are there
    assert np.array_equal(read_image(str(path)), expected)


@pytest.mark.parametrize("name", ["rgb.png", "rgb.bmp", "rgb.webp", "rgb.tif", "rgb.gif"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_truncated_file_is_refused(folder, tmp_path, name, share):
    data = (folder / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=f"{name} cannot be read"):
        read_image(str(tmp_path / name))
