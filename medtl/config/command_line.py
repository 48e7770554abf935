"""The modes and flags of the command line, and the text of --help. Imports no JAX."""

HELP = """\
medtl: transfer learning for medical diagnosis. It trains pretrained weights -> source stage ->
target stage, and compares the result with training from scratch. Without a flag it runs the
embedded experiment on synthetic images.

  --config=FILE          the experiment: a Python file with get_config(); see configs/
  --config.FIELD=VALUE   set one field, e.g. --config.stages.target.epochs=2; medtl/config/fields.py
                         documents every field
  --workdir=FOLDER       the run's folder (default: runs/<config.name>); the same command resumes it
  --mode=MODE            train (default): train and evaluate every arm
                         inspect: write inspect.html about the data; train nothing
                         check: show shapes, parameters, steps, memory and time; train nothing
                         evaluate: evaluate the checkpoints again; report: write the report again
                         predict: score the images of a manifest
                         sweep: try all combinations of config.sweep.grid and compare them on val
                         plan: how many patients to collect, from --config.plan.FIELD=VALUE; with
                         --workdir also as curves
                         export_tfds: write the data as prepared TFDS data sets into --workdir
                         embed: write the features of the pretrained backbone as .npz files into
                         --workdir, or those of --manifest to --output
                         export: write a trained model for PyTorch to --output
  --profile              write a trace of some training steps, and print the costliest operations
  --accept_code          run the code that the run folder names though it never ran here before
  --help, --version

with --mode=report, which takes --config.evaluation.FIELD=VALUE and writes to --workdir:
  --predictions=FILE     a CSV with the columns arm, id, label, prob_CLASS..., from any tool
                         (default: the run's)
with --mode=train and evaluate, in several processes (docs/accelerators.md); under SLURM and Open
MPI no flag is needed:
  --coordinator=HOST:PORT  of the first process; auto: JAX asks the cluster; none: one process
  --process_id=I         the number of this process, from 0 on
  --process_count=N      the number of processes
with --mode=predict, embed and export:
  --manifest=FILE        a CSV with a column image_path
  --checkpoint=FOLDER    a stage's checkpoint (default: the target stage of the run's first arm)
  --output=FILE          predict: the scores (default: scored.csv in --checkpoint, else in
                         --workdir); embed: an .npz file; export: a .safetensors file

examples:
  python launch.py --config=configs/covid_ct.py --config.arms=target_only --workdir=runs/linear
  python launch.py --workdir=runs/five_fold --config.evaluation.folds=5
  python launch.py --mode=report --predictions=mine.csv --workdir=runs/mine
  python launch.py --mode=predict --workdir=runs/linear --manifest=new_patients.csv
  python launch.py --mode=plan --config.plan.prevalence=0.05 --config.plan.auroc=0.9
"""

MODES = (
    "train",
    "inspect",
    "check",
    "evaluate",
    "report",
    "predict",
    "sweep",
    "plan",
    "export_tfds",
    "embed",
    "export",
)
ONLY = {
    "manifest": ("predict", "embed"),
    "checkpoint": ("predict", "embed", "export"),
    "output": ("predict", "embed", "export"),
    "predictions": ("report",),
    "profile": ("train",),
}
"""Flag -> the modes that take it; other flags go with every mode."""
