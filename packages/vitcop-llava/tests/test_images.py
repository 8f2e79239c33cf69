"""Reading images: every format as RGB, and a clear refusal of everything else."""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from vitcop_llava.tools.media import images
from vitcop_llava.tools.media.images import FirstFrameWarning, ImageError, read_image

RED = (200, 30, 30)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and breaks off where the pixels begin."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1000) + b"IDAT"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif"])
def test_read_image_gives_rgb_for_every_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.new("RGB", (12, 8), RED).save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (12, 8))
    assert np.abs(np.asarray(image).astype(int) - RED).max() < 12


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_read_image_gives_rgb_for_every_mode(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.png"
    Image.new(mode, (4, 4)).save(path)
    assert read_image(path).mode == "RGB"


def test_read_image_scales_sixteen_bits(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16)).save(path)
    assert np.asarray(read_image(path))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_read_image_rounds_every_value_of_sixteen_bits(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(read_image(tmp_path / "deep.png"))[..., 0], np.rint(values / 257))


def test_read_image_puts_a_clear_value_of_sixteen_bits_on_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 700, 701]], dtype=np.uint16)).save(tmp_path / "deep.png", transparency=700)
    assert np.asarray(read_image(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 255, 3]


def test_read_image_puts_transparent_parts_on_white(tmp_path: Path) -> None:
    layer = Image.new("RGBA", (2, 1), (*RED, 255))
    layer.putpixel((1, 0), (0, 0, 0, 0))
    layer.save(tmp_path / "layer.png")
    image = read_image(tmp_path / "layer.png")
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [RED, (255, 255, 255)]


def test_read_image_puts_a_transparent_palette_color_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=0)
    read = read_image(tmp_path / "palette.png")
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), RED]


def test_read_image_turns_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.new("RGB", (12, 8)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (8, 12)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("value", range(10))
@pytest.mark.parametrize("how", ["little", "big", "xmp"])
def test_read_image_turns_as_pillow_does(tmp_path: Path, suffix: str, value: int, how: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    exif, path, given = Image.Exif(), tmp_path / f"turned.{suffix}", dict[str, Any]()
    if how == "xmp":
        text = f'<rdf:Description tiff:Orientation="{value}"/>'
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", text)
        given = {"pnginfo": info} if suffix == "png" else {"xmp": text.encode()}
    else:
        exif.endian, exif[0x010F], exif[0x0112] = "<" if how == "little" else ">", "maker", value
        given = {"exif": exif}
    Image.fromarray(noise).save(path, **given)
    with Image.open(path) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(np.asarray(read_image(path)), wanted)


def test_read_image_turns_by_a_profile_of_imagemagick(tmp_path: Path) -> None:
    exif, info = Image.Exif(), PngInfo()
    exif[0x0112] = 8
    info.add_text("Raw profile type exif", f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n", zip=True)
    Image.new("RGB", (12, 8)).save(tmp_path / "turned.png", pnginfo=info)
    assert read_image(tmp_path / "turned.png").size == (8, 12)


def test_read_image_reads_of_exif_the_orientation_alone(tmp_path: Path) -> None:
    """Thousands of fields that share their content would be billions of numbers."""
    fields = [struct.pack("<HHII", tag, 3, 30000, 8) for tag in range(0x0200, 0x0200 + 5000)]
    fields = [struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0), *fields]
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + b"".join(fields)
    Image.new("RGB", (12, 8)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (8, 12)


@pytest.mark.parametrize("shape", [(9000, 5000), (16320, 12240)], ids=str)
def test_read_image_reads_large_jpeg_files_smaller(tmp_path: Path, shape: tuple[int, int]) -> None:
    Image.new("RGB", shape, RED).save(tmp_path / "phone.jpg")
    image, by = read_image(tmp_path / "phone.jpg"), 2 if shape[0] == 9000 else 4
    assert image.size == (shape[0] // by, shape[1] // by)
    assert np.abs(np.asarray(image.resize((8, 8))).astype(int) - RED).max() < 12


def test_read_image_does_not_follow_pillows_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for suffix in ("png", "jpg", "bmp"):
        Image.new("RGB", (60, 80)).save(tmp_path / f"image.{suffix}")
        assert read_image(tmp_path / f"image.{suffix}").size == (60, 80)


def test_read_image_overlooks_damaged_metadata(tmp_path: Path) -> None:
    Image.new("RGB", (12, 8), RED).save(tmp_path / "odd.jpg", exif=b"Exif\x00\x00II*\x00garbage that is no directory")
    assert read_image(tmp_path / "odd.jpg").size == (12, 8)


def test_read_image_takes_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, (0, 0, 255))]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(FirstFrameWarning, match=r"moving\.gif is animated; its first frame alone is used"):
        assert read_image(tmp_path / "moving.gif").getpixel((0, 0)) == RED


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_read_image_says_that_a_picture_moves(tmp_path: Path, suffix: str, mode: str) -> None:
    frames = [Image.new(mode, (9, 9), color) for color in (RED, (0, 0, 255), (9, 99, 9))]
    path, still = tmp_path / f"moving.{suffix}", tmp_path / f"still.{suffix}"
    how: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50, **how)
    with pytest.warns(FirstFrameWarning, match="is animated"):
        assert read_image(path).getpixel((4, 4)) == RED
    frames[0].save(still, save_all=True, append_images=[], **how)
    assert read_image(still).getpixel((4, 4)) == RED  # without a warning, which would be an error here


def test_read_image_ignores_a_phones_second_picture(tmp_path: Path) -> None:
    """A depth map, a gain map or a film after a JPEG file is no animation, and costs nothing."""
    path = tmp_path / "phone.jpg"
    Image.new("RGB", (12, 8), RED).save(path, format="MPO", save_all=True, append_images=[Image.new("RGB", (12, 8))])
    path.write_bytes(path.read_bytes() + b"\xff\xda\0\2" * 100_000)
    image = read_image(path)
    assert image.size == (12, 8)
    assert np.abs(np.asarray(image).astype(int) - RED).max() < 12


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"Not an image.\n" * 40, "must be one of", id="text"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "must be one of", id="postscript"),
        pytest.param(png_header(9000, 9000), "at most 40 megapixels, got 9000 x 9000", id="large"),
        pytest.param(png_header(60000, 60000), "at most 40 megapixels, got 60000 x 60000", id="huge"),
        pytest.param(png_header(20000, 10), "not be longer than 100 times", id="line"),
        pytest.param(png_header(20, 20), "damaged or truncated", id="header only"),
    ],
)
def test_read_image_refuses_content(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=said) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif"])
def test_read_image_refuses_a_truncated_file(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=r"damaged or truncated|must be one of"):
        read_image(path)


def test_read_image_refuses_what_is_no_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, said in (
        (tmp_path, "the folder"),
        (pipe, "a pipe"),
        (tmp_path / "none.png", "image must be an existing file"),
    ):
        with pytest.raises(ImageError, match=said):
            read_image(path)


@pytest.mark.parametrize("name", ["a\0b.png", "a" * 5000, "\ud800.png", "image.png/inside.png"])
def test_read_image_refuses_a_name_that_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "image.png").write_bytes(b"x")
    with pytest.raises(ImageError, match="image must be a file that can be read"):
        read_image(f"{tmp_path}/{name}")


def test_read_image_refuses_a_large_file_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 2**20)
    path = tmp_path / "large.png"
    path.write_bytes(b"\0" * (2**20 + 1))
    with pytest.raises(ImageError, match="at most 1 MiB"):
        read_image(path)
