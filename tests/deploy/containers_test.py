"""The container recipes and the Kubernetes manifest, as far as they can be looked through without building an image.

    python tests/deploy/containers_test.py build/flashmorph-dist     from the repository's root

What is copied is there; the scripts of both recipes pass shellcheck; the image's packages bring every library that the program
links; the manifest has only fields that the MPI operator (v2beta1) knows, its mounts, ports and number of ranks belong together.
"""

import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

DOCKERFILE = Path("deploy/container/Dockerfile")
DEFINITION = Path("deploy/container/flashmorph.def")
MANIFEST = Path("deploy/kubernetes/mpijob.yaml")
INSTRUCTIONS = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "EXPOSE", "CMD"}
SECTIONS = {"files", "post", "environment", "runscript"}
IN_EVERY_IMAGE = {"libc6", "libgcc-s1", "libstdc++6", "zlib1g"}  # of debian:12-slim, or brought by every C++ library
# The operator's own fields; https://github.com/kubeflow/mpi-operator, pkg/apis/kubeflow/v2beta1/types.go.
JOB = {"slotsPerWorker", "runLauncherAsWorker", "runPolicy", "mpiReplicaSpecs", "sshAuthMountPath", "launcherCreationPolicy",
       "mpiImplementation"}
POLICY = {"cleanPodPolicy", "ttlSecondsAfterFinished", "activeDeadlineSeconds", "backoffLimit", "schedulingPolicy", "suspend",
          "managedBy"}
REPLICA = {"replicas", "template", "restartPolicy"}
POD = {"containers", "volumes", "terminationGracePeriodSeconds"}  # those of Kubernetes that we use
CONTAINER = {"name", "image", "command", "args", "env", "volumeMounts", "ports", "resources"}

faults = []


def check(what, is_so):
    if not is_so:
        faults.append(what)


def only(known, found, where):
    check(f"{where}: no field {', '.join(sorted(set(found) - known))}", set(found) <= known)


def instructions_of(dockerfile):
    """Word and rest of each instruction; comments and continuations are gone."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.M)
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            yield line.split(None, 1)


def sections_of(definition):
    """Lines of each %section."""
    parts = re.split(r"^%(\w+)\n", definition.read_text(), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


def check_script(where, script):
    result = subprocess.run(["shellcheck", "--shell=sh", "--format=gcc", "-"], input=script, capture_output=True, text=True)
    check(f"{where}: {result.stdout.strip()}", result.returncode == 0)


def check_dockerfile():
    stages = 0
    for word, rest in instructions_of(DOCKERFILE):
        check(f"{DOCKERFILE}: no instruction {word}", word in INSTRUCTIONS)
        stages += word == "FROM"
        if word == "RUN":
            check_script(f"{DOCKERFILE}, RUN", rest + "\n")
        if word == "COPY" and not rest.startswith("--"):
            check(f"{DOCKERFILE} copies {rest.split()[0]}, which is not there", Path(rest.split()[0]).exists())
    check(f"{DOCKERFILE}: {stages} stages instead of 2", stages == 2)


def check_definition():
    sections = sections_of(DEFINITION)
    check(f"{DEFINITION}: sections {sorted(sections)}", set(sections) == SECTIONS)
    for line in sections["files"].split("\n"):
        check(f"{DEFINITION} copies {line}, which is not there", not line.strip() or Path(line.split()[0]).exists())
    for name in SECTIONS - {"files"}:
        check_script(f"{DEFINITION}, %{name}", sections[name])


def packages_with_what_they_bring(packages):
    found, left = set(), list(packages)
    while left:
        package = left.pop()
        if package in found:
            continue
        found.add(package)
        wanted = subprocess.run(["dpkg-query", "-W", "-f", "${Depends}", package], capture_output=True, text=True).stdout
        left += [name.split()[0].split(":")[0] for name in wanted.split(", ") if name]
    return found


def check_libraries(program):
    """Our own are copied from the build, the system's installed; the venv is copied as a whole."""
    build = Path(program).resolve().parent
    copied = [rest.split()[1:] for word, rest in instructions_of(DOCKERFILE) if word == "COPY" and rest.startswith("--from=build ")]
    runtime = [rest for word, rest in instructions_of(DOCKERFILE) if word == "RUN"][-1]
    named = re.search(r"--no-install-recommends\s+(.*?)\s*&&", runtime)[1].split()
    there = packages_with_what_they_bring(named) | IN_EVERY_IMAGE
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for library in re.findall(r"=> (/\S+)", linked):
        if Path(library).is_relative_to(build) and "venv" not in Path(library).parts:
            place = "/opt/flashmorph/build/" + str(Path(library).relative_to(build))
            check(f"{DOCKERFILE}: its image has no {place}",
                  any(fnmatch.fnmatch(place, source) and target == f"{Path(place).parent}/" for source, target in copied))
            continue
        # The file may be known by its place before /usr was merged.
        names = {str(Path(library).resolve()), str(Path(library).resolve()).removeprefix("/usr")}
        if not any(name.startswith(("/lib/", "/usr/lib/")) for name in names):
            continue
        owners = subprocess.run(["dpkg-query", "-S", *names], capture_output=True, text=True).stdout
        check(f"{DOCKERFILE}: its image has no {library} of {owners.split(':')[0]}",
              any(line.split(":")[0] in there for line in owners.splitlines()))


def check_manifest():
    job = yaml.safe_load(MANIFEST.read_text())["spec"]
    only(JOB, job, f"{MANIFEST}, spec")
    only(POLICY, job["runPolicy"], f"{MANIFEST}, runPolicy")
    replicas = job["mpiReplicaSpecs"]
    check(f"{MANIFEST}: replicas {sorted(replicas)}", set(replicas) == {"Launcher", "Worker"})
    for name, replica in replicas.items():
        pod = replica["template"]["spec"]
        only(REPLICA, replica, f"{MANIFEST}, {name}")
        only(POD, pod, f"{MANIFEST}, {name}")
        for container in pod["containers"]:
            only(CONTAINER, container, f"{MANIFEST}, {name}'s container")
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            volumes = {volume["name"] for volume in pod["volumes"]}
            check(f"{MANIFEST}, {name}: mounts {sorted(mounted)} of {sorted(volumes)}", mounted == volumes)
    arguments = replicas["Launcher"]["template"]["spec"]["containers"][0]["args"]
    check(f"{MANIFEST}: starts other than slots times workers",
          int(arguments[arguments.index("-np") + 1]) == job["slotsPerWorker"] * replicas["Worker"]["replicas"])
    # The operator by itself mounts keys in root's home, and the image has no other user.
    check(f"{DOCKERFILE} has a user: {MANIFEST} must say where its keys go",
          "sshAuthMountPath" in job or "USER" not in [word for word, _ in instructions_of(DOCKERFILE)])
    worker = replicas["Worker"]["template"]
    ports = {port["containerPort"] for container in worker["spec"]["containers"] for port in container["ports"]}
    exposed = {int(rest) for word, rest in instructions_of(DOCKERFILE) if word == "EXPOSE"}
    scraped = {int(worker["metadata"]["annotations"]["prometheus.io/port"])}
    check(f"{MANIFEST}: ports {ports}, scraped {scraped}, exposed by the image {exposed}", ports == scraped == exposed)


def main():
    if shutil.which("shellcheck") is None:
        sys.exit("FAILED: shellcheck is not installed: deploy/install.sh --tests")
    check_dockerfile()
    check_definition()
    check_libraries(sys.argv[1])
    check_manifest()
    if faults:
        sys.exit("\n".join(faults))
    print("containers: all checks passed")


if __name__ == "__main__":
    main()
