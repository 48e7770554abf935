r"""A CSV file with a `diagnosis` column: the Wisconsin breast cancer set of scikit-learn.

    python launch.py --config=configs/breast_cancer.py

30 numbers a tumour, 569 tumours; the file is written into runs/ first. A linear model on
standardized numbers, logistic regression and boosted trees of scikit-learn on the same 5 folds.

Results: mean ± standard deviation of 5 folds, one seed; 33 s on 2 CPU cores with other work on the
machine; Python 3.13, JAX 0.12.0, scikit-learn 1.9:

    arm        AUROC            accuracy at 90 % sensitivity on val
    linear     0.995 ± 0.003    0.949 ± 0.023
    logistic   0.994 ± 0.006    0.953 ± 0.022
    trees      0.988 ± 0.009    0.937 ± 0.017

The settings are a first guess; nothing was tuned.
"""

from pathlib import Path

from sklearn.datasets import load_breast_cancer

from medtl import files
from medtl.config import arm, dataset, default, stage

FILE = Path("runs/breast_cancer.csv")  # written once, in the folder in which the command runs


def write_csv(path):
    """Write the data set as a hospital keeps it: 30 measurements and a column `diagnosis`."""
    data = load_breast_cancer()
    lines = [",".join([*(f'"{name}"' for name in data.feature_names), "diagnosis"])]
    for values, label in zip(data.data, data.target, strict=True):
        lines.append(",".join([*map(str, values.tolist()), str(data.target_names[label])]))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, "\n".join(lines) + "\n")


def get_config():
    if not FILE.exists():
        write_csv(FILE)
    c = default()
    c.name = "breast_cancer"
    c.seeds = (0,)
    own = dict(init="random", source_stage=False, joint=False)
    c.arm.linear = arm(**own)
    c.arm.logistic = arm(**own, estimator="sklearn.linear_model:LogisticRegression(C=0.1)")
    c.arm.trees = arm(**own, estimator="sklearn.ensemble:HistGradientBoostingClassifier()")
    c.arms = ("linear", "logistic", "trees")

    c.data.inputs = ("table",)
    c.data.target = dataset("manifest", path=str(FILE))
    c.model.encoders.table = "linear"
    c.stages.target = stage(epochs=60, learning_rate=1e-2, weight_decay=1e-2, schedule="cosine")
    c.evaluation.folds = 5
    c.evaluation.reference = "logistic"
    return c
