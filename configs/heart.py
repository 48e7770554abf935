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
