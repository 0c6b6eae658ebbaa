"""Arrays of every format that a job may name, their limits, and what is refused."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from accel.pipelines.batch.identity import job_id
from accel.pipelines.job import Job
from accel.pipelines.motion.array_formats import open_array
from accel.pipelines.motion.files import read_flow
from accel.pipelines.motion.scene import Depth
from accel.pipelines.motion.strength import make_strength

H, W, FRAMES = 12, 20, 4
RAMP = np.linspace(0, 1, H * W, dtype=np.float32).reshape(H, W)
FLOWS = np.random.default_rng(0).normal(0, 3, (FRAMES - 1, 2, H, W)).astype(np.float32)


def gamma(path, frames=FRAMES):
    return make_strength({"map": str(path)}, frames=frames, height=H, width=W)


def flow(path):
    return read_flow(str(path), FLOWS.shape)


def exr(channels, kind="<f4", packed=0):
    """An OpenEXR file with one scan line in each block."""
    code, (height, width) = {"<u4": 0, "<f2": 1, "<f4": 2}[kind], RAMP.shape
    listed = b"".join(
        name.encode() + b"\0" + struct.pack("<4i", code, 0, 1, 1) for name in sorted(channels)
    )
    box = struct.pack("<4i", 0, 0, width - 1, height - 1)
    head = struct.pack("<2I", 20000630, 2)
    for name, sort, value in (
        ("channels", "chlist", listed + b"\0"), ("compression", "compression", bytes([packed])),
        ("dataWindow", "box2i", box), ("displayWindow", "box2i", box),
        ("lineOrder", "lineOrder", b"\0"), ("pixelAspectRatio", "float", struct.pack("<f", 1)),
        ("screenWindowCenter", "v2f", bytes(8)), ("screenWindowWidth", "float", bytes(4)),
    ):  # fmt: skip
        head += f"{name}\0{sort}\0".encode() + struct.pack("<i", len(value)) + value
    head, blocks, offsets = head + b"\0", b"", b""
    for y in range(height):
        data = b"".join(channels[n][y].astype(kind).tobytes() for n in sorted(channels))
        if packed:  # halves apart, differences, deflated
            bytes_ = np.frombuffer(data, np.uint8)
            apart = np.concatenate([bytes_[::2], bytes_[1::2]]).astype(int)
            steps = np.concatenate([apart[:1], np.diff(apart) + 128]) % 256
            small = zlib.compress(steps.astype(np.uint8).tobytes())
            data = small if len(small) < len(data) else data
        offsets += struct.pack("<Q", len(head) + 8 * height + len(blocks))
        blocks += struct.pack("<2i", y, len(data)) + data
    return head + offsets + blocks


def pfm(values, order="<"):
    sign = "-" if order == "<" else ""
    kind = "PF" if values.ndim == 3 else "Pf"
    head = f"{kind}\n{values.shape[1]} {values.shape[0]}\n{sign}1.0\n".encode()
    return head + values[::-1].astype(f"{order}f4").tobytes()


def flo(values):
    return (
        struct.pack("<f2i", 202021.25, *values.shape[2:0:-1])
        + values.transpose(1, 2, 0).astype("<f4").tobytes()
    )


def png(values):
    """PNG of [H, W] or RGB [H, W, 3], with as many bits as ``values``."""
    return cv2.imencode(".png", values[..., ::-1] if values.ndim == 3 else values)[1].tobytes()


def saved(values, format, **how):
    file = io.BytesIO()
    Image.fromarray(values).save(file, format, **how)
    return file.getvalue()


def palette(values):
    file = io.BytesIO()
    picture = Image.fromarray(values).convert("P")
    picture.putpalette([level for level in range(256) for _ in range(3)])
    picture.save(file, "PNG")
    return file.getvalue()


def pgm(values):
    """16-bit PGM, which older Pillow reads but does not write."""
    return f"P5\n{W} {H}\n65535\n".encode() + values.astype(">u2").tobytes()


def npz(compressed=True, **arrays):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def npy(values):
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    return file.getvalue()


BYTES = (RAMP * 255).round().astype(np.uint8)
WORDS = (RAMP * 65535).round().astype(np.uint16)
MAPS = {
    "float.npy": npy(RAMP), "fortran.npy": npy(np.asfortranarray(RAMP.astype(np.float64))),
    "big.npy": npy(RAMP.astype(">f4")), "half.npy": npy(RAMP.astype(np.float16)),
    "one.npz": npz(any=RAMP), "stored.npz": npz(compressed=False, any=RAMP[None]),
    "8.png": png(BYTES), "16.png": png(WORDS), "rgb.png": png(np.stack([BYTES] * 3, -1)),
    "rgb16.png": png(np.stack([WORDS] * 3, -1)), "palette.png": palette(BYTES),
    "rgba.png": saved(np.stack([*[BYTES] * 3, np.full_like(BYTES, 255)], -1), "PNG"),
    "gray.jpg": saved(BYTES, "JPEG", quality=98), "8.tif": saved(BYTES, "TIFF"),
    "16.tif": saved(WORDS, "TIFF", compression="tiff_lzw"), "float.tif": saved(RAMP, "TIFF"),
    "8.bmp": saved(BYTES, "BMP"), "lossless.webp": saved(np.stack([BYTES] * 3, -1), "WEBP",
    lossless=True), "8.pgm": saved(BYTES, "PPM"), "16.pgm": pgm(WORDS),
    "little.pfm": pfm(RAMP), "great.pfm": pfm(RAMP, ">"), "rgb.pfm": pfm(np.stack([RAMP] * 3, -1)),
    "Y.exr": exr({"Y": RAMP}), "half.exr": exr({"Y": RAMP}, "<f2"), "Z.exr": exr({"Z": RAMP}),
    "layer.exr": exr({"ViewLayer.Depth.Z": RAMP}), "zip.exr": exr({"V": RAMP}, "<f4", 2),
    "rgb.exr": exr(dict.fromkeys("RGB", RAMP)), "rgba.exr": exr(dict.fromkeys("RGBA", RAMP), "<f2"),
}  # fmt: skip


ROUNDED = {"gray.jpg": 0.012} | dict.fromkeys(
    ("8.png", "rgb.png", "rgba.png", "palette.png", "8.tif", "8.bmp", "8.pgm", "lossless.webp"),
    1 / 509,
)


@pytest.mark.parametrize("name", MAPS)
def test_maps_of_every_format_whatever_their_suffix(name, tmp_path):
    for path in (tmp_path / name, tmp_path / "suffix.that lies.npy", tmp_path / "none"):
        path.write_bytes(MAPS[name])
        np.testing.assert_allclose(gamma(path), RAMP[None], atol=ROUNDED.get(name, 5e-4))


def test_sixteen_bits_are_kept(tmp_path):
    for name in ("16.png", "rgb16.png", "16.tif", "16.pgm"):
        (tmp_path / name).write_bytes(MAPS[name])
        assert np.array_equal(gamma(tmp_path / name)[0], WORDS / np.float32(65535))


@pytest.mark.parametrize("name", ["two.npz", "two.exr"])
def test_one_of_several_arrays_is_named(name, tmp_path):
    path, other = tmp_path / name, 1 - RAMP
    many = npz(map=RAMP, other=other) if "npz" in name else exr({"map": RAMP, "other": other})
    path.write_bytes(many)
    word = "arrays" if "npz" in name else "channels"
    with pytest.raises(ValueError, match=f"{name} holds 2 {word}: map, other.*:map"):
        gamma(path)
    assert np.array_equal(gamma(f"{path}:other")[0], other)
    assert np.array_equal(gamma(f"{path}:map")[0], RAMP)
    with pytest.raises(ValueError, match=r"no .* 'mop'; there are: map, other"):
        gamma(f"{path}:mop")
    (tmp_path / f"{name}:map").write_bytes(MAPS["8.png"])  # a file of just that name
    np.testing.assert_allclose(gamma(f"{path}:map")[0], BYTES / 255, atol=1e-6)


def test_a_name_where_there_is_one_array(tmp_path):
    (tmp_path / "a.npy").write_bytes(MAPS["float.npy"])
    with pytest.raises(ValueError, match=r"only \.npz and \.exr files hold named arrays"):
        gamma(f"{tmp_path}/a.npy:map")


def test_the_content_of_a_named_array_counts_for_the_id_of_a_job(tmp_path):
    path, found = tmp_path / "f.npz", set()
    for value, key in ((FLOWS, "a"), (FLOWS, "b"), (-FLOWS, "a")):
        path.write_bytes(npz(a=value, b=value))
        motion = {"flow": f"{path}:{key}"}
        found.add(job_id(Job(prompt="x", motion=motion, frames=FRAMES, height=H, width=W)))
    assert len(found) == 3


def test_the_order_of_a_folder_counts_for_the_id_of_a_job(tmp_path):
    found = set()
    for folder, names in (("a", ("1", "10", "2")), ("b", ("1", "2", "3"))):
        (tmp_path / folder).mkdir()
        for name, value in zip(names, FLOWS, strict=True):
            np.save(tmp_path / folder / name, value)
        motion = {"flow": str(tmp_path / folder)}
        found.add(job_id(Job(prompt="x", motion=motion, frames=FRAMES, height=H, width=W)))
    assert len(found) == 2


# ------------------------------------------------------------------------------------------- flows


def kitti(values, known=None):
    """KITTI's form of a flow [2, H, W]."""
    picture = np.empty((*values.shape[1:], 3), np.uint16)
    picture[..., :2] = np.rint(values.transpose(1, 2, 0) * 64 + 32768)
    picture[..., 2] = 1 if known is None else known
    return png(picture)


def three(values):
    return np.stack([*values, np.zeros_like(values[0])], -1)


FORMS = {
    "a.npy": npy, "a.npz": lambda f: npz(flow=f), "a.flo": flo, "a.png": kitti,
    "a.pfm": lambda f: pfm(three(f)),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_flows_of_every_format_alone_and_in_a_folder(name, tmp_path):
    (tmp_path / name).write_bytes(FORMS[name](FLOWS[1]))
    off = 1 / 127 if name == "a.png" else 0
    np.testing.assert_allclose(flow(tmp_path / name), np.stack([FLOWS[1]] * 3), atol=off)
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, value in zip((2, 9, 10), FLOWS, strict=True):
        (folder / f"f{number}{name[1:]}").write_bytes(FORMS[name](value))
    (folder / "notes.txt").write_text("not a flow")
    np.testing.assert_allclose(flow(folder), FLOWS, atol=off)


@pytest.mark.parametrize("name", ["a.png", "a.flo", "nan.flo"])
def test_pixels_without_flow_take_that_around_them(name, tmp_path, caplog):
    known = np.ones((H, W), bool)
    known[3:6, 4:9] = False
    values = np.full((2, H, W), 1.5, np.float32)
    if name == "a.png":
        content = kitti(np.where(known, values, -512), known)
    else:
        content = flo(np.where(known, values, np.nan if name == "nan.flo" else 1.7e9))
    (tmp_path / name).write_bytes(content)
    assert (flow(tmp_path / name) == 1.5).all()
    assert f"{name}: flow unknown at 6.2 % of pixels" in caplog.text
    (tmp_path / "none.png").write_bytes(kitti(values, np.zeros((H, W))))
    with pytest.raises(ValueError, match=r"none\.png knows no flow"):
        flow(tmp_path / "none.png")


# ------------------------------------------------------------------------------------------- depth


def test_depth_as_nearness_and_as_distance(tmp_path):
    distance = 1 + RAMP * 4
    near = (1 / distance - 0.2) / 0.8
    for name, content, error in (
        ("8.png", png((near * 255).round().astype(np.uint8)), 0.05),
        ("16.png", png((near * 65535).round().astype(np.uint16)), 5e-4),
        ("a.npy", npy(distance), 1e-6), ("mm.npy", npy((distance * 1000).astype(np.int32)), 1.0),
        ("a.npz", npz(d=distance), 1e-6), ("a.tif", saved(distance, "TIFF"), 1e-6),
        ("a.exr", exr({"Z": distance * 100}), 1e-3), ("a.pfm", pfm(distance), 1e-6),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        unit = {"mm.npy": 1000, "a.exr": 100}.get(name, 1)
        found = Depth(str(tmp_path / name)).distances(H, W)
        np.testing.assert_allclose(found, distance * unit, atol=error * (unit if unit > 1 else 1))
    (tmp_path / "mm.png").write_bytes(png((distance * 1000).astype(np.uint16)))
    with pytest.raises(
        ValueError, match=r"no value above 5000 of 65535.*white is near.*kind: depth"
    ):
        Depth(str(tmp_path / "mm.png")).distances(H, W)


# ------------------------------------------------------------------------------------------ errors


class Danger:
    def __reduce__(self):
        return (pytest.fail, ("code of a file ran",))


def head_of(shape, kind="<f4", value=b""):
    """A numpy file whose header may lie."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"shape": shape, "fortran_order": False, "descr": kind}
    )
    return file.getvalue() + value


def zipped(name, content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def torch_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def chunk(name, body):
    body = name + body
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def ihdr(width, height, bits, color):
    """A PNG that says how large it is, and holds next to nothing."""
    head = chunk(b"IHDR", struct.pack(">2I5B", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(99)))


COLORS = np.random.default_rng(1).integers(0, 256, (H, W, 3), np.uint8)
BAD = {
    "empty": (b"", "is empty"),
    "text": (b"0.1 0.2 0.3\n", "of no known format"),
    "object.npy": (npy(np.array([Danger()], object)), "Python objects .*run code"),
    "object.npz": (zipped("map.npy", npy(np.array([Danger()], object))), "Python objects"),
    "a.pkl": (pickle.dumps(Danger()), "pickled data.*numpy.save"),
    "a.pt": (torch_file(torch.zeros(3)), "PyTorch file"),
    "other.zip": (zipped("a.txt", b"x"), "zip archive without arrays"),
    "complex.npy": (npy(RAMP.astype(np.complex64)), "complex64, not real numbers"),
    "text.npy": (npy(np.array(["a"])), "<U1, not real numbers"),
    "time.npy": (npy(np.zeros((H, W), "M8[s]")), "not real numbers"),
    "fields.npy": (npy(np.zeros((H, W), [("a", "f4")])), "not real numbers"),
    "header.npy": (b"\x93NUMPY\x01\0\x05\0{'a'}", "broken numpy header"),
    "version.npy": (b"\x93NUMPY\x09\0\x05\0{'a'}", "broken numpy header"),
    "cut.npy": (npy(RAMP)[:-1], "is cut off: float32 .* takes 960 bytes, 959 are there"),
    "huge.npy": (head_of((2**20, 2**20)), "1099511627776 values, more than the limit"),
    "overflow.npy": (head_of((2**40, 2**40)), "more than the limit"),
    "none.npy": (head_of((0, W)), "holds no values"),
    "negative.npy": (head_of((-H, W)), "holds no values"),
    "huge.npz": (zipped("a.npy", head_of((2**15, 2**15))), "more than the limit"),
    "lies.npz": (zipped("a.npy", head_of((2**13, 2**13))), "is cut off"),
    "cut.npz": (npz(a=RAMP)[:-30], "damaged or cut off"),
    "nan.npy": (npy(np.where(RAMP[5, 3] == RAMP, np.nan, RAMP)), r"nan at \(5, 3\) \(1 of 240"),
    "inf.exr": (exr({"Y": np.where(RAMP > 0.99, np.inf, RAMP)}), "inf at"),
    "double.npy": (npy(RAMP.astype(float) * 1e300), "too large"),
    "range.npy": (npy(RAMP * 2), "from 0 to 1, has 0 to 2"),
    "bytes.npy": (npy(BYTES), "from 0 to 1, has 0 to 255"),
    "size.npy": (npy(RAMP[1:]), r"has shape \(11, 20\), needs \(4, 12, 20\) or \(12, 20\)"),
    "frames.npy": (npy(np.stack([RAMP] * 3)), r"has shape \(3, 12, 20\)"),
    "color.png": (png(COLORS), "color picture"),
    "color.jpg": (saved(COLORS, "JPEG"), "color picture"),
    "color16.png": (png(COLORS.astype(np.uint16) * 257), "color picture"),
    "clear.png": (saved(np.stack([BYTES] * 4, -1), "PNG"), "transparent"),
    "cut.png": (MAPS["8.png"][:-40], "damaged or cut off"),
    "cut16.png": (MAPS["rgb16.png"][: len(MAPS["rgb16.png"]) // 8], "damaged or cut off"),
    "bomb.png": (ihdr(2**16, 2**16, 8, 0), "scale it down"),
    "bomb16.png": (ihdr(2**16, 2**16, 16, 2), "4294967296 pixels, more than the limit"),
    "pages.tif": (saved(BYTES, "TIFF", save_all=True, append_images=[Image.fromarray(BYTES)]),
                  "holds 2 pictures"),
    "ints.tif": (saved(BYTES.astype(np.int32), "TIFF"), "mode I; save it as gray"),
    "uint.exr": (exr({"Y": WORDS}, "<u4"), "whole numbers"),
    "cut.exr": (exr({"Y": RAMP})[:90], "broken EXR header"),
    "cut.pfm": (pfm(RAMP)[:-4], "is cut off"),
    "bomb.pfm": (b"Pf\n99999 99999\n-1.0\n", "more than the limit"),
    "a.flo": (flo(FLOWS[0]), "holds a flow"),
    "bomb.flo": (struct.pack("<f2i", 202021.25, 2**30, 2**30), "more than the limit"),
    "negative.flo": (struct.pack("<f2i", 202021.25, -4, -4), "holds no values"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_strength_map_is_named(name, tmp_path):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"strength map .*{name}.*{message}"):
        gamma(tmp_path / name)


FLOW_ERRORS = {
    "turned.npy": (npy(FLOWS.transpose(0, 2, 3, 1)), r"np\.moveaxis\(flow, -1, -3\)"),
    "long.npy": (npy(np.zeros((FRAMES, 2, H, W))), r"\(4, 2, 12, 20\), the job needs \(3, 2"),
    "8.png": (png(BYTES), "KITTI"), "rgb8.png": (png(COLORS), "KITTI"),
    "gray16.png": (png(WORDS), "has 1 channels"), "gray.pfm": (pfm(RAMP), "has 1 channels"),
    "third.pfm": (pfm(np.stack([RAMP] * 3, -1)), "third channel that is not 0"),
    "a.exr": (exr({"Y": RAMP}), "no picture of a flow"), "cut.flo": (flo(FLOWS[0])[:-8], "cut off"),
    "size.flo": (flo(FLOWS[0][:, 1:]), r"has shape \(2, 11, 20\)"),
    "inf.pfm": (pfm(three(np.full((2, H, W), np.inf, np.float32))), "inf at"),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOW_ERRORS)
def test_what_is_no_flow_is_named(name, tmp_path):
    content, message = FLOW_ERRORS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"flow file .*{name}.*{message}"):
        flow(tmp_path / name)


def test_folders_of_flows_that_do_not_fit(tmp_path):
    np.save(tmp_path / "a.npy", FLOWS[0])
    with pytest.raises(ValueError, match=r"has 1 \.npy files, needs 3"):
        flow(tmp_path)
    (tmp_path / "b.flo").write_bytes(flo(FLOWS[0]))
    with pytest.raises(ValueError, match=r"\.flo and \.npy files; leave one kind"):
        flow(tmp_path)
    with pytest.raises(ValueError, match="a folder, not a file"):
        gamma(tmp_path)


def test_what_cannot_be_opened_is_named(tmp_path):
    for path in ("no.npy", "no.npz:map", "x" * 5000, "a\0b"):
        with pytest.raises(ValueError, match="strength map "):
            gamma(path)
    with pytest.raises(ValueError, match="pipe or device"):
        gamma("/dev/null")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's words beside the error
@pytest.mark.parametrize("name", MAPS)
def test_of_files_that_are_cut_anywhere_nothing_wrong_is_read(name, tmp_path):
    content, path, errors = MAPS[name], tmp_path / "a", 0
    for part in range(0, len(content) - 1, max(1, len(content) // 23)):
        path.write_bytes(content[:part])
        try:
            found = gamma(path)
        except ValueError as error:
            assert str(error).startswith(f"strength map {path}")
            errors += 1
        else:  # such as a PNG without its last, empty chunk
            np.testing.assert_allclose(found, RAMP[None], atol=ROUNDED.get(name, 5e-4))
    assert errors >= 15


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # Pillow's own
@pytest.mark.parametrize("name", [*MAPS, *(f"flow {name}" for name in FORMS)])
def test_a_damaged_file_gives_one_error_if_any(name, tmp_path):
    rng, path = np.random.default_rng(sum(name.encode())), tmp_path / "a"
    is_flow = name.startswith("flow ")
    content = FORMS[name[5:]](FLOWS[1]) if is_flow else MAPS[name]
    for number in range(40):
        damaged = np.frombuffer(content, np.uint8).copy()
        end = len(damaged) if number % 2 else min(len(damaged), 120)
        places = rng.integers(end, size=rng.integers(1, 4))
        damaged[places] = rng.integers(256, size=len(places))
        path.write_bytes(damaged.tobytes())
        try:
            found = flow(path) if is_flow else gamma(path)
        except ValueError as error:
            assert str(error).startswith(("flow file " if is_flow else "strength map ") + str(path))
        else:
            assert bool(torch.isfinite(found).all()), number


@pytest.mark.slow
def test_bombs_are_refused_before_they_unfold(tmp_path):
    """In a process whose address space ends before one unfolded bomb would."""
    bomb = head_of((2**13, 2**15), "<f8") + bytes(2**20)
    for name, content in (
        ("a.npz", zipped("a.npy", bomb)), ("a.npy", head_of((2**13, 2**15), "<f8")),
        ("b.png", ihdr(2**16 - 1, 2**16 - 1, 16, 2)), ("c.png", ihdr(12000, 12000, 8, 6)),
        ("a.flo", struct.pack("<f2i", 202021.25, 2**13, 2**13)),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
    program = (
        "import resource, sys, pathlib\n"
        "from accel.pipelines.motion.array_formats import open_array\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, used + 2**27))\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try:\n"
        "        open_array('map', str(path)).numbers()\n"
        "    except ValueError as error:\n"
        "        print(path.name, 'MemoryError' in str(error))\n"
    )
    command = [sys.executable, "-c", program, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    names = ("a.flo", "a.npy", "a.npz", "b.png", "c.png")
    assert done.stdout.split() == [word for name in names for word in (name, "False")]


def test_nothing_is_decoded_before_its_size_is_known(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(npz(a=np.zeros((64, H, W), np.float32)))
    found = open_array("map", str(path))
    assert found.shape == (64, H, W)
    path.unlink()
    with pytest.raises(ValueError, match="damaged or cut off"):
        found.numbers()
