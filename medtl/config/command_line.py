"""The modes and flags of the command line, and the text of --help. Imports no JAX."""

HELP = """\
medtl: transfer learning for medical diagnosis. It trains pretrained weights -> source stage ->
target stage, and compares the result with training from scratch. Without a flag it runs the
embedded experiment on synthetic images.

  --config=FILE          the experiment: a Python file with get_config(); see configs/
  --config.FIELD=VALUE   set one field; medtl/config/fields.py documents every field
  --workdir=FOLDER       the run's folder (default: runs/<config.name>); the same command resumes it
  --mode=MODE            train (default): train and evaluate every arm
                         inspect: write inspect.html about the data
                         check: show shapes, parameters, steps, memory and time; train nothing
                         evaluate: evaluate the checkpoints again; report: write the report again
                         predict: score the examples of a manifest
                         sweep: try all combinations of config.sweep.grid and compare them on val
                         plan: how many patients to collect, from --config.plan.FIELD=VALUE
                         export_tfds: write the data as prepared TFDS data sets
                         embed: write the features of a pretrained or trained backbone as .npz
                         export: write a trained model for PyTorch
  --profile              write a trace of some training steps, and print the costliest operations
  --accept_code          run the code that the run folder names though it never ran here before
  --help, --version
for report (which takes --config.evaluation.FIELD=VALUE), predict, embed and export:
  --predictions=FILE     report: a CSV of any tool with arm, id, label, prob_CLASS... (default: own)
  --manifest=FILE        predict, embed: a CSV with a column image_path
  --checkpoint=FOLDER    a stage's checkpoint (default: the target stage of the run's first arm)
  --output=FILE          the scores (default: scored.csv), the .npz or the .safetensors
for several processes in train and evaluate (SLURM and Open MPI need none; docs/accelerators.md):
  --coordinator=HOST:PORT, --process_id=I, --process_count=N

examples:
  python launch.py --config=configs/covid_ct.py --config.arms=target_only --workdir=runs/linear
  python launch.py --workdir=runs/five_fold --config.evaluation.folds=5
  python launch.py --mode=report --predictions=mine.csv --workdir=runs/mine
  python launch.py --mode=predict --workdir=runs/linear --manifest=new_patients.csv
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
