"""README and docs say nothing that is not there: links, files, keys, commands; deploy's and configs' YAML parses; what is
shown in Python runs.

    python tests/docs/docs_test.py build/flashmorph-dist     from the repository's root
"""

import re
import subprocess
import sys
from pathlib import Path

import yaml

PAGES = [Path("README.md"), *sorted(Path("docs").rglob("*.md"))]
FOLDERS = "|".join(path.name for path in Path(".").iterdir() if path.is_dir() and path.name in
                   ("core", "distributed", "launcher", "proto", "deploy", "tests", "configs", "docs", "cmake"))
A_PATH = re.compile(rf"`((?:{FOLDERS})/[\w./-]+)`")
A_PLACEHOLDER = re.compile(r"[A-Z]{4,}")  # configs/MODEL-RANKS.yaml
A_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")
A_KEY = re.compile(r"--set ([a-z_.]+)=")
A_TEST = re.compile(r"(?:`|-R )((?:benchmarks|end_to_end|faults|fuzz|golden|live|mpi|mutations|unit)\.\w+)")
# What a reader types, by its first words, and the test that runs it. A command that no test runs must be one of UNTESTED.
RUN_BY = {
    "./deploy/quickstart.sh": "itself", "./tests/run.sh": "itself", "tests/slurm/run.sh": "itself", "tests/gpu.sh": "itself",
    "deploy/smollm2.sh": "end_to_end.real_model", "build/venv/bin/python deploy/gguf_to_hf.py": "golden.gguf",
    "build/venv/bin/python deploy/hf_to_gguf.py": "golden.gguf",
    "mpirun": "end_to_end.small_run", "build/flashmorph-dist": "end_to_end.small_run", "flashmorph-dist": "end_to_end.small_run",
    "sbatch": "tests/slurm/run.sh", "prometheus": "live.prometheus", "deploy/bundle.sh": "tests/gpu.sh", "FOLDER/run": "tests/gpu.sh",
    "python3 tests/benchmarks": "itself", "python tests/benchmarks": "itself", "tests/benchmarks": "itself", "tests/fuzz/run.sh": "itself",
    "python docs/evaluate": "golden.tasks",
}
UNTESTED = ("docker", "apptainer", "kubectl")

faults = []


def commands_of(text):
    """Lines of indented blocks that are commands, joined over their continuations."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if (found := re.match(r" {4,}(?:\S+=\S+ )*((?:\./)?[\w./-]+)( .*)?$", line)) and not line.lstrip().startswith("|"):
            yield found.group(0).strip()


def check_page(page, subcommands, keys, tests):
    text = page.read_text()
    for link in A_LINK.findall(text):
        if not (page.parent / link).exists():
            faults.append(f"{page}: links to {link}, which is not there")
    for path in A_PATH.findall(text):
        if not A_PLACEHOLDER.search(path.replace("README", "")) and not Path(path).exists():
            faults.append(f"{page}: names {path}, which is not there")
    for key in A_KEY.findall(text):
        if key != "key" and key not in keys:
            faults.append(f"{page}: sets {key}, which is no key")
    for test in A_TEST.findall(text):
        if not any(name == test or name.startswith(f"{test}.") for name in tests):
            faults.append(f"{page}: names {test}, which is no test")
    for command in commands_of(text):
        words = command.split()
        if "/" in words[0] and words[0].startswith(("./", "deploy", "tests")) and not Path(words[0]).is_file():
            faults.append(f"{page}: runs {words[0]}, which is not there")
        subcommand = re.search(r"\bflashmorph-dist ([a-z]+)\b(?![./])", command)
        if subcommand and subcommand[1] not in subcommands:
            faults.append(f"{page}: {command}: no subcommand {subcommand[1]}")


def check_commands(page):
    """Every command of an indented block is known to be run by a test, or is said to be untested."""
    for command in commands_of(page.read_text()):
        if re.match(r"(\./|build/|deploy/|tests/|FOLDER/)|(mpirun|flashmorph-dist|sbatch|python3?|prometheus|docker|apptainer|kubectl) ", command):
            if not command.startswith((*RUN_BY, *UNTESTED)):
                faults.append(f"{page}: no test runs: {command}")


def check_python(page, build):
    """A ```python block runs from the repository's root; what it takes from build/ is `build`'s."""
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
        run = subprocess.run([sys.executable, "-c", block.replace("build/", f"{build}/")], capture_output=True, text=True)
        if run.returncode != 0:
            faults.append(f"{page}: its Python fails: {run.stderr.strip().splitlines()[-1]}")


def check_manifests():
    for file in [*Path("deploy").rglob("*.yml"), *Path("deploy").rglob("*.yaml"), *Path("configs").rglob("*.yaml")]:
        try:
            list(yaml.safe_load_all(file.read_text()))
        except yaml.YAMLError as error:
            faults.append(f"{file}: {error}")


def main():
    def printed(*command):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    program = Path(sys.argv[1]).resolve()
    keys = set(re.findall(r"^\| `([a-z_.]+)`", printed(program, "--keys"), re.M))
    subcommands = set(re.findall(r"^  ([a-z]+) ", printed(program, "--help"), re.M))
    tests = set(re.findall(r"Test +#\d+: (\S+)", printed("ctest", "--test-dir", program.parent, "-N")))
    if missing := set(RUN_BY.values()) - tests - {"itself"} - {name for name in RUN_BY.values() if Path(name).is_file()}:
        faults.append(f"commands are said to be run by {missing}, which are no tests")
    for page in PAGES:
        check_page(page, subcommands, keys, tests)
        check_commands(page)
        check_python(page, program.parent)
    check_manifests()
    if faults:
        sys.exit("\n".join(faults))
    print(f"docs: {len(PAGES)} pages, {sum(len(list(commands_of(page.read_text()))) for page in PAGES)} command lines")


if __name__ == "__main__":
    main()
