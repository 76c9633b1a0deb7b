"""Model folders: exact round trip, whole or not at all, and refused when anything is off."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from tests.killing import full_disk

from polytask import Binary, InputError, Ordinal, Regression, TaskData
from polytask.core.errors import DiskError, ModelRefusedError
from polytask.registry import learner_class
from polytask.storage import MANIFEST, load_model, save_model

FILES = ["encoder.json", "manifest.json", "model.json", "model.safetensors", "schema.json"]
TASKS = (Regression("price"), Binary("sold", classes=("no", "yes")), Ordinal("state", classes=("poor", "ok", "good")))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    numeric = rng.normal(size=(80, 3))
    targets = np.column_stack(
        [numeric[:, 0] * 10 + 100, numeric[:, 1] > 0, np.digitize(numeric[:, 2], [-0.5, 0.5])]
    ).astype(float)
    return TaskData.from_columns(TASKS, {"numeric": numeric}, targets, features={"numeric": ("a", "b", "c")})


@pytest.fixture(scope="module")
def model(data):
    return learner_class("ridge")().fit(data, seed=0)


def save(folder, model, **more):
    about = {"encoder_state": {"columns": ["a"]}, "schema": {"rows": 80}, "meta": {"method": "ridge", "seed": 0}}
    save_model(folder, model, **{**about, **more})


@pytest.fixture
def saved(tmp_path, model):
    folder = tmp_path / "model"
    save(folder, model)
    return folder


def test_a_loaded_model_predicts_bit_for_bit_the_same(saved, model, data):
    loaded = load_model(saved)
    for task, scores in model.predict(data).items():
        assert loaded.model.predict(data)[task].tobytes() == scores.tobytes()
    assert loaded.encoder_state == {"columns": ["a"]}
    assert loaded.schema == {"rows": 80}
    assert loaded.meta == {"method": "ridge", "seed": 0}
    assert loaded.model.tasks == model.tasks
    assert loaded.notes() == []
    assert sorted(path.name for path in saved.iterdir()) == FILES


def test_same_model_same_bytes(tmp_path, model):
    save(tmp_path / "one", model)
    save(tmp_path / "two", model)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_versions_are_recorded_and_compared(saved):
    manifest = json.loads((saved / MANIFEST).read_text())
    assert set(manifest["libraries"]) >= {"python", "numpy", "scikit-learn"}
    manifest["libraries"]["numpy"] = "1.26.4"
    (saved / MANIFEST).write_text(json.dumps(manifest))
    assert load_model(saved).notes()[0].startswith("saved with numpy 1.26.4, running numpy")


def test_saving_again_replaces_the_model_as_a_whole(saved, model):
    (saved / "stray.txt").write_text("left over")
    save(saved, model, meta={"second": True})
    assert load_model(saved).meta == {"second": True}
    assert sorted(path.name for path in saved.iterdir()) == FILES
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_a_folder_that_is_no_model_is_never_replaced(tmp_path, model):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "thesis")
    for name in ("thesis", "file", "link"):
        with pytest.raises(InputError, match="choose another"):
            save(tmp_path / name, model)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path, model):
    for meta in ({"a": float("nan")}, {"a": object()}, {"a": np.float64(1).dtype}):
        with pytest.raises(InputError, match="plain data"):
            save(tmp_path / "model", model, meta=meta)
    assert list(tmp_path.iterdir()) == []


def test_a_class_this_version_does_not_export_cannot_be_saved(tmp_path, model):
    own = type("MyOwnModel", (type(model),), {})
    stranger = object.__new__(own)
    stranger.__dict__.update(model.__dict__)
    with pytest.raises(ModelRefusedError, match="MyOwnModel"):
        save(tmp_path / "model", stranger)
    assert list(tmp_path.iterdir()) == []


# -- a full disk, a kill ------------------------------------------------------------------------


def test_a_full_disk_is_one_sentence_and_the_earlier_model_stays(saved, model, data):
    before = {name: (saved / name).read_bytes() for name in FILES}
    with full_disk(), pytest.raises(DiskError) as caught:
        save(saved, model, meta={"second": "x" * 1000})
    message = str(caught.value)
    assert str(saved) in message
    assert "bytes free" in message
    assert "\n" not in message
    assert caught.value.exit_code == 74
    assert {name: (saved / name).read_bytes() for name in FILES} == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    load_model(saved).model.predict(data)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_a_disk_error(tmp_path, model):
    tmp_path.chmod(0o500)
    with pytest.raises(DiskError):
        save(tmp_path / "model", model)
    tmp_path.chmod(0o700)


def test_killed_while_saving_a_reader_finds_the_old_or_the_new_model(tmp_path, model):
    """SIGKILL at every system call of saving that changes the folder: always a whole model."""
    folder = tmp_path / "model"
    save(folder, model, meta={"which": "old"})
    code = """
        import os, signal, sys
        from pathlib import Path
        from polytask.storage import load_model, save_model
        folder = Path(sys.argv[1])
        loaded = load_model(folder)
        def save(which):
            about = {"encoder_state": {}, "schema": {}, "meta": {"which": which}}
            save_model(folder, loaded.model, **about)
        def dying(call, left):
            def wrapped(*args, **more):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **more)
            return wrapped
        for step in range(1, 40):
            child = os.fork()
            if child == 0:
                left = [step]
                os.fsync, Path.rename = dying(os.fsync, left), dying(Path.rename, left)
                save("new")
                os._exit(0)
            _, status = os.waitpid(child, 0)
            print(load_model(folder).meta["which"], "killed" if os.WIFSIGNALED(status) else "whole")
            if not os.WIFSIGNALED(status):
                break
            save("old")
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), folder],
        capture_output=True,
        text=True,
        check=True,
    )
    seen = done.stdout.splitlines()
    assert len(seen) > 6
    assert set(seen[:-1]) == {"old killed", "new killed"}
    assert seen[-1] == "new whole"
    save(folder, model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# -- refusals -----------------------------------------------------------------------------------


class Bomb:
    """Unpickling it creates the sentinel file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def refused(folder, *words):
    with pytest.raises(ModelRefusedError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert message.count("\n") == 0
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize("name", ["evil.pkl", "evil.joblib", "evil.pt", "evil.npy", "evil.skops", "evil"])
def test_a_malicious_pickle_is_never_opened(tmp_path, name):
    sentinel = tmp_path / "sentinel"
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Bomb(sentinel)))
    message = refused(path, "expected a directory with manifest.json")
    assert message.endswith("Pickle files are never opened.") == bool(path.suffix)
    assert not sentinel.exists()


@pytest.mark.parametrize("name", FILES)
def test_a_malicious_pickle_in_place_of_a_file_of_the_model_is_never_opened(saved, name):
    sentinel = saved.parent / "sentinel"
    bomb = pickle.dumps(Bomb(sentinel))
    (saved / name).write_bytes(bomb)
    refused(saved, name)
    manifest = json.loads((saved / MANIFEST).read_text()) if name != MANIFEST else None
    if manifest:
        import hashlib

        manifest["files"][name] = {"sha256": hashlib.sha256(bomb).hexdigest(), "size": len(bomb)}
        (saved / MANIFEST).write_text(json.dumps(manifest))
        refused(saved)
    assert not sentinel.exists()


def test_what_is_not_a_model_folder_is_refused(tmp_path):
    refused(tmp_path / "nowhere", "does not exist")
    refused(tmp_path, "no manifest.json")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_file_is_named(saved, name):
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[:-1])
    refused(saved, name)
    (saved / name).unlink()
    refused(saved, name)


@pytest.mark.parametrize("name", [name for name in FILES if name != MANIFEST])
def test_a_changed_byte_names_the_file(saved, name):
    data = bytearray((saved / name).read_bytes())
    data[-1] ^= 1
    (saved / name).write_bytes(data)
    refused(saved, name, "sha256")


@pytest.mark.parametrize("name", FILES)
def test_links_and_pipes_are_not_followed(saved, name):
    outside = saved.parent / "outside"
    shutil.move(saved / name, outside)
    (saved / name).symlink_to(outside)
    refused(saved, name, "link")
    (saved / name).unlink()
    os.mkfifo(saved / name)
    refused(saved, name, "not a regular file")
    (saved / name).unlink()
    (saved / name).mkdir()
    refused(saved, name)


def rewrite(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", "..", "C:\\x", "model.pkl", ""])
def test_a_manifest_that_names_other_files_is_refused(saved, name):
    rewrite(saved, lambda manifest: manifest["files"].update({name: {"sha256": "0", "size": 1}}))
    refused(saved, "no model has")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(version="2.0"), "newer polytask"),
        (lambda m: m.update(version="99999999999999999999.0"), "newer polytask"),
        (lambda m: m.update(version="x"), "newer polytask"),
        (lambda m: m.pop("version"), "newer polytask"),
        (lambda m: m.update(format="other"), "manifest"),
        (lambda m: m.update(files=[]), "damaged"),
        (lambda m: m.update(libraries=[]), "damaged"),
        (lambda m: m["files"].pop("model.json"), "model.json"),
        (lambda m: m["files"].update({"model.json": 3}), "model.json"),
        (lambda m: m["files"]["model.json"].update(size="3"), "model.json"),
        (lambda m: m["files"]["model.json"].update(size=10**30), "model.json"),
    ],
)
def test_a_wrong_manifest_is_refused(saved, change, words):
    rewrite(saved, change)
    refused(saved, words)


def forge(folder, name, data):
    """Change a file and make the manifest agree, as an attacker would."""
    import hashlib

    (folder / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    rewrite(folder, lambda manifest: manifest["files"].update({name: entry}))


@pytest.mark.parametrize("kind", ["posix", "Path", "os.system", "InputError", "RidgeLearner", "", None, "__import__"])
def test_a_class_that_is_no_exported_model_is_refused(saved, kind):
    about = json.loads((saved / "model.json").read_text())
    forge(saved, "model.json", json.dumps({**about, "class": kind}).encode())
    refused(saved)


@pytest.mark.parametrize(
    "content",
    [b"[]", b"{}", b"{", b"\xff", b'{"a": ' * 100_000, b"[" * 100_000, b'{"class": "RidgeModel"}', b"9" * 10_000],
    ids=["list", "empty", "cut", "not text", "deep map", "deep list", "no tasks", "long number"],
)
def test_a_forged_description_is_refused(saved, content):
    forge(saved, "model.json", content)
    refused(saved)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        (2**63).to_bytes(8, "little") + b"{}",
        (10**8).to_bytes(8, "little") + b"{" * 1000,
        (2).to_bytes(8, "little") + b"{}",
        (9 * 2**20).to_bytes(8, "little") + b" " * (9 * 2**20),
    ],
    ids=["empty", "one byte", "huge", "longer than the file", "no arrays", "bomb"],
)
def test_forged_arrays_are_refused(saved, content):
    forge(saved, "model.safetensors", content)
    refused(saved)


def test_thousands_of_mutated_models_are_refused_or_predict_bit_for_bit_the_same(saved, model, data):
    rng = np.random.default_rng(0)
    wanted = {task: scores.tobytes() for task, scores in model.predict(data).items()}
    whole = {name: (saved / name).read_bytes() for name in FILES}
    outcomes = {"refused": 0, "same": 0}
    for _ in range(10_000):
        name = FILES[rng.integers(len(FILES))]
        mutated = bytearray(whole[name])
        match rng.integers(4):
            case 0:
                mutated[rng.integers(len(mutated))] ^= 1 << int(rng.integers(8))
            case 1:
                del mutated[int(rng.integers(len(mutated))) :]
            case 2:
                start = int(rng.integers(len(mutated)))
                mutated[start : start + 8] = rng.bytes(8)
            case _:
                mutated[:8] = int(rng.integers(2**62)).to_bytes(8, "little")
        (saved / name).write_bytes(mutated)
        try:
            found = load_model(saved).model.predict(data)
        except ModelRefusedError:
            outcomes["refused"] += 1
        else:
            outcomes["same"] += 1
            assert {task: scores.tobytes() for task, scores in found.items()} == wanted
        (saved / name).write_bytes(whole[name])
    assert outcomes["refused"] > 8500


def test_no_code_of_the_package_reads_pickles():
    """The words that would open one do not occur in the sources."""
    import polytask

    for path in Path(polytask.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for word in ("pickle.load", "joblib.load", "torch.load", "allow_pickle=True", "yaml.load(", "yaml.unsafe"):
            assert word not in text, f"{path}: {word}"
