import os
import signal
import sqlite3
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from polytask.compare.store import FILE, RunStore, Stored
from polytask.core.errors import DiskError, InputError
from polytask.core.relation import Relation
from polytask.core.results import Run


def example(split=0, status="done"):
    relation = Relation("correlation", np.eye(2), ("a", "b"), ("a", "b"))
    run = Run("m", split, 0, status, scores={"a": {"rmse": 0.1 + 0.2}}, relations={"r": relation})
    return Stored(run, {"a/../ä": (np.array([3, 5]), np.array([0.1, 1e-300]))}, 1.5)


def test_what_is_stored_comes_back_exactly(tmp_path):
    with RunStore(tmp_path) as store:
        store.put("f", example())
    with RunStore(tmp_path) as store:
        back = store.get("f", "m", 0, 0)
        assert store.get("g", "m", 0, 0) is None
        assert store.status("f", "m", 0, 0) == "done"
        assert store.status("f", "m", 1, 0) is None
    assert back.run.to_json() == example().run.to_json()
    rows, values = back.influences["a/../ä"]
    np.testing.assert_array_equal(rows, [3, 5])
    np.testing.assert_array_equal(values, [0.1, 1e-300])


def test_a_failed_run_is_replaced(tmp_path):
    with RunStore(tmp_path) as store:
        store.put("f", example(status="failed"))
        assert store.status("f", "m", 0, 0) == "failed"
        store.put("f", example())
        assert store.status("f", "m", 0, 0) == "done"


HOLDER = """
    import sys, time
    from pathlib import Path
    from polytask.compare.store import RunStore
    with RunStore(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(600)
"""


def hold(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_in_a_folder_is_refused_with_process_and_host_and_a_dead_ones_lock_is_taken(tmp_path):
    process = hold(tmp_path)
    try:
        with pytest.raises(InputError, match=f"process {process.pid} on {os.uname().nodename}"), RunStore(tmp_path):
            pass
        with RunStore(tmp_path / "other"):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with RunStore(tmp_path) as store:
        store.put("f", example())


def test_a_full_disk_is_one_sentence_with_the_path(tmp_path):
    with RunStore(tmp_path) as store:
        pages = store.connection.execute("pragma page_count").fetchone()[0]
        store.connection.execute(f"pragma max_page_count = {pages}")
        large = Stored(Run("m", 0, 0, error="x" * 10**5), {}, 0.0)
        with pytest.raises(DiskError, match=f"cannot write .*{FILE}.*bytes free"):
            store.put("f", large)
    with RunStore(tmp_path) as store:
        assert store.status("f", "m", 0, 0) is None


def test_a_folder_that_cannot_be_made_is_a_disk_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DiskError, match="cannot write"), RunStore(tmp_path / "file" / "runs"):
        pass


def test_a_foreign_file_is_refused_and_left_alone(tmp_path):
    (tmp_path / FILE).write_bytes(b"something else entirely" * 100)
    with pytest.raises(InputError, match="not a file of polytask runs"), RunStore(tmp_path):
        pass
    assert (tmp_path / FILE).read_bytes().startswith(b"something else")


def test_the_file_is_plain_sqlite_that_others_can_read(tmp_path):
    with RunStore(tmp_path) as store:
        store.put("f", example())
    connection = sqlite3.connect(tmp_path / FILE)
    assert connection.execute("select method, split, status from runs").fetchall() == [("m", 0, "done")]
    connection.close()
