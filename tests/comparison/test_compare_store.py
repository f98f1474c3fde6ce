"""Laws of the store of a comparison: whoever writes, and whenever it ends, no row is lost and what
is there is read.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from timonel.comparison import rows
from timonel.comparison.plan import Plan
from timonel.comparison.store import TABLE, Outcome, Store
from timonel.errors import ArgumentError

(CELL,) = Plan.of("ghost", sampler="euler", steps=4, seed=3, guidance_until=0.5)
WRITER = """
import sys
from pathlib import Path
from timonel.comparison.plan import Plan
from timonel.comparison.store import Outcome, Store
root, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
(cell,) = Plan.of("ghost", sampler="euler", steps=4, seed=3)
store = Store(root)
print("ready", flush=True)
sys.stdin.readline()
for k in range(count):
    store.keep([Outcome(f"{name}{k}", "cell", "done", cell.recipe, nfe=k)])
"""


def outcome(name: str, status: str = "done", **more: Any) -> Outcome:
    return Outcome(name, "cell", status, CELL.recipe, **more)


def writer(root: Path, name: str, count: int) -> subprocess.Popen[str]:
    """A process that waits for a line, and then writes so many rows."""
    command = [sys.executable, "-W", "ignore", "-c", WRITER, str(root), name, str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    writers = [writer(tmp_path, name, 40) for name in "ab"]
    for process in writers:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in writers:
        process.communicate("go\n", timeout=120)
        assert process.returncode == 0
    found = Store(tmp_path).outcomes
    assert {name: o.nfe for name, o in found.items()} == {
        f"{who}{k}": k for who in "ab" for k in range(40)
    }


def test_threads_lose_nothing_with_one_store_or_several(tmp_path: Path) -> None:
    one = Store(tmp_path)
    stores = [one, one, Store(tmp_path), Store(tmp_path)]

    def write(which: int) -> None:
        for k in range(10):
            stores[which].keep([outcome(f"{which}-{k}")])

    threads = [threading.Thread(target=write, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Store(tmp_path).outcomes) == 40
    one.refresh()
    assert len(one.outcomes) == 40


def test_a_writer_killed_in_the_middle_leaves_rows_that_are_read_and_goes_on(
    tmp_path: Path,
) -> None:
    process = writer(tmp_path, "k", 100_000)
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    table = tmp_path / TABLE
    while not (table.is_file() and len(Store(tmp_path).outcomes) >= 5):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    store = Store(tmp_path)
    names = {f"k{k}" for k in range(len(store.outcomes))}
    assert len(names) >= 5
    assert set(store.outcomes) == names  # every row before the last, each of them whole
    store.keep([outcome("after")])
    assert set(Store(tmp_path).outcomes) == names | {"after"}


def test_a_row_comes_back_as_it_was(tmp_path: Path) -> None:
    given = outcome(
        "a",
        levels=[14.6, 0.0],
        times=[999.0, 0.0],
        stochastic=True,
        measures={"psnr": float("inf")},
    )
    Store(tmp_path).keep([given])
    assert Store(tmp_path).outcomes["a"] == given


def test_a_reader_sees_what_others_changed_and_success_outlives_failure(tmp_path: Path) -> None:
    one, two = Store(tmp_path), Store(tmp_path)
    one.keep([outcome("a", "failed", reason="no luck"), outcome("b", nfe=1)])
    two.refresh()
    two.keep([outcome("a", nfe=4), outcome("b", "failed", reason="no luck")])
    one.refresh()
    two.refresh()
    assert [(o.status, o.nfe) for o in (one.outcomes["a"], one.outcomes["b"])] == [
        ("done", 4),
        ("done", 1),
    ]
    assert Store(tmp_path).outcomes["b"].nfe == 1


# -- reports of before, and other files ------------------------------------------------------------
def parquet(root: Path, *outcomes: Outcome) -> Path:
    """A report as it was before sqlite."""
    made = rows.export([o.row() for o in outcomes], root / "made.parquet")
    return made.rename(root / rows.BEFORE)


def test_a_report_of_before_sqlite_is_read_and_goes_on(tmp_path: Path) -> None:
    old = parquet(tmp_path, outcome("a", nfe=7, measures={"ssim": 0.5}), outcome("b"))
    store = Store(tmp_path)
    assert (store.outcomes["a"].nfe, store.outcomes["a"].measures) == (7, {"ssim": 0.5})
    assert not (tmp_path / TABLE).exists()  # reading writes nothing
    store.keep([outcome("c")])
    assert set(Store(tmp_path).outcomes) == {"a", "b", "c"}
    assert not old.exists()
    assert (tmp_path / rows.KEPT).is_file()


def test_a_report_of_before_survives_a_kill_between_the_two_tables(tmp_path: Path) -> None:
    parquet(tmp_path, outcome("a"))
    sqlite3.connect(tmp_path / TABLE).close()
    (tmp_path / TABLE).touch()
    Store(tmp_path).keep([outcome("b")])
    assert set(Store(tmp_path).outcomes) == {"a", "b"}


def test_pyarrow_is_needed_for_its_own_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").mkdir()
    parquet(tmp_path / "old", outcome("a"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    store = Store(tmp_path / "new")
    (tmp_path / "new").mkdir()
    store.keep([outcome("a")])
    assert set(Store(tmp_path / "new").outcomes) == {"a"}
    for call in (
        lambda: Store(tmp_path / "old"),
        lambda: rows.exportable("a.parquet"),
        lambda: rows.table([]),
    ):
        with pytest.raises(ArgumentError, match="pip install pyarrow"):
            call()


def test_a_table_is_exported_and_may_lie_in_the_report(tmp_path: Path) -> None:
    import pyarrow.parquet

    Store(tmp_path).keep([outcome("a", nfe=7)])
    rows.export([outcome("a", nfe=7).row()], tmp_path / "runs.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "runs.parquet").column("nfe").to_pylist() == [7]
    assert set(Store(tmp_path).outcomes) == {"a"}
    for name, said in (("runs.csv", r"a \.parquet file"), (rows.BEFORE, "another one")):
        with pytest.raises(ArgumentError, match=said):
            rows.export([], tmp_path / name)


def test_what_is_no_table_of_ours_is_refused_and_left_alone(tmp_path: Path) -> None:
    table = tmp_path / TABLE
    table.write_bytes(b"not a database, but long enough to be looked at" * 40)
    with pytest.raises(
        ArgumentError, match="cannot be read: file is not a database; delete it to begin anew"
    ):
        Store(tmp_path)
    table.unlink()
    newer = sqlite3.connect(table)
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(ArgumentError, match="newer timonel"):
        Store(tmp_path)
