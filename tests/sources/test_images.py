from __future__ import annotations

import gzip
import io
import lzma
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from polytask.core import Binary, InputError, Multiclass, Regression, TaskData
from polytask.sources import few_per_class, labelled_images, read_idx, read_idx_images, read_image_folder
from polytask.sources.images import MOST_PIXELS

PACKERS = {"": lambda raw: raw, ".gz": gzip.compress, ".xz": lzma.compress}
CODES = {"|u1": 8, "|i1": 9, ">i2": 0x0B, ">i4": 0x0C, ">f4": 0x0D, ">f8": 0x0E}


def idx(array):
    stored = np.asarray(array)
    stored = stored.astype(stored.dtype.newbyteorder(">"))
    head = bytes([0, 0, CODES[stored.dtype.str], stored.ndim]) + struct.pack(f">{stored.ndim}I", *stored.shape)
    return head + stored.tobytes()


def written(path, raw):
    path.write_bytes(raw)
    return path


# -- IDX ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "i4", "f4", "f8"])
def test_an_idx_file_reads_back_as_the_array_that_was_written(tmp_path, packed, kind):
    array = np.random.default_rng(0).integers(0, 100, size=(3, 4, 5)).astype(kind)
    found = read_idx(written(tmp_path / f"a{packed}", PACKERS[packed](idx(array))))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
    assert found.flags.writeable


def test_idx_images_become_one_task_per_label_file(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, size=(6, 4, 5), dtype=np.uint8)
    pictures = written(tmp_path / "images.gz", gzip.compress(idx(images)))
    what = written(tmp_path / "what", idx(np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8)))
    odd = written(tmp_path / "odd", idx(np.array([0, 1, 0, 0, 1, 0], dtype=np.uint8)))
    data = read_idx_images(pictures, {"what": what, "odd": odd})
    assert data.tasks == (Multiclass("what", classes=("0", "1", "2")), Binary("odd", classes=("0", "1")))
    assert data.inputs["image"].dtype == np.uint8
    np.testing.assert_array_equal(data.inputs["image"][:, 0], images)
    np.testing.assert_array_equal(data.labels["what"].values, [0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: b"\x01" + raw[1:], "not an IDX file"),
        (lambda raw: raw[:2] + b"\x0a" + raw[3:], "not an IDX file"),
        (lambda raw: raw[:3] + b"\x00" + raw[4:], "not an IDX file"),
        (lambda raw: raw[:7], "ends within its header"),
        (lambda raw: raw[:-1], "its header says 60"),
        (lambda raw: raw + b"x", "holds more bytes"),
        (lambda raw: raw[:4] + b"\0\0\0\x04" + raw[8:], "its header says 80"),
        (lambda raw: raw[:4] + b"\xff\xff\xff\xff" + raw[8:], "at most 4,294,967,296"),
        (lambda raw: b"", "begins with nothing"),
        (lambda raw: b"\x89PNG\r\n", "not an IDX file"),
    ],
)
@pytest.mark.parametrize("packed", PACKERS)
def test_an_idx_file_whose_header_lies_is_refused_by_name(tmp_path, change, said, packed):
    raw = change(idx(np.zeros((3, 4, 5), dtype=np.uint8)))
    with pytest.raises(InputError, match=said) as caught:
        read_idx(written(tmp_path / f"digits{packed}", PACKERS[packed](raw)))
    assert f"digits{packed} " in str(caught.value)


@pytest.mark.parametrize("packed", [".gz", ".xz"])
def test_a_truncated_or_altered_packed_file_is_refused(tmp_path, packed):
    raw = PACKERS[packed](idx(np.random.default_rng(0).integers(0, 256, size=(30, 8, 8), dtype=np.uint8)))
    with pytest.raises(InputError, match="copy it again"):
        read_idx(written(tmp_path / f"a{packed}", raw[: len(raw) // 2]))
    altered = bytearray(raw)
    altered[len(raw) // 2] ^= 0xFF
    with pytest.raises(InputError, match="copy it again"):
        read_idx(written(tmp_path / f"b{packed}", bytes(altered)))


def test_a_small_file_that_unpacks_to_far_more_is_not_unpacked(tmp_path):
    bomb = gzip.compress(idx(np.zeros((1, 1, 1), dtype=np.uint8)) + bytes(50_000_000))
    with pytest.raises(InputError, match="holds more bytes"):
        read_idx(written(tmp_path / "bomb.gz", bomb))
    honest = gzip.compress(idx(np.zeros((50, 1000, 1000), dtype=np.uint8)))
    with pytest.raises(InputError, match="50 x 1000 x 1000"):
        read_idx(written(tmp_path / "large.gz", honest), most_bytes=10_000_000)


def test_absent_files_and_labels_that_do_not_fit_are_answered(tmp_path):
    images = written(tmp_path / "images", idx(np.zeros((3, 2, 2), dtype=np.uint8)))
    with pytest.raises(InputError, match='Did you mean "images"'):
        read_idx(tmp_path / "image")
    short = written(tmp_path / "short", idx(np.zeros(2, dtype=np.uint8)))
    with pytest.raises(InputError, match="each of the 3 images"):
        read_idx_images(images, {"digit": short})
    broken = written(tmp_path / "broken", idx(np.array([0.5, 0, 1], dtype=np.float32)))
    with pytest.raises(InputError, match="whole number"):
        read_idx_images(images, {"digit": broken})
    with pytest.raises(InputError, match="must be the same"):
        labelled_images(np.zeros((3, 2, 2), dtype=np.uint8), {"a": np.zeros(3, int)}, tasks=[Regression("b")])
    with pytest.raises(InputError, match="uint8"):
        labelled_images(np.zeros((3, 2, 2)), {"a": np.zeros(3, int)})


# -- folders of pictures -----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Three pictures in colours, one in a sub-folder, and a file outside."""
    rng = np.random.default_rng(0)
    root = tmp_path / "pictures"
    (root / "more").mkdir(parents=True)
    for name in ("a.png", "b.png", "more/c.png"):
        Image.fromarray(rng.integers(0, 256, size=(4, 6, 3), dtype=np.uint8)).save(root / name)
    Image.new("L", (6, 4)).save(tmp_path / "secret.png")
    return root


def labels(paths, **columns):
    columns = columns or {"kind": [("cat", "dog")[i % 2] for i in range(len(paths))]}
    return {"path": np.array(paths, dtype=object)} | {name: np.array(v, dtype=object) for name, v in columns.items()}


def test_pictures_and_labels_of_a_csv_table_become_task_data(folder):
    table = written(
        folder / "labels.csv", b"path,kind,weight,owner\na.png,cat,3.5,x\nb.png,dog,,y\nmore/c.png,cat,2.0,x\n"
    )
    data = read_image_folder(
        folder,
        table,
        targets=["kind", "weight"],
        kinds={"kind": ("cat", "dog"), "weight": "regression"},
        keys=["owner"],
    )
    assert data.inputs["image"].shape == (3, 3, 4, 6)
    with Image.open(folder / "more" / "c.png") as picture:
        np.testing.assert_array_equal(data.inputs["image"][2], np.asarray(picture).transpose(2, 0, 1))
    assert data.task("kind").labels == ("cat", "dog")
    np.testing.assert_array_equal(data.labels["kind"].values, [0, 1, 0])
    np.testing.assert_array_equal(data.labels["weight"].rows, [0, 2])
    assert data.keys["owner"].tolist() == ["x", "y", "x"]
    assert data.keys["path"].tolist() == ["a.png", "b.png", "more/c.png"]


def test_the_long_form_gives_each_task_its_own_pictures(folder):
    table = labels(["a.png", "b.png", "more/c.png", "a.png"], site=["n", "n", "s", "s"], kind=["x", "y", "x", "y"])
    data = read_image_folder(folder, table, task_column="site", target="kind", kinds={"kind": ("x", "y")}, channels=1)
    assert data.names == ("n", "s")
    assert data.one_task_per_row
    assert data.inputs["image"].shape == (4, 1, 4, 6)


def test_pictures_are_resized_by_averaging_only_when_asked_for(folder):
    Image.fromarray(np.array([[0, 100], [100, 200]], dtype=np.uint8)).save(folder / "small.png")
    with pytest.raises(InputError, match=r'"small.png" has 2 x 2 pixels, "a.png" has 4 x 6'):
        read_image_folder(folder, labels(["a.png", "small.png"]), targets=["kind"])
    data = read_image_folder(folder, labels(["small.png", "a.png"]), targets=["kind"], size=(1, 1), channels=1)
    assert data.inputs["image"][0, 0, 0, 0] == 100


@pytest.mark.parametrize(
    "name", ["../secret.png", "more/../../secret.png", "/etc/passwd", "link.png", "way/secret.png"]
)
def test_paths_never_lead_out_of_the_folder(folder, name):
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "way").symlink_to(folder.parent)
    with pytest.raises(InputError, match="leads out of the folder"):
        read_image_folder(folder, labels(["a.png", name]), targets=["kind"])


def test_a_link_within_the_folder_is_followed(folder):
    (folder / "same.png").symlink_to(folder / "a.png")
    data = read_image_folder(folder, labels(["a.png", "same.png"]), targets=["kind"])
    np.testing.assert_array_equal(*data.inputs["image"])


@pytest.mark.parametrize("name", ["absent.png", "more", "a\0.png", "x" * 5000, "loop.png"])
def test_what_is_no_file_is_refused_by_name(folder, name):
    (folder / "loop.png").symlink_to(folder / "loop.png")
    with pytest.raises(InputError, match=r"no image file|no usable path"):
        read_image_folder(folder, labels(["a.png", name]), targets=["kind"])


def png(chunks, signature=b"\x89PNG\r\n\x1a\n"):
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return signature + b"".join(parts)


def header(width, height, depth=8, colour=0):
    return (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


BAD_PICTURES = {
    "no picture": b"path,kind\n",
    "empty": b"",
    "signature only": b"\x89PNG\r\n\x1a\n",
    "pickle": b"\x80\x04\x95.",
    "no pixels": png([header(4, 4), (b"IEND", b"")]),
    "too few pixels": png([header(4, 4), (b"IDAT", zlib.compress(bytes(5))), (b"IEND", b"")]),
    "bad stream": png([header(4, 4), (b"IDAT", b"not zlib at all"), (b"IEND", b"")]),
    "huge": png([header(60_000, 60_000), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]),
    "large": png([header(9_000, 9_000), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]),
    "deep": png([header(2, 2, 16), (b"IDAT", zlib.compress(bytes(10))), (b"IEND", b"")]),
    "text bomb": png(
        [
            header(2, 2),
            (b"zTXt", b"k\0\0" + zlib.compress(bytes(100 << 20))),
            (b"IDAT", zlib.compress(bytes(6))),
            (b"IEND", b""),
        ]
    ),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_a_damaged_or_oversized_picture_is_refused_by_name(folder, kind):
    written(folder / "odd.png", BAD_PICTURES[kind])
    with pytest.raises(InputError, match=r'"odd\.png"'):
        read_image_folder(folder, labels(["a.png", "odd.png"]), targets=["kind"])


def refusal_names(folder, name):
    """Return whether a picture is refused; the refusal has to name it."""
    try:
        read_image_folder(folder, labels([name, name]), targets=["kind"])
    except InputError as error:
        return name in str(error)
    return False


def test_any_altered_byte_of_a_picture_gives_a_picture_or_a_plain_refusal(folder):
    raw = (folder / "a.png").read_bytes()
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (10, 200, 30)).save(buffer, "JPEG")
    rng = np.random.default_rng(0)
    refused = 0
    for original in (raw, buffer.getvalue()):
        for _ in range(150):
            altered = bytearray(original)
            for place in rng.integers(0, len(altered), size=3):
                altered[place] = rng.integers(0, 256)
            written(folder / "odd.png", bytes(altered[: rng.integers(1, len(altered) + 1)]))
            refused += refusal_names(folder, "odd.png")
    assert refused > 100


def test_more_pictures_than_memory_was_granted_for_are_refused_before_they_are_read(folder):
    with pytest.raises(InputError, match="2 images of 4 x 6 pixels are 144 bytes"):
        read_image_folder(folder, labels(["a.png", "b.png"]), targets=["kind"], most_bytes=100)
    assert MOST_PIXELS < 9_000 * 9_000


def test_wrong_arguments_are_answered(folder):
    table = labels(["a.png", "b.png"])
    with pytest.raises(InputError, match="not a folder"):
        read_image_folder(folder / "absent", table, targets=["kind"])
    with pytest.raises(InputError, match="channels is 2"):
        read_image_folder(folder, table, targets=["kind"], channels=2)
    with pytest.raises(InputError, match="size is"):
        read_image_folder(folder, table, targets=["kind"], size=(0, 4))
    with pytest.raises(InputError, match='unknown column "file"'):
        read_image_folder(folder, table, targets=["kind"], path_column="file")
    with pytest.raises(InputError, match="holds numbers"):
        read_image_folder(folder, {"path": np.arange(2), "kind": table["kind"]}, targets=["kind"])


# -- few labels --------------------------------------------------------------------------------


def test_few_per_class_takes_so_many_of_each_class_and_leaves_the_rest():
    tasks = [Multiclass("a", classes=("x", "y", "z")), Binary("b", classes=("n", "j"))]
    owner = np.repeat([0, 1], 30)
    codes = np.concatenate([np.tile([0, 1, 2], 10), np.tile([0, 1], 15)]).astype(float)
    data = TaskData.from_stacked(tasks, {"image": np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1)}, owner, codes)
    few, rest = few_per_class(data, 4, seed=0)
    assert few.n_rows == 4 * 5
    for name, n_classes in (("a", 3), ("b", 2)):
        np.testing.assert_array_equal(np.bincount(few.labels[name].values.astype(int)), [4] * n_classes)
    together = np.concatenate([few.inputs["image"].ravel(), rest.inputs["image"].ravel()])
    np.testing.assert_array_equal(np.sort(together), np.arange(60))
    alone, _ = few_per_class(data.only(["b"]), 4, seed=0)
    mine = few.inputs["image"].ravel()[few.labels["b"].rows]
    np.testing.assert_array_equal(alone.inputs["image"].ravel(), mine)
    other, _ = few_per_class(data, 4, seed=1)
    assert not np.array_equal(other.inputs["image"], few.inputs["image"])


def test_few_per_class_refuses_regression_shared_rows_and_no_rows():
    shared = TaskData.from_columns(
        [Binary("a", classes=("0", "1")), Binary("b", classes=("0", "1"))], np.eye(2), np.eye(2)
    )
    with pytest.raises(InputError, match="rows of their own"):
        few_per_class(shared, 1, seed=0)
    with pytest.raises(InputError, match="count is 0"):
        few_per_class(shared, 0, seed=0)
    with pytest.raises(InputError, match="no classes"):
        few_per_class(TaskData.from_columns([Regression("a")], np.eye(2), np.ones((2, 1))), 1, seed=0)
