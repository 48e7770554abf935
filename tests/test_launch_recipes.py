"""The recipes for clusters: their syntax, what they start, and when they start it again."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from medtl import cli

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "launch").glob("*.sh"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_parse_and_ask_for_arguments(name):
    assert subprocess.run(["bash", "-n", ROOT / "launch" / name]).returncode == 0
    called = subprocess.run([ROOT / "launch" / name], capture_output=True, text=True)
    assert called.returncode == 2 and called.stderr.startswith("usage: ")


def stand_in(folder, name, code):
    """Make a command that adds its arguments to `folder/calls` and ends."""
    path = folder / name
    path.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"print(json.dumps(sys.argv[1:]), file=open({str(folder / 'calls')!r}, 'a'))\n"
        f"sys.exit({code})\n"
    )
    path.chmod(0o755)


def called(folder):
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def call(folder, script, *arguments, **environment):
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **environment}
    return subprocess.run([ROOT / "launch" / script, *arguments], env=environment).returncode


@pytest.mark.parametrize("code, queued_again", [(0, False), (143, True), (1, False), (2, False)])
def test_slurm_queues_a_job_again_that_saved_and_no_other(tmp_path, code, queued_again):
    stand_in(tmp_path, "srun", code)
    stand_in(tmp_path, "scontrol", 0)
    arguments = ["--workdir=/runs/a b", "--config.seeds=0,1"]
    assert call(tmp_path, "slurm.sh", *arguments, SLURM_JOB_ID="7") == code
    [started, *others] = called(tmp_path)
    assert started[1:] == ["python", "launch.py", *arguments]
    assert others == ([["requeue", "7"]] if queued_again else [])


def test_the_tpu_script_runs_the_command_on_every_machine(tmp_path):
    stand_in(tmp_path, "gcloud", 0)
    assert call(tmp_path, "tpu_vm.sh", "slice", "zone-a", "--workdir=/runs/a b") == 0
    [arguments] = called(tmp_path)
    assert {"slice", "--zone=zone-a", "--worker=all"} <= set(arguments)
    stand_in(tmp_path, "python", 0)
    command = arguments[-1].removeprefix("--command=")
    command = command.replace("/shared/medtl", str(tmp_path)).replace("$HOME/medtl/bin", ".")
    subprocess.run(["bash", "-c", command], check=True)
    assert called(tmp_path)[-1] == ["launch.py", "--coordinator=auto", "--workdir=/runs/a b"]


def test_the_pods_of_the_job_find_the_first_and_stop_at_a_users_mistake(capsys):
    service, job = yaml.safe_load_all((ROOT / "launch/gke.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    flags = [a.replace("$(JOB_COMPLETION_INDEX)", "1") for a in container["args"]]
    n = spec["completions"]
    assert spec["parallelism"] == n and f"--process_count={n}" in flags
    host = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert any(flag.startswith(f"--coordinator={host}:") for flag in flags)
    assert (
        pod["subdomain"] == service["metadata"]["name"] and service["spec"]["clusterIP"] == "None"
    )
    mistakes = [rule for rule in spec["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
    assert [rule["onExitCodes"]["values"] for rule in mistakes] == [[2]]
    mounted = {volume["name"] for volume in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    flags = [flag.replace("/opt/medtl", str(ROOT)) for flag in flags]
    assert cli.run([*flags, "--mode=none"]) == 2
    assert capsys.readouterr().err.startswith("medtl: error: --mode=none: ")


def test_the_image_offers_extras_that_exist_and_copies_files_that_exist():
    text = (ROOT / "Dockerfile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    offered = set(re.findall(r"ACCELERATOR=(\w+)", text))
    assert offered and offered <= extras.keys()
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for name in line.split()}
    assert copied == kept and all((ROOT / name).exists() for name in copied)


def test_the_folder_of_the_recipes_does_not_hide_the_program():
    code = "import launch; print(launch.__file__)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert Path(run.stdout.strip()) == ROOT / "launch.py", run.stderr
