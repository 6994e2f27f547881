"""A whole run of the quickstart's configuration on few tokens, as a process that tests watch from outside."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "faults"))
from kills import MOST_TRIES, lines, ranks_of  # noqa: E402

FEW_TOKENS = {
    "stages.align.tokens": "16K", "stages.select.tokens": "8K", "stages.select.polish": 0, "stages.distill.tokens": 4096,
    "stages.evaluate.compare": "[uniform]", "stages.evaluate.lengths": "[512]", "stages.evaluate.samples": 2,
    "stages.evaluate.greedy_samples": 0, "stages.evaluate.perplexity_tokens": 1024, "stages.export.enabled": "false",
}
MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1",
       "OMP_NUM_THREADS": "1"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class SmallRun:
    def __init__(self, program, mpirun, runs, name, *arguments, ranks=2):
        self.folder = Path(runs) / name
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.log = self.folder.with_suffix(".log")
        keys = FEW_TOKENS | {"run.dir": runs, "run.name": name, "parallel.tensor": min(ranks, 2)}
        sets = [argument for key, value in keys.items() for argument in ("--set", f"{key}={value}")]
        self.process = subprocess.Popen(
            [mpirun, "-np", str(ranks), "--oversubscribe", "--bind-to", "none", program, "configs/quickstart.yaml", *sets,
             *arguments], stdout=self.log.open("w"), stderr=subprocess.STDOUT, env=os.environ | MPI)

    @classmethod
    def held(cls, moment, program, mpirun, runs, name, *arguments):
        """A run whose last rank is stopped while moment(run) is true: the others wait for it until it is let go."""
        for _ in range(MOST_TRIES):
            shutil.rmtree(Path(runs) / name, ignore_errors=True)
            run = cls(program, mpirun, runs, name, *arguments)
            while not (came := moment(run)) and not run.ended():
                time.sleep(0.02)  # between two looks
            ranks = ranks_of(run.process)
            if came and ranks:
                run.last_rank = ranks[max(ranks)]
                os.kill(run.last_rank, signal.SIGSTOP)
                if moment(run):
                    return run
                run.let_go()
            run.finish()
        raise SystemExit(f"FAILED: in every one of {MOST_TRIES} runs the moment was over before it was seen:\n{run.log.read_text()}")

    def let_go(self):
        os.kill(self.last_rank, signal.SIGCONT)

    def ended(self):
        return self.process.poll() is not None

    def finish(self):
        if self.process.wait() != 0:
            raise SystemExit(f"FAILED: the run ended with {self.process.returncode}:\n{self.log.read_text()}")

    def target(self):
        """HOST, PORT of its endpoint; None before it is there."""
        try:
            host, _, port = json.loads(Path(f"{self.folder}.prometheus.json").read_text())[0]["targets"][0].rpartition(":")
            return host, int(port)
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def results(self):
        """What the run found, without the clock."""
        gates = json.loads((self.folder / "gates.json").read_text())
        evaluation = json.loads((self.folder / "evaluation.json").read_text())
        tensors = {str(file.relative_to(self.folder)): hashlib.sha256(file.read_bytes()).hexdigest()
                   for file in sorted(self.folder.rglob("*.safetensors")) if "checkpoints" not in file.parts}
        return {"gates": gates["alpha"], "history": gates["history"], "measurements": evaluation["measurements"], **tensors}

    def steps(self, stage):
        return [step for step in map(json.loads, lines(self.folder / "metrics.jsonl")) if step["stage"] == stage]
