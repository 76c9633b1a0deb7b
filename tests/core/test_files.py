"""Files are written whole or not at all: kills at every moment of writing, full disks, leftovers."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.killing import full_disk

from polytask.core.errors import DiskError
from polytask.core.files import write_file

ROOT = str(Path(__file__).parents[2])
KILLED = """
    import os, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from tests.killing import child, kill_at

    folder, what = Path(sys.argv[1]), sys.argv[3]

    def write(which):
        if what == "reports":
            from polytask.core.results import Results
            from polytask.jobs.comparing import write_reports
            write_reports(Results(which, {}, {}, (), (), ()), folder)
        else:
            from polytask.sources import write_csv
            write_csv(folder / what, {"which": [which] * 3000})

    def read():
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if ".tmp-" not in path.name}

    write("old")
    old = read()
    write("new")
    new = read()
    assert list(old) == list(new) and not set(old.values()) & set(new.values())
    for moment in range(1, 100):
        for name, data in old.items():
            (folder / name).write_bytes(data)
        calls = (os, "fsync"), (Path, "replace"), (Path, "open")
        killed = os.WIFSIGNALED(child(lambda: write("new"), before=lambda: kill_at(moment, *calls)))
        now = read()
        assert list(now) == list(old)
        print(*("old" if now[n] == old[n] else "new" if now[n] == new[n] else "mixed" for n in old), flush=True)
        if not killed:
            break
"""


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("reports", ["report.html", "report.md", "results.json"]),
        ("pred.csv", ["pred.csv"]),
        ("pred.csv.gz", ["pred.csv.gz"]),
    ],
)
def test_killed_at_any_moment_of_writing_a_reader_finds_each_file_as_it_was_or_as_it_is_to_be(what, names, tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), ROOT, what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    *moments, last = [line.split() for line in done.stdout.splitlines()]
    assert len(moments) >= 9 * len(names)  # open, half of the content, two flushes, rename
    assert {state for states in moments for state in states} == {"old", "new"}
    assert last == ["new"] * len(names)
    assert sorted(path.name for path in tmp_path.iterdir()) == names  # leftovers are removed by the next


def test_a_full_disk_is_one_sentence_with_path_and_free_bytes_and_the_old_file_stays(tmp_path):
    path = tmp_path / "results.json"
    write_file(path, "old")
    with (
        full_disk(),
        pytest.raises(
            DiskError, match=r"^cannot write .*results\.json: File too large \([\d,]+ bytes free there\)"
        ) as told,
    ):
        write_file(path, "new" * 1000)
    assert told.value.exit_code == 74
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_what_processes_that_are_gone_left_is_removed_and_nothing_else(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    kept = [f".one.txt.tmp-{os.getppid()}", ".one.txt.tmp-x", f".two.txt.tmp-{gone.pid}", f".one.txt2.tmp-{gone.pid}"]
    for name in (*kept, f".one.txt.tmp-{gone.pid}"):
        (tmp_path / name).write_text("half")
    write_file(tmp_path / "one.txt", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "one.txt"])


def test_a_missing_folder_is_made_unless_it_must_be_there(tmp_path):
    write_file(tmp_path / "new" / "one.txt", b"1")
    with pytest.raises(DiskError, match=r"cannot write .*none/two\.txt: No such file or directory"):
        write_file(tmp_path / "none" / "two.txt", b"2", make_folder=False)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
