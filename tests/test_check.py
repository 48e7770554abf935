import pytest
from ml_collections import ConfigDict
from tiny_run import changed

from medtl import config as configs
from medtl.config import check
from medtl.errors import UserError


def tuned(values, **fields):
    return {"evaluation__tune": configs.grid(values)} | fields


def test_the_embedded_config_is_accepted():
    check.check(configs.default())


@pytest.mark.parametrize(
    "fields",
    [
        # no running arm reads the source
        {"arms": ("target_only",), "data__source__kind": "nonsense"},
        {"objective__lambda_": 0.0},
        {"objective__lambda_schedule": "linear_schedule(0.0, 1.0, 1000)"},
        {"stages__target__learning_rate": 1},  # an int is a number
        {"stages__target__schedule": "exponential_decay(transition_steps=100, decay_rate=0.9)"},
        {"stages__target__freeze": "layer3"},
        {"stages__target__freeze": "stem", "stages__source__sampler": "balanced"},
        {"stages__target__epochs": 0},
        {
            "model__name": "resnet50(stride_in='1x1')",
            "model__last_layer": "layer3",
            "model__hidden": (1024,),
        },
        {
            "data__target__multi_label": True,
            "arms": ("target_only",),
            "objective__losses__main__loss": "sigmoid_binary_cross_entropy",
        },
        {"data__target__split": (0.5, 0.5, 0.0)},
        {
            "model__name": "net.py:Net(width=8)",
            "model__last_layer": "block",
            "stages__target__freeze": "stem",
        },
        {"model__name": "vgg16(classifier=True)", "stages__target__freeze": "classifier"},
        {
            "model__encoders__table": "net.py:MLP",
            "augment__extra": ("mine.py:cutout(size=4)",),
            "loggers": ("mine.py:csv",),
        },
        {"objective__terms__mmd": ConfigDict({"term": "mine.py:mmd", "weight": 0.1})},
        {"evaluation__metrics__mine": "mine.py:brier", "checkpoint__metric": "mine"},
        {"arm__own": configs.arm("random", source_stage=True, joint=False), "arms": ("own",)},
        {
            "objective__losses__extra": ConfigDict(
                {"loss": "mine.py:focal(gamma=2.0)", "weight": 0.5}
            )
        },
    ],
)
def test_what_can_be_run_is_accepted(fields):
    check.check(changed(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a/b"}, "config.name is 'a/b'; it must be letters"),
        (
            {"arm": ConfigDict({"a b": configs.arm("random", False, False)})},
            "config.arm has an entry 'a b'; its name must be letters",
        ),
        ({"seeds": ()}, "config.seeds is (); it must be at least one"),
        ({"seeds": (0, 0)}, "config.seeds is (0, 0); it must be without repetition"),
        ({"seeds": (0, -1)}, "config.seeds is (0, -1); it must be whole numbers"),
        ({"seeds": (0.5,)}, "config.seeds is (0.5,); it must be whole numbers"),
        ({"seeds": (True,)}, "config.seeds is (True,); it must be whole numbers"),
        ({"arms": ()}, "config.arms is (); it must be at least one"),
        ({"arms": ("transfr",)}, "config.arms is 'transfr'; did you mean 'transfer'?"),
        (
            {"arms": ("scratch", "scratch")},
            "config.arms is ('scratch', 'scratch'); it must be without repetition",
        ),
        (
            {"arm__scratch__init": "randm"},
            "config.arm.scratch.init is 'randm'; did you mean 'random'?",
        ),
        (
            {"model__name": "resnet5"},
            "model.name: there is no backbone 'resnet5'; did you mean 'resnet50'?",
        ),
        ({"model__last_layer": "layer4"}, "model.last_layer: cifar_resnet20 has no layer 'layer4'"),
        ({"model__name": "cifar_resnet20(stride_in='1x1')"}, "has no option 'stride_in'"),
        (
            {"model__encoders__label": "a.py:f"},
            "config.model.encoders.label: an input has a name like a variable's, other than "
            "label, mask",
        ),
        (
            {"model__encoders__image": "a.py:f"},
            "the encoder of the input 'image' is config.model.name",
        ),
        ({"model__encoders__table": ""}, "config.model.encoders.table is empty; it must name"),
        ({"augment__extra": ("f(x)",)}, "config.augment.extra[0]: in 'f(x)', 'x' is not a literal"),
        ({"loggers": (3,)}, "config.loggers[0] is 3; it must be a string"),
        (
            {"objective__terms__mmd": ConfigDict({"term": "", "weight": 1.0})},
            "config.objective.terms.mmd.term is empty",
        ),
        (
            {"objective__terms__main": ConfigDict({"term": "f", "weight": 1.0})},
            "a loss has that name, too",
        ),
        (
            {"evaluation__metrics__auroc": "a.py:f"},
            "config.evaluation.metrics.auroc: medtl has a metric of that name",
        ),
        (
            {"stages__target__sampler": "balancd"},
            "config.stages.target.sampler is 'balancd'; did you mean 'balanced'?",
        ),
        (
            {"stages__target__sampler": "balanced", "objective__reduction": "sum"},
            "assumes that every example is equally likely",
        ),
        ({"model__dtype": "float16"}, "config.model.dtype is 'float16'; did you mean"),
        ({"model__dropout": 1.0}, "config.model.dropout is 1.0; it must be at least 0 and below 1"),
        ({"model__hidden": (0,)}, "config.model.hidden is (0,); it must be widths"),
        ({"model__heads": "one"}, "config.model.heads is 'one'; "),
        (
            {"weights__normalization": "cafe"},
            "config.weights.normalization is 'cafe'; did you mean 'caffe'?",
        ),
        (
            {"weights__sha256": "12ab"},
            "config.weights.sha256 is '12ab'; it must be empty, or 64 hexadecimal digits",
        ),
        ({"weights__sha256": "0" * 64}, "config.weights.path names no file"),
        ({"weights__path": "no/such.safetensors"}, "no/such.safetensors"),
        ({"objective__lambda_": -0.1}, "config.objective.lambda_ is -0.1; it must be at least 0"),
        (
            {"objective__lambda_": float("nan")},
            "config.objective.lambda_ is nan; it must be a finite number",
        ),
        (
            {"objective__lambda_": float("inf")},
            "config.objective.lambda_ is inf; it must be a finite number",
        ),
        ({"objective__lambda_schedule": "linear("}, "config.objective.lambda_schedule: 'linear('"),
        (
            {"objective__reduction": "total"},
            "config.objective.reduction is 'total'; it can be mean, sum",
        ),
        (
            {"objective__losses": ConfigDict()},
            "config.objective.losses is {}; it must be at least one loss",
        ),
        (
            {"objective__losses__main__loss": "f(x)"},
            "config.objective.losses.main.loss: in 'f(x)', 'x' is not a literal",
        ),
        (
            {"objective__losses__main__weight": -1.0},
            "config.objective.losses.main.weight is -1.0; it must be at least 0",
        ),
        (
            {"data__target__multi_label": True},
            "config.data.target.multi_label is True; use 'sigmoid_binary_cross_entropy'",
        ),
        (
            {"stages__source__epochs": -1},
            "config.stages.source.epochs is -1; it must be at least 0",
        ),
        (
            {"stages__source__batch_size": -1},
            "config.stages.source.batch_size is -1; it must be at least 0",
        ),
        (
            {"stages__target__freeze": "4"},
            "config.stages.target.freeze is '4'; it can be backbone, layer1, layer2, layer3, "
            "none, stem",
        ),
        ({"stages__target__freeze": "backbon"}, "did you mean 'backbone'?"),
        (
            {"stages__target__batch_norm": "frosen"},
            "config.stages.target.batch_norm is 'frosen'; did you mean 'frozen'?",
        ),
        (
            {"stages__target__schedule": "cosin"},
            "config.stages.target.schedule is 'cosin'; did you mean 'cosine'?",
        ),
        (
            {"stages__target__optimizer": "sgd(momentum=)"},
            "config.stages.target.optimizer: the options of",
        ),
        ({"stages__target__learning_rate": -1.0}, "config.stages.target.learning_rate is -1.0"),
        ({"stages__target__warmup": 1.0}, "config.stages.target.warmup is 1.0"),
        ({"stages__target__ema": -0.1}, "config.stages.target.ema is -0.1"),
        (
            {"stages__target__accumulate": 64},
            "config.stages.target.accumulate is 64; it must be at most the batch size, 32",
        ),
        ({"parallel": "map"}, "config.parallel is 'map'; did you mean 'pmap'?"),
        ({"checkpoint__metric": "auc"}, "config.checkpoint.metric is 'auc'; did you mean 'auroc'?"),
        (
            {"checkpoint__select": "newest"},
            "config.checkpoint.select is 'newest'; did you mean 'best'?",
        ),
        ({"evaluation__times": 0}, "config.evaluation.times is 0; it must be at least 1"),
        (
            {"evaluation__folds": 1},
            "config.evaluation.folds is 1; it must be 0 (the data's own split) or at least 2",
        ),
        ({"evaluation__repeats": 2}, "config.evaluation.repeats is 2, but folds is 0"),
        (
            {"evaluation__reference": "scrach"},
            "config.evaluation.reference is 'scrach'; did you mean 'scratch'?",
        ),
        (
            {"evaluation__threshold": "yuden"},
            "config.evaluation.threshold is 'yuden'; it must be 'sensitivity=0.95', ",
        ),
        (
            {"evaluation__threshold": "sensitivity=95"},
            "config.evaluation.threshold is 'sensitivity=95'",
        ),
        (
            {"evaluation__sensitivity": 1.0},
            "config.evaluation.sensitivity is 1.0; it must be above 0 and below 1",
        ),
        (
            {"evaluation__prevalence": 1.0},
            "config.evaluation.prevalence is 1.0; it must be at least 0 and below 1",
        ),
        (
            {"evaluation__coverage": 0.0},
            "config.evaluation.coverage is 0.0; it must be above 0 and below 1",
        ),
        (
            {"evaluation__resamples": 10},
            "config.evaluation.resamples is 10; it must be at least 100",
        ),
        (
            tuned({"objective.lambda_": (-1.0,)}),
            "config.evaluation.tune.objective.lambda_ is -1.0; it must be at least 0",
        ),
        (
            tuned({"stages.target.learning_rate": (1, 1.0)}),
            "config.evaluation.tune.stages.target.learning_rate is (1, 1.0); it must be "
            "without repetition",
        ),
        (
            tuned({"stages.target.freeze": ("none", "layer4")}),
            "config.evaluation.tune.stages.target.freeze tries 'layer4': "
            "config.stages.target.freeze is 'layer4'",
        ),
        (
            tuned({"stages.target.accumulate": (1, 64)}),
            "tries 64: config.stages.target.accumulate is 64; it must be at most",
        ),
        (
            tuned({"stages.target.optimizer": ("adam", "sgd(")}),
            "config.evaluation.tune.stages.target.optimizer: 'sgd('",
        ),
        (
            tuned({"stages.target.epoch": (1, 2)}),
            "there is no such field; did you mean 'config.stages.target.epochs'?",
        ),
        (
            tuned({"stages.target": (1, 2)}),
            "config.evaluation.tune.stages.target is a section of the config",
        ),
        (
            tuned({"objective.losses.none.weight": (1, 2)}),
            "config.objective.losses.none.weight: there is no such field",
        ),
        (
            tuned(
                {"objective.lambda_": (1.0,)}, objective__lambda_schedule="constant_schedule(1.0)"
            ),
            "tries what config.objective.lambda_schedule sets",
        ),
        (
            tuned(
                {"objective.lambda_": (1.0,)},
                evaluation__folds=5,
                data__target__split=(0.8, 0.0, 0.2),
            ),
            "config.evaluation.tune chooses on val, but the second fraction of "
            "config.data.target.split is 0",
        ),
        (
            {"evaluation__tune": ConfigDict({"objective": {"lambda_": 1.0}})},
            "config.evaluation.tune.objective.lambda_ is 1.0; it must be a tuple",
        ),
        (
            {"evaluation__target_sizes": (0,)},
            "config.evaluation.target_sizes is (0,); it must be different numbers",
        ),
        ({"evaluation__target_sizes": ("most",)}, "config.evaluation.target_sizes is ('most',)"),
        ({"evaluation__margin": -0.1}, "config.evaluation.margin is -0.1; it must be at least 0"),
        (
            {"evaluation__net_benefit_range": (0.5, 0.1)},
            "config.evaluation.net_benefit_range is (0.5, 0.1); it must be two rising numbers",
        ),
        (
            {"evaluation__net_benefit_range": ("low", 1)},
            "config.evaluation.net_benefit_range is ('low', 1); it must be two rising numbers",
        ),
        (
            {"evaluation__size_repeats": 2},
            "config.evaluation.size_repeats is 2, but target_sizes is empty; set it to 1",
        ),
        (
            {
                "evaluation__size_repeats": 2,
                "evaluation__target_sizes": (9,),
                "evaluation__folds": 3,
            },
            "size_repeats is 2, but each fold and repeat has subsets of its own; set it to 1",
        ),
        ({"augment__crop": 0.0}, "config.augment.crop is 0.0; it must be above 0 and at most 1"),
        (
            {"augment__rotation": 200.0},
            "config.augment.rotation is 200.0; it must be in 0 .. 180 degrees",
        ),
        ({"data__image_size": 0}, "config.data.image_size is 0; it must be at least 1"),
        ({"data__channels": 4}, "config.data.channels is 4; it can be 1, 3"),
        ({"data__resize": "sqash"}, "config.data.resize is 'sqash'; did you mean 'squash'?"),
        ({"data__cache": "ram"}, "config.data.cache is 'ram'; "),
        (
            {"data__target__split": (0.5, 0.4, 0.2)},
            "config.data.target.split is (0.5, 0.4, 0.2); it must be (), or three fractions",
        ),
        ({"data__target__split": (0.0, 0.5, 0.5)}, "with train above 0"),
        ({"data__target__kind": "phantm"}, "did you mean 'phantom'?"),
        ({"data__source__train_size": -1}, "config.data.source.train_size is -1; it must be"),
        # names and types
        (
            {"stages__target__epoch": 3},
            "config.stages.target.epoch: there is no such field; did you mean "
            "'config.stages.target.epochs'?",
        ),
        ({"lamda": 3}, "config.lamda: there is no such field; "),
        (
            {"stages__target__epochs": 2.5},
            "config.stages.target.epochs is 2.5; it must be a whole number",
        ),
        (
            {"stages__target__epochs": True},
            "config.stages.target.epochs is True; it must be a whole number",
        ),
        ({"name": None}, "config.name is None; it must be a string"),
        ({"augment": 3}, "config.augment is 3; it must be a section with the fields brightness, "),
        ({"arm": 3}, "config.arm is 3; it must be a section"),
        (
            {"arm__scratch": ConfigDict({"init": "random"})},
            "config.arm.scratch.source_stage is missing",
        ),
        (
            {"objective__losses__main": ConfigDict({"loss": "x", "wieght": 1.0})},
            "did you mean 'config.objective.losses.main.weight'?",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_with_its_key(fields, message):
    with pytest.raises(UserError) as error:
        check.check(changed(**fields))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 2
