r"""UCI heart disease from Cleveland to Hungary: a linear model, an MLP, and joint training.

    python launch.py --config=configs/heart.py
    python launch.py --config=configs/heart.py --workdir=runs/heart_back \
        --config.data.source.path=../shared/data/uci_heart/hungarian.csv \
        --config.data.target.path=../shared/data/uci_heart/cleveland.csv
    (either with) --config.model.encoders.table=mlp
    (the first two with) --config.arms=joint,target_only --config.stages.target.epochs=50 \
        --config.objective.lambda_=1.0

FLamby's split, columns and settings (Ogier du Terrail et al. 2022): its 10 clinical columns, codes
as one-hot, standardized by centre; Adam, 1e-3, batch 4, 50 epochs. Missing values are imputed with
an indicator; FLamby leaves the rows out. The data are not part of medtl; the config expects them
in ../shared.

Results: test accuracy, mean ± standard deviation of 5 seeds; 11 to 20 s a command on 2 CPU cores
with other work on the machine; Python 3.13, JAX 0.12.0:

    train -> test             linear           FLamby    MLP
    Cleveland -> Cleveland    0.727 ± 0.017    0.746     0.712 ± 0.041
    Cleveland -> Hungary      0.764 ± 0.018    0.760     0.676 ± 0.059
    Hungary -> Cleveland      0.765 ± 0.011    0.746     0.729 ± 0.017
    Hungary -> Hungary        0.742 ± 0.011    0.746     0.744 ± 0.030

Joint training with mean_source + λ · mean_target, linear: mean ± standard deviation of 5 seeds, and
AUROC minus that of target_only with its 95 % interval over patients and seeds
(benchmarks/results/heart_joint.json; 25 to 56 s a command on a busy machine):

    tested on Hungary (89), trained with Cleveland       tested on Cleveland (104), with Hungary
    λ     AUROC          difference                      AUROC          difference
    0     0.852 ± 0.009  +0.005 (-0.076 to +0.085)       0.828 ± 0.005  +0.005 (-0.075 to +0.085)
    0.1   0.865 ± 0.004  +0.018 (-0.053 to +0.090)       0.834 ± 0.004  +0.012 (-0.063 to +0.087)
    1     0.865 ± 0.002  +0.018 (-0.026 to +0.062)       0.858 ± 0.005  +0.035 (-0.017 to +0.088)
    10    0.853 ± 0.003  +0.006 (-0.002 to +0.014)       0.838 ± 0.004  +0.015 (-0.002 to +0.033)
    none  0.847 ± 0.004  target_only                     0.822 ± 0.009  target_only

λ between 0.1 and 1 is best in both directions, but no interval leaves out 0: 89 and 104 patients do
not show that the other hospital helps. λ = 0 ignores the target's train rows. At λ = 10, Hungary's
model is equivalent to target_only within 0.02.
"""

from medtl.config import arm, dataset, default, stage

SHARED = "../shared"  # beside the folder in which the command runs
# FLamby's columns: it leaves out three that Hungary lacks, and takes codes as one-hot.
COLUMNS = ("flamby_split=split", "slope=ignore", "ca=ignore", "thal=ignore")


def get_config():
    c = default()
    c.name = "heart"
    c.seeds = (0, 1, 2, 3, 4)
    c.arm.source_only = arm("random", source_stage=True, joint=False)
    c.arm.target_only = arm("random", source_stage=False, joint=False)
    c.arm.joint = arm("random", source_stage=False, joint=True)
    c.arms = ("source_only", "target_only")

    c.data.inputs = ("table",)
    c.data.source = dataset("manifest", path=f"{SHARED}/data/uci_heart/cleveland.csv")
    c.data.target = dataset("manifest", path=f"{SHARED}/data/uci_heart/hungarian.csv")
    c.data.source.columns = COLUMNS
    c.data.target.columns = COLUMNS

    c.data.preprocessing.scale_categories = True

    c.model.encoders.table = "linear"
    flamby = dict(learning_rate=1e-3, batch_size=4)  # and 50 epochs
    c.stages.source = stage(**flamby, epochs=50)
    c.stages.target = stage(**flamby, epochs=0)
    c.checkpoint.select = "last"
    c.evaluation.positive = "disease"
    return c
