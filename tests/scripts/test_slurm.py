"""The SLURM template, run as it stands with a stand-in for srun: torchrun with two processes on this machine."""

import contextlib
import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SBATCH = ROOT / "scripts" / "slurm" / "train.sbatch"
TRAIN = ROOT / "scripts" / "slurm" / "train"
VENV = ROOT / ".venv" / "bin"


@pytest.mark.parametrize("script", [SBATCH, TRAIN], ids=lambda path: path.name)
def test_is_valid_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


def directives() -> dict[str, str]:
    """Options of the #SBATCH lines, as sbatch reads them: up to the first line that is no comment."""
    options = {}
    for line in SBATCH.read_text().splitlines():
        if line and not line.startswith("#"):
            break
        if line.startswith("#SBATCH"):
            match = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
            assert match, f"sbatch would not read: {line}"
            options[match[1]] = match[2] or ""
    assert SBATCH.read_text().count("\n#SBATCH") == len(options)  # none after the first command, none given twice
    return options


def test_directives_requeue_warn_and_start_one_process_per_gpu() -> None:
    options = directives()
    assert options["requeue"] == ""
    assert options["signal"] == "B:SIGUSR1@90"  # to the script, which traps it
    assert options["open-mode"] == "append"
    assert options["ntasks-per-node"] == options["gpus-per-node"]


@pytest.fixture
def train_alone(tmp_path: Path):
    """scripts/slurm/train in a checkout whose fulgurite prints its arguments, one a line."""
    (tmp_path / "scripts" / "slurm").mkdir(parents=True)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    script = tmp_path / "scripts" / "slurm" / "train"
    script.write_text(TRAIN.read_text())
    program = tmp_path / ".venv" / "bin" / "fulgurite"
    program.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    for path in (script, program):
        path.chmod(0o755)

    def run(*args: str, **env: str) -> list[str]:
        done = subprocess.run(
            [str(script), *args], env={"PATH": os.environ["PATH"], **env}, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    return run


def test_command_line_takes_its_size_and_name_from_whoever_starts_it(train_alone) -> None:
    tail = ["--ckpt_path", "last"]
    size = "-c overlays/ddp --trainer.num_nodes {} --trainer.devices {}".format
    slurm = {"SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "wine", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8"}
    given = ["-c", "lds/wine", "--model.lr", "a b"]
    assert train_alone(*given) == ["fit", *given, *size(1, 1).split(), *tail]
    assert train_alone(*given, **slurm) == ["fit", *given, *size(2, 8).split(), "--name", "wine-17", *tail]
    torchrun = {"GROUP_WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "4"}
    assert train_alone(*given, **slurm, **torchrun)[5:11] == size(3, 4).split()


# Stand-ins for SLURM's programs. This srun starts two processes as SLURM would, each told its place.
SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] && shift || exit 64
export SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2 SLURM_NNODES=1 SLURM_NODEID=0 SLURM_NODELIST=127.0.0.1
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & pids+=($!); done
echo "${pids[@]}" > tasks
wait "${pids[@]}"
"""
# Requeueing ends the job's processes at once; what it was asked is kept.
SCONTROL = """#!/bin/bash
echo "$*" >> scontrol.log
kill -9 $(cat tasks)
"""
# The same command line without srun.
TORCHRUN = f"""#!/bin/bash
shift
exec {sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2 --no-python "$@"
"""


class Cluster:
    """A checkout of the template's files with this environment, and a PATH with the stand-ins first."""

    def __init__(self, place: Path) -> None:
        self.checkout, self.bin = place / "checkout", place / "bin"
        self.bin.mkdir()
        (self.checkout / "scripts" / "slurm").mkdir(parents=True)
        self.executable(self.checkout / "scripts" / "slurm" / "train", TRAIN.read_text())
        self.executable(self.checkout / "scripts" / "bootstrap", "#!/bin/bash\n")  # nothing to install
        (self.checkout / ".venv").symlink_to(ROOT / ".venv")
        self.executable(self.bin / "scontrol", SCONTROL)
        self.run = self.checkout / "runs" / "digits-17" / "0"
        others = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        self.env = others | {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "SLURM_SUBMIT_DIR": str(self.checkout),
            "SLURM_JOB_ID": "17",
            "SLURM_JOB_NAME": "digits",
        }

    @staticmethod
    def executable(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def submit(self, srun: str, epochs: int) -> subprocess.Popen[str]:
        self.executable(self.bin / "srun", srun)
        command = ["bash", str(SBATCH), "-c", "classifier/digits", "--trainer.accelerator", "cpu"]
        command += ["--trainer.max_epochs", str(epochs), "--trainer.enable_progress_bar", "false"]
        return subprocess.Popen(
            command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )

    def accuracy(self) -> dict[int, float]:
        """Validation accuracy by epoch, as the run's metrics.csv has it."""
        with (self.run / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["val/accuracy"]]
        return {int(row["epoch"]): float(row["val/accuracy"]) for row in rows}


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.skipif(not (VENV / "fulgurite").exists(), reason="the template starts .venv, made by scripts/bootstrap")
def test_job_on_two_processes_is_requeued_on_its_signal_and_continues(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    job = cluster.submit(SRUN, epochs=100_000)
    tasks: list[int] = []
    try:
        deadline = time.monotonic() + 180
        while not (cluster.run / "checkpoints" / "last.ckpt").exists():
            assert job.poll() is None, job.communicate()[0]
            assert time.monotonic() < deadline, "no checkpoint after three minutes"
            time.sleep(0.1)
        tasks = [int(pid) for pid in (cluster.checkout / "tasks").read_text().split()]
        job.send_signal(signal.SIGUSR1)  # to the script alone, as --signal=B: has it
        output = job.communicate(timeout=120)[0]
    finally:
        for pid in tasks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert (cluster.checkout / "scontrol.log").read_text() == "requeue 17\n", output
    assert "time is nearly up: requeueing job 17" in output
    assert "MEMBER: 2/2" in output
    assert job.returncode == 128 + signal.SIGKILL
    before = cluster.accuracy()

    # SLURM starts the job again: the same number, hence the same run. This time by torchrun, without srun.
    end = max(before) + 4
    job = cluster.submit(TORCHRUN, epochs=end)
    output = job.communicate(timeout=300)[0]
    assert job.returncode == 0, output
    assert "MEMBER: 2/2" in output
    assert "resuming" in output
    assert [path.name for path in cluster.run.parent.iterdir()] == ["0"]
    after = cluster.accuracy()
    assert sorted(after) == list(range(end))  # the history of both, without a gap
    kept = sorted(before)[:-1]  # the last one may have been killed before its checkpoint, and done again
    assert {epoch: after[epoch] for epoch in kept} == {epoch: before[epoch] for epoch in kept}
    assert after[end - 1] > 0.8
