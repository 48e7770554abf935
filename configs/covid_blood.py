from medtl.config import arm, dataset, default, stage

SHARED = "../shared"  # beside the folder in which the command runs


def get_config():
    c = default()
    c.name = "covid_blood"
    c.seeds = (0,)
    own = dict(init="random", source_stage=False, joint=False)
    c.arm.linear = arm(**own)
    c.arm.logistic = arm(
        **own, estimator="sklearn.linear_model:LogisticRegression(C=0.01, max_iter=1000)"
    )
    c.arm.trees = arm(**own, estimator="sklearn.ensemble:HistGradientBoostingClassifier()")
    c.arms = ("linear", "logistic", "trees")

    c.data.inputs = ("table",)
    c.data.target = dataset("manifest", path=f"{SHARED}/data/covid_blood/wuhan.csv")
    c.data.preprocessing.numbers = "quantile"  # most biomarkers have long tails

    c.model.encoders.table = "linear"
    c.stages.target = stage(epochs=60, learning_rate=3e-3, weight_decay=1.0, schedule="cosine")
    c.evaluation.folds = 5
    c.evaluation.reference = "logistic"
    c.evaluation.positive = "died"
    return c
