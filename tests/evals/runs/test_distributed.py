"""Several processes leave what one leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from killing import NAMES, kinds
from stored import answers_on_disk

from regaze.evals.runs.distributed import World, join

# One process loads torch and forks; the children meet through gloo, as those of a launcher do.
SCRIPT = """
import os, signal, socket, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from toy import ToyTask, toy_model
from regaze.evals.runs import records
from regaze.evals.asking import runner
from regaze.evals.runs.conditions import Condition
from regaze.evals.asking.decoding import Decoding
from regaze.evals.runs.distributed import join

model, processor = toy_model()
append, root = records.append, Path({root!r})

def go(name, fatal):
    def fragile(path, fresh):
        nonlocal fatal
        fatal -= 1
        if not fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        append(path, fresh)
    records.append = fragile
    world = join()
    read = records.read
    def late(*paths):  # where others have begun meanwhile, work must still be shared out alike
        time.sleep(0.3 * world.rank)
        return read(*paths)
    records.read = late
    conditions = [Condition.parse("vhr:alpha=4"), Condition.parse("none@wrong")]
    result = runner.run(
        ToyTask(4), model, processor, conditions, out=root / name, batch_size=4, world=world,
        max_new_tokens=2, identity={{"name": "toy"}},
        decoding=Decoding(temperature=1.5, seeds=(0, 1)),
    )
    assert all(len(a.by_seed[seed]) == 24 for a in result.answers for seed in (0, 1))

def together(name, size, fatal=0):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            if size > 1:
                os.environ |= {{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}}
                os.environ |= {{"RANK": str(rank), "LOCAL_RANK": str(rank)}}
                os.environ["WORLD_SIZE"] = str(size)
            try:
                go(name, fatal if rank == size - 1 else 0)
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    pid, status = os.wait()
    if status:  # a launcher stops the others
        for other in set(pids) - {{pid}}:
            os.kill(other, signal.SIGKILL)
    for other in set(pids) - {{pid}}:
        status = os.waitpid(other, 0)[1] or status
    return status

assert together("one", 1) == 0
assert together("two", 2) == 0
assert together("changed", 2, fatal=3) == signal.SIGKILL
print(len(list((root / "changed").glob("none/*.rank*"))))
assert together("changed", 3) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_any_number_of_processes_leaves_the_same_lines(tmp_path: Path, root: Path) -> None:
    script = SCRIPT.format(tests=str(root / "tests" / "support"), root=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > 0, "the killed run left files of its processes"
    one = answers_on_disk(tmp_path / "one")
    assert {name: len(lines) for name, lines in one.items()} == {
        "none": 48,
        "none_wrong": 48,
        "vhr_alpha=4": 48,
    }
    assert answers_on_disk(tmp_path / "two") == one
    assert answers_on_disk(tmp_path / "changed") == one
    for name, sizes in (("two", {2}), ("changed", {2, 3})):
        folder = tmp_path / name / "none"
        assert {path.name for path in folder.iterdir()} == {"manifest.json", "predictions.jsonl"}
        manifest = json.loads((folder / "manifest.json").read_text())
        assert {session["world_size"] for session in manifest["sessions"]} == sizes
        assert {session["rank"] for session in manifest["sessions"]} >= {0, 1}


def test_without_a_launcher_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join() == World(0, 1)
    assert join().first
    World().wait()


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of run by one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name, run in kinds().items():
        run(folder / name, World())
    return folder


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_share_out_every_kind_of_run(
    tmp_path: Path, root: Path, alone: Path, launcher: str
) -> None:
    script = str(root / "tests" / "support" / "launching.py")
    command = [sys.executable, "-m", *LAUNCHERS[launcher], script]
    done = subprocess.run(
        [*command, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    for name in set(NAMES) - {"heads"}:
        together, one = tmp_path / name, alone / name
        assert answers_on_disk(together) == answers_on_disk(one)
        pictures = {path.relative_to(one): path.read_bytes() for path in one.rglob("*.png")}
        assert {p: (together / p).read_bytes() for p in pictures} == pictures
        for path in together.glob("*/manifest.json"):
            ranks = {one["rank"] for one in json.loads(path.read_text())["sessions"]}
            assert ranks == {0, 1}
    found = [(folder / "heads" / "scores.jsonl").read_text() for folder in (tmp_path, alone)]
    assert found[0] == found[1]
    assert found[0].count("\n") == 10


@pytest.mark.parametrize("size", ["abc", "", "-1", "2.5"])
def test_a_number_of_processes_that_is_none_is_named(
    size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(ValueError, match=f"WORLD_SIZE is '{size}', not a number of processes"):
        join()
