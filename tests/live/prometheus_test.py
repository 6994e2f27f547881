"""A real Prometheus finds a real run by deploy/prometheus, and all that we ask of it has answers.

    python tests/live/prometheus_test.py build/flashmorph-dist MPIRUN     from the repository's root

Every query of the Grafana board returns numbers, every alert rule evaluates, every metric that a query, a rule or the docs
name exists and every metric of ours is documented; a run that ends as it should leaves no alert behind.
"""

import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

from small_run import SmallRun, free_port, lines

DEADLINE = 240  # seconds, of everything that is waited for
DISTILL_STEPS = 8
OURS = re.compile(r"\bflashmorph_[a-z_]+")
ON_CARDS = {"flashmorph_stage_peak_ratio"}  # of a card's peak: a CPU's is not known
HISTOGRAM_PARTS = re.compile(r"_(bucket|sum|count)$")


def fail(message):
    sys.exit(f"FAILED: {message}")


def wait_for(what, condition):
    started = time.monotonic()
    while not (found := condition()):
        if time.monotonic() - started > DEADLINE:
            fail(f"waited in vain for {what}")
        time.sleep(0.1)
    return found


class Prometheus:
    """Prometheus on a copy of deploy/prometheus beside a folder `runs`; it looks every second instead of every five."""

    def __init__(self, work):
        shutil.copytree("deploy/prometheus", work / "deploy/prometheus")
        config = work / "deploy/prometheus/prometheus.yml"
        config.write_text(config.read_text().replace(": 5s", ": 1s"))
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = work / "prometheus.log"
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={work / 'data'}",
             f"--web.listen-address={self.url.removeprefix('http://')}"],
            stdout=self.log.open("w"), stderr=subprocess.STDOUT)

    def __enter__(self):
        wait_for("Prometheus to be ready", self.ready)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def ready(self):
        if self.process.poll() is not None:
            fail(f"Prometheus ended: {self.log.read_text()}")
        try:
            return urllib.request.urlopen(f"{self.url}/-/ready").status == 200
        except OSError:
            return False

    def ask(self, path, **parameters):
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}"
        try:
            with urllib.request.urlopen(url) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as error:
            fail(f"{url}: {error.read().decode()}")

    def alerts(self):
        return [alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"]]


def board_queries(run):
    """Panel's title and expression, for this run."""
    board = json.loads(Path("deploy/grafana/gates.json").read_text())
    return [(panel["title"], target["expr"].replace("$run", run)) for panel in board["panels"] for target in panel["targets"]]


def board_variables():
    board = json.loads(Path("deploy/grafana/gates.json").read_text())
    return [variable["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]


def check_board(prometheus, run, start, end):
    for query in board_variables():
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", query).groups()
        if run not in prometheus.ask(f"label/{label}/values", **{"match[]": metric, "start": start, "end": end}):
            fail(f"the board's variable {query} does not offer the run")
    for title, query in board_queries(run):
        series = prometheus.ask("query_range", query=query, start=start, end=end, step=1)["result"]
        values = [float(value) for one in series for _, value in one["values"]]
        if not any(math.isfinite(value) for value in values):
            fail(f"panel '{title}': no number for {query}")
        print(f"  {title:<34} {len(series):>3} series, {len(values):>5} points")


def check_rules(prometheus):
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    if not rules:
        fail("no rules loaded")
    for rule in rules:
        if rule["health"] != "ok":
            fail(f"rule {rule['name']}: {rule['health']}, {rule.get('lastError', '')}")
    return rules


def check_names(prometheus, rules, run, start, end):
    scraped = {HISTOGRAM_PARTS.sub("", name) for name in
               prometheus.ask("label/__name__/values", start=start, end=end) if name.startswith("flashmorph_")}
    docs = set(OURS.findall(Path("docs/metrics.md").read_text()))
    asked = {HISTOGRAM_PARTS.sub("", name) for text in
             [query for _, query in board_queries(run)] + [rule["query"] for rule in rules] for name in OURS.findall(text)}
    for what, names in (("asked for but not there", asked - scraped), ("documented but not there", docs - scraped - ON_CARDS),
                        ("there but not documented", scraped - docs)):
        if names:
            fail(f"{what}: {' '.join(sorted(names))}")
    print(f"  {len(scraped)} metrics, all documented")


def check_bounds(prometheus, run, end):
    """The number of series follows from layers, ranks, stages and lengths: no label grows with the steps."""
    series = prometheus.ask("query", query=f'count({{run="{run}"}})', time=end)["result"]
    count = int(series[0]["value"][1])
    if count > 400:
        fail(f"{count} series of a run with 12 layers and 2 ranks")
    print(f"  {count} series")


def is_at_last_hybrid(run):
    """Whether every stage, and a checkpoint, has been in its metrics, and a stage that trains is under way: the last hybrid's first
    half of distill."""
    return (any('"event":"saved"' in line for line in lines(run.folder / "events.jsonl"))
            and 1 <= sum(step["what"] == "uniform" for step in run.steps("distill")) <= DISTILL_STEPS // 2)


def looked_at_since(prometheus, start):
    """Whether an answer of the run has come that was asked for after `start`, Unix time."""
    looks = prometheus.ask("query", query='flashmorph_run_info{run="watched"}[1h]')["result"]
    return any(float(at) > start for one in looks for at, _ in one["values"])


def main():
    program, mpirun = sys.argv[1:3]
    for tool in ("prometheus", "promtool"):
        if shutil.which(tool) is None:
            fail(f"{tool} is not installed: deploy/install.sh --tests")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with Prometheus(work) as prometheus:
            start = time.time()
            run = SmallRun.held(is_at_last_hybrid, program, mpirun, work / "runs", "watched", "--set", "stages.align.tokens=32K",
                                "--set", "report.price_per_gpu_hour=2", "--set", "stages.evaluate.tasks=[passkey]",
                                "--set", "stages.evaluate.task_lengths=512", "--set", "stages.evaluate.task_samples=1",
                                "--set", "checkpoint.every=2", "--set", "stages.distill.batch_tokens=1024",
                                "--set", f"stages.distill.tokens={1024 * DISTILL_STEPS}")
            for _ in range(2):  # a rate needs two looks
                now = time.time()
                wait_for("the run to be looked at", lambda: looked_at_since(prometheus, now))
            run.let_go()
            run.finish()
            wait_for("the finished run to be let go", lambda: not prometheus.ask("targets", state="active")["activeTargets"])
            wait_for("its alerts to be resolved", lambda: not prometheus.alerts())
            last = prometheus.ask("query", query=f'flashmorph_run_info{{run="watched"}}[{DEADLINE * 2}s]')["result"]
            end = float(last[0]["values"][-1][0])
            check_board(prometheus, "watched", start, end)
            check_names(prometheus, check_rules(prometheus), "watched", start, end)
            check_bounds(prometheus, "watched", end)
    print("prometheus: all checks passed")


if __name__ == "__main__":
    main()
