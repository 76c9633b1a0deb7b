"""The command line: exit codes, short answers, and nothing written unless it is said."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from polytask import cli
from polytask.jobs.folders import locked, run_folder, safe_name
from polytask.settings import Settings

PRICE = ("compare", "houses.csv", "--targets", "price", "--methods", "ridge")
SMALL = ("--methods", "ridge,mean-regularised", "--splits", "2", "--trials", "2", "--jobs", "0")


def small_table(n: int = 90) -> str:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 3))
    lines = ["a,b,city,price,rent,sold"]
    for i, (a, b, c) in enumerate(X):
        rent = "" if i % 3 == 0 else f"{a + b + 0.3 * c:.4f}"
        lines.append(f"{a:.4f},{b:.4f},{('Oslo', 'Bergen')[i % 2]},{100 + 10 * a + c:.3f},{rent},{'yn'[int(b > 0)]}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def table(here):
    path = here / "houses.csv"
    path.write_text(small_table())
    return path


@pytest.fixture
def polytask(here, capsys):
    def call(*arguments):
        code = cli.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def refused(answer, code, *words):
    found, _, errors = answer
    assert found == code, errors
    assert errors.startswith("Error: ")
    assert "Traceback" not in errors
    assert len(errors.strip().splitlines()) <= 3
    for word in words:
        assert word in errors
    return errors


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# -- help ---------------------------------------------------------------------------------------

HEAVY = ("torch", "sklearn", "scipy", "pandas", "numba", "plotly", "yaml", "rich", "jinja2", "polars")


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["--version"], ["compar"]])
def test_help_loads_nothing_heavy(arguments):
    code = f"""
import sys
from polytask.cli import run
run({arguments!r})
print("loaded:", *[name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].strip() == "loaded:"


WITHOUT_TORCH = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
from polytask.cli import run
"""


def test_methods_are_listed_without_torch():
    code = WITHOUT_TORCH + "assert run(['methods']) == 0"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "hard-sharing" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()].count("ridge") == 1


def test_every_command_of_the_help_is_there(polytask):
    code, said, _ = polytask("--help")
    assert code == 0
    for name in ("init", "check", "compare", "train", "predict", "report", "methods", "datasets", "doctor"):
        assert f"\n  {name} " in said
        assert polytask(name, "--help")[0] == 0


def test_every_setting_but_three_is_a_flag_of_compare(polytask):
    said = polytask("compare", "--help")[1]
    flags = {"data": "[TABLE]", "kinds": "--kind", "metrics": "--metric"}
    for key in set(Settings.model_fields) - {"separator", "encoding", "decimal"}:
        assert flags.get(key, f"--{key.replace('_', '-')}") in said


# -- answers to mistakes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compar"], ["compare"]),
        (["compare", "--trails", "5"], ["--trials"]),
        (["compare", "--trials", "x"], ["--trials"]),
        (["compare"], ["no table is given", "--dataset"]),
        (["compare", "houses.csv"], ["--targets"]),
        (["compare", "house.csv", "--targets", "price"], ['Did you mean "houses.csv"']),
        (["compare", "houses.csv", "--targets", "pirce"], ['Did you mean "price"']),
        ([*PRICE, "--drop", "cty"], ['Did you mean "city"']),
        ([*PRICE, "--group", "cty"], ['Did you mean "city"']),
        ([*PRICE, "--kind", "cty=binary"], ['Did you mean "city"']),
        ([*PRICE, "--kind", "price=regresion"], ['Did you mean "regression"']),
        ([*PRICE, "--kind", "price"], ["name=value"]),
        ([*PRICE, "--metric", "price=rmsee"], ['Did you mean "rmse"']),
        ([*PRICE, "--labels", "pric=40"], ['Did you mean "price"']),
        ([*PRICE, "--labels", "price=few"], ["number of labels"]),
        ([*PRICE, "--labels", "price=0"], ["--labels", "1"]),
        (["compare", "houses.csv", "--targets", "price", "--methods", "rigde"], ['Did you mean "ridge"']),
        (["compare", "houses.csv", "--targets", "price", "--methods", "pooled"], ["baseline"]),
        ([*PRICE, "--splits", "5by2"], ["--splits", "5x2"]),
        ([*PRICE, "--splits", "500"], ["90"]),
        (["compare", "houses.csv", "--targets", "price", "--config", "none.yaml"], ["none.yaml", "cannot be read"]),
        (["compare", "houses.csv", "--dataset", "nhanes"], ["exclude each other"]),
        (["compare", "--dataset", "nhanse"], ['Did you mean "nhanes"']),
        (["compare", "--dataset", "nhanes", "--targets", "hba1"], ['Did you mean "hba1c"']),
        (["compare", "--dataset", "nhanes", "--kind", "hba1c=ordinal"], ["in its own way"]),
        (["compare", "--resume", "runs/none"], ["holds no run"]),
        (["train", "houses.csv", "--targets", "price"], ["--method", "--from"]),
        (["train", "houses.csv", "--targets", "price", "--method", "rigde"], ['Did you mean "ridge"']),
        (["train", "--from", "none"], ["none", "cannot be read"]),
        (["report", "none"], ["none", "cannot be read"]),
        (["init", "house.csv"], ['Did you mean "houses.csv"']),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_in_a_line_and_nothing_is_written(polytask, table, here, arguments, words):
    refused(polytask(*arguments), 2, *words)
    assert everything(here) == ["houses.csv"]


def test_a_typo_in_the_settings_file_is_placed(polytask, table, here):
    (here / "c.yaml").write_text("data: houses.csv\ntargets: [price]\nmethods:\n  ridge:\n    alpah: 1\n")
    refused(polytask("check", "--config", "c.yaml"), 2, "c.yaml:5 methods.ridge.alpah: unknown parameter", "alpha")
    (here / "c.yaml").write_text("data: houses.csv\ntrails: 5\n")
    refused(polytask("compare", "--config", "c.yaml"), 2, "c.yaml:2 trails: unknown key. Did you mean 'trials'?")


@pytest.mark.parametrize("value", ["many", "[1]", "-1", "yes"])
def test_a_wrong_fixed_parameter_is_placed(polytask, table, here, value):
    text = f"data: houses.csv\ntargets: [price]\nmethods:\n  ridge:\n    alpha: {value}\n"
    (here / "c.yaml").write_text(text)
    refused(polytask("check", "--config", "c.yaml"), 2, "c.yaml:", "alpha")


def _bad_tables():
    path = Path(__file__).parent / "sources" / "test_bad_tables.py"
    spec = importlib.util.spec_from_file_location("bad_tables", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.REFUSED


BAD_TABLES = _bad_tables()


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_gives_exit_2_and_nothing_is_written(polytask, here, case):
    raw, options, said = BAD_TABLES[case]
    (here / "t.csv").write_bytes(raw)
    settings = {"data": "t.csv", "targets": ["y"], **options}
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    settings["kinds"] = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.get("kinds", {}).items()}
    (here / "c.yaml").write_text(json.dumps(settings))
    for command in ("check", "compare"):
        errors = refused(polytask(command, "--config", "c.yaml"), 2)
        assert any(part in errors for part in said)
    assert everything(here) == ["c.yaml", "t.csv"]


def test_advice_is_given_in_flags(polytask, here):
    rows = "".join(f"{i % 7},{i}.5,{2 * i + 1}\n" for i in range(30))
    (here / "t.csv").write_text("x,y,copy\n" + rows)
    refused(polytask("check", "t.csv", "--targets", "y"), 2, "copy", '--allow-leak "copy"')
    assert polytask("check", "t.csv", "--targets", "y", "--allow-leak", "copy", "--methods", "ridge")[0] == 0
    (here / "t.csv").write_text("x,z,y\n" + "".join(f"{i % 7},{i % 3},{i}.5\n" for i in range(30)) + "oops,1,2\n")
    refused(polytask("check", "t.csv", "--targets", "y"), 2, "--missing", '--kind "x=categorical"')
    code, _, _ = polytask("check", "t.csv", "--targets", "y", "--missing", "x=oops", "--methods", "ridge")
    assert code == 0


# -- check, init, lists -------------------------------------------------------------------------


def test_check_says_what_it_read_and_plans_and_writes_nothing(polytask, table, here):
    code, said, _ = polytask("check", "houses.csv", "--targets", "price,rent,sold", *SMALL)
    assert code == 0
    for words in ("houses.csv  90 rows  6 columns", "utf-8", "33% missing", "binary", "4 runs", "Nothing was trained"):
        assert words in said
    assert everything(here) == ["houses.csv"]


def test_init_writes_settings_that_check_accepts(polytask, here):
    rng = np.random.default_rng(0)
    rows = [
        f"{i},{-99 if i % 9 == 0 else 20 + i % 50},{'ab'[i % 2]},{v:.3f}" for i, v in enumerate(rng.normal(size=60))
    ]
    (here / "t.csv").write_text("id,age,group,y\n" + "\n".join(rows) + "\n")
    code, said, _ = polytask("init", "t.csv")
    assert code == 0
    assert "age: -99 may mean missing" in said
    text = (here / "polytask.yaml").read_text()
    assert "targets: [y]" in text
    assert "# Codes that stand far outside" in text
    assert "splits: 5x2" in text
    refused(polytask("init", "t.csv"), 2, "exists", "--force")
    assert polytask("init", "t.csv", "--force", "--targets", "age,y")[0] == 0
    code, said, _ = polytask("check", "--config", "polytask.yaml", "--methods", "ridge,mean-regularised")
    assert code == 0
    assert "age  regression" in said


def test_methods_datasets_and_doctor_list_what_is_there(polytask):
    for command, words in (
        ("methods", ["ridge", "soft-sharing", "sharing", "refuses"]),
        ("datasets", ["nhanes", "5,265", "in the package", "licence", "POLYTASK_DATA"]),
        ("doctor", ["polytask", "numpy", "device", "current folder"]),
    ):
        code, said, _ = polytask(command)
        assert code == 0
        for word in words:
            assert word in said


# -- folders ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "con", "CON.txt", "a" * 300, "ä" * 300, "", ".", "..", "...", "a/b\\c", "x\0y", "a\nb", ".git",
     "nul", "-rf", "~", "C:\\x", "a:b", "\u202eevil", "💥" * 200, " ", "x."],
)  # fmt: skip
def test_any_title_becomes_a_folder_inside_runs(name, tmp_path):
    safe = safe_name(name)
    assert safe_name(safe) == safe
    folder = tmp_path / run_folder(None, name)
    assert folder.parent == tmp_path / "runs"
    folder.mkdir(parents=True)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [safe]
    assert 0 < len(safe.encode()) <= 160
    assert safe.split(".")[0].lower() not in {"con", "nul"}
    assert not safe.startswith(("-", "."))


def test_a_settings_file_cannot_lead_out_of_the_current_folder(polytask, table, here):
    for out in ("../x", "/tmp/x", "a/../../x"):
        (here / "c.yaml").write_text(f"data: houses.csv\ntargets: [price]\nout: {out}\n")
        refused(polytask("check", "--config", "c.yaml", "--methods", "ridge"), 2, "out of the current folder")


def test_a_folder_with_other_files_is_never_used(polytask, table, here):
    (here / "thesis").mkdir()
    (here / "thesis" / "chapter.tex").write_text("x")
    refused(polytask("compare", table, "--targets", "price", *SMALL, "--out", "thesis"), 2, "chapter.tex")
    refused(polytask("compare", table, "--targets", "price", *SMALL, "--out", "houses.csv"), 2, "is a file")
    assert everything(here / "thesis") == ["chapter.tex"]


def test_a_second_command_in_the_same_folder_is_told_who_holds_it(polytask, table, here):
    code = """
import sys, time
from pathlib import Path
from polytask.jobs.folders import locked
with locked(Path("runs/houses")):
    print("held", flush=True)
    time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=here)
    try:
        assert other.stdout.readline() == "held\n"
        answer = polytask("compare", table, "--targets", "price,rent", *SMALL)
        refused(answer, 2, "in use by process", str(other.pid), os.uname().nodename)
    finally:
        other.kill()
        other.communicate()
    with locked(here / "runs" / "houses"):  # the lock of a dead process is free
        pass


# -- comparing, training, predicting in this process --------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished comparison and a trained model; copied by nobody, so tests only read it."""
    folder = tmp_path_factory.mktemp("finished")
    before = Path.cwd()
    os.chdir(folder)
    try:
        Path("houses.csv").write_text(small_table())
        assert cli.run(["compare", "houses.csv", "--targets", "price,rent,sold", *SMALL]) == 0
        assert cli.run(["train", "--from", "runs/houses"]) == 0
    finally:
        os.chdir(before)
    return folder


def test_a_comparison_leaves_its_files_in_the_run_folder(finished):
    names = everything(finished / "runs" / "houses")
    for name in ("config.yaml", "events.jsonl", "report.html", "report.md", "results.json", "runs.sqlite"):
        assert name in names
    assert not [name for name in names if name.endswith(".tmp") or ".tmp-" in name]
    events = [json.loads(line) for line in (finished / "runs/houses/events.jsonl").read_text().splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["started", "finished"]
    setup = json.loads((finished / "runs/houses/results.json").read_text())["setup"]
    assert setup["yaml"] == (finished / "runs/houses/config.yaml").read_text()
    assert str(finished) not in (finished / "runs/houses/results.json").read_text()


def test_repeating_a_command_repeats_no_run(finished, polytask, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    before = json.loads((finished / "runs/houses/results.json").read_text())
    code, said, _ = polytask("compare", "--resume", "runs/houses", "--jobs", "0")
    assert code == 0
    assert "4 of 4 runs were finished before; 0 new" in said
    after = json.loads((finished / "runs/houses/results.json").read_text())
    assert {**after, "timing": {}} == {**before, "timing": {}}


def test_reports_are_written_anew(finished, polytask, here):
    code, said, _ = polytask("report", finished / "runs/houses", "--out", here / "again")
    assert code == 0
    assert everything(here / "again") == ["report.html", "report.md"]
    assert "price" in said
    wrong = here / "results.json"
    for text in ("", "[]", "{}", '{"format": 1}', '{"format": 99}', "[" * 100_000, "\x00"):
        wrong.write_text(text)
        refused(polytask("report", wrong), 2, "results.json")


def test_predictions_have_a_row_for_every_row_and_a_column_for_every_answer(finished, polytask, here):
    lines = small_table(20).splitlines()
    (here / "new.csv").write_text("\n".join(line.rsplit(",", 3)[0] for line in lines) + "\n0.1,,Tromsø\n")
    code, said, _ = polytask("predict", finished / "runs/houses/model", "new.csv")
    assert code == 0
    assert "1 row had an unseen level in 'city' (treated as other)." in said
    assert "21 rows x 3 tasks" in said
    rows = (here / "pred.csv").read_text().splitlines()
    assert rows[0] == "price,rent,sold,P(sold=n),P(sold=y)"
    assert len(rows) == 22
    assert all(abs(float(row.split(",")[3]) + float(row.split(",")[4]) - 1) < 1e-9 for row in rows[1:])
    before = (here / "new.csv").read_text()
    refused(polytask("predict", finished / "runs/houses/model", "new.csv", "-o", "new.csv"), 2, "the table itself")
    assert (here / "new.csv").read_text() == before


def test_predicting_without_an_input_column_says_which(finished, polytask, here):
    (here / "new.csv").write_text("a,b,cty\n1,2,Oslo\n")
    refused(polytask("predict", finished / "runs/houses/model", "new.csv"), 2, '"city"', 'Did you mean "cty"')
    (here / "new.csv").write_text("a,b,city\n1,2,Oslo\n1,2\n")
    refused(polytask("predict", finished / "runs/houses/model", "new.csv"), 2, "line 3")
    refused(polytask("predict", finished / "runs/houses/model", "none.csv"), 2, "none.csv")
    (here / "new.csv").write_text("a,b,city\n1,2,Oslo\n")
    refused(polytask("predict", finished / "runs/houses/model", "new.csv", "-o", "no/pred.csv"), 2, "not a folder")
    assert everything(here) == ["new.csv"]


def test_what_is_no_model_gives_exit_3(finished, polytask, here):
    (here / "new.csv").write_text("a,b,city\n1,2,Oslo\n")
    (here / "evil.pkl").write_bytes(b"cposix\nsystem\n(S'touch sentinel'\ntR.")
    errors = refused(polytask("predict", "evil.pkl", "new.csv"), 3)
    wanted = (
        "evil.pkl is not a polytask model (expected a directory with manifest.json). Pickle files are never opened."
    )
    assert errors.strip() == f"Error: {wanted}"
    assert not (here / "sentinel").exists()
    refused(polytask("predict", here, "new.csv"), 3, "manifest.json")
    assert not (here / "pred.csv").exists()


def test_cells_that_a_spreadsheet_would_run_are_guarded_and_read_back_exactly(polytask, here):
    evil = ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "'=x", "plain"]
    rng = np.random.default_rng(0)
    rows = "".join(
        f'"{evil[i % 6]} {i}",{v:.3f},{w:.3f},"{evil[i % 3]}"\n' for i, (v, w) in enumerate(rng.normal(size=(90, 2)))
    )
    (here / "t.csv").write_text("id,x,z,=y\n" + rows)
    code, *_ = polytask(
        "train", "t.csv", "--targets", "=y", "--id", "id", "--method", "ridge", "--trials", "1", "-o", "m"
    )
    assert code == 0
    assert polytask("predict", "m", "t.csv")[0] == 0
    lines = (here / "pred.csv").read_text().splitlines()
    for cell in ",".join(lines).split(","):
        assert cell[0] not in "=@+"
        assert cell[0] != "-" or float(cell)
    from polytask.sources.preflight import read_cells

    cells = read_cells(here / "pred.csv")
    assert cells.names[:2] == ("id", "=y")
    assert cells.columns[0] == read_cells(here / "t.csv").columns[0]
    assert cells.columns[0][:4] == ["=1+1 0", "+cmd 1", "-2+3 2", "@SUM(A1) 3"]
    assert set(cells.columns[1]) <= set(evil[:3])


def test_in_the_long_form_each_row_gets_its_own_tasks_prediction(polytask, here):
    rng = np.random.default_rng(0)
    rows = [(f"s{i % 3}", x, x * (1 + i % 3) + 0.1 * e) for i, (x, e) in enumerate(rng.normal(size=(120, 2)))]
    (here / "t.csv").write_text("school,x,score\n" + "".join(f"{s},{x:.4f},{y:.4f}\n" for s, x, y in rows))
    code, *_ = polytask("train", "t.csv", "--target", "score", "--task", "school", "--method", "ridge", "--trials", "2")
    assert code == 0
    (here / "new.csv").write_text("school,x\ns0,1\ns1,1\ns2,1\nother,1\n,1\n")
    code, said, _ = polytask("predict", "model", "new.csv")
    assert code == 0
    assert "2 rows have a task the model does not know" in said
    lines = [line.split(",") for line in (here / "pred.csv").read_text().splitlines()]
    assert lines[0] == ["school", "prediction"]
    np.testing.assert_allclose([float(line[1]) for line in lines[1:4]], [1, 2, 3], atol=0.2)
    assert [line[1] for line in lines[4:]] == ["", ""]


FULL = """
import resource, sys
from polytask.cli import run
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(run(sys.argv[2:]))
"""


def on_a_full_disk(limit, *arguments):
    """Run a command while no file may grow beyond ``limit`` bytes; return the sentence it ends with."""
    command = [sys.executable, "-c", FULL, str(limit), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 74, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if not line.startswith(" ")]  # what is progress
    assert "bytes free" in said
    return said


def test_a_full_disk_gives_exit_74_and_one_sentence_and_the_old_predictions_stay(finished, here):
    (here / "new.csv").write_text(small_table(2000).replace("price,rent,sold", "x,y,z"))
    (here / "pred.csv").write_text("old")
    said = on_a_full_disk(1000, "predict", finished / "runs/houses/model", "new.csv")
    assert said.startswith("Error: cannot write pred.csv: File too large")
    assert (here / "pred.csv").read_text() == "old"
    assert everything(here) == ["new.csv", "pred.csv"]


def test_on_a_full_disk_the_earlier_model_stays_and_predicts(polytask, finished, here):
    shutil.copytree(finished, here, dirs_exist_ok=True)
    model = here / "runs/houses/model"
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    said = on_a_full_disk(300, "train", "--from", "runs/houses", "--seed", "5")
    assert said.startswith("Error: cannot write runs/houses/model: File too large")
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert polytask("predict", model, "houses.csv")[0] == 0


@pytest.mark.parametrize(("limit", "name"), [(100, "config.yaml"), (5000, "runs.sqlite"), (100_000, "report.html")])
def test_on_a_full_disk_a_comparison_names_the_file_and_goes_on_when_there_is_room(limit, name, polytask, table, here):
    arguments = ("compare", "houses.csv", "--targets", "price,rent,sold", *SMALL)
    said = on_a_full_disk(limit, *arguments)
    assert f"cannot write runs/houses/{name}: " in said
    assert polytask(*arguments)[0] == 0
    assert not [found for found in everything(here) if ".tmp-" in found]


def test_without_torch_auto_compares_the_linear_methods_and_says_so(table, here):
    code = (
        WITHOUT_TORCH
        + """
assert run(["check", "houses.csv", "--targets", "price,rent"]) == 0
assert run(["check", "houses.csv", "--targets", "price,rent", "--methods", "ridge,hard-sharing"]) == 2
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here)
    assert done.returncode == 0, done.stderr
    assert (
        'torch is not installed: hard-sharing, single-task-network, soft-sharing (pip install "polytask[torch]")'
        in done.stdout
    )
    assert done.stderr.count("\n") == 1
    assert 'pip install "polytask[torch]"' in done.stderr


@pytest.mark.parametrize(
    ("methods", "warned"),
    [
        ("ridge,hard-sharing,block-sparse", True),
        ("ridge,hard-sharing,single-task-network", False),
        ("ridge,block-sparse", False),
    ],
)
def test_a_sharing_network_without_a_network_for_each_task_is_warned_about(polytask, table, methods, warned):
    code, said, _ = polytask("check", table, "--targets", "price,rent", "--methods", methods)
    assert code == 0
    assert (
        "hard-sharing shares and is a network, but every single-task method is linear" in " ".join(said.split())
    ) is (warned)
