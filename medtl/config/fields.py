"""Every field of an experiment, with its default; a file in configs/ starts from `default()` and changes what differs.

The default is the embedded one: synthetic phantoms, so that the whole run works on a machine with nothing but Python.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def dataset(kind: str = "manifest", **fields) -> ConfigDict:
    """One domain's examples.

    kind: manifest | npz | tfds | phantom, or `package.module:function` / `file.py:function` of your own, which makes the
      split itself.
    path: the manifest CSV; the .npz in MedMNIST's layout; the prepared directory of a TFDS data set.
    name: tfds: the data set's name, e.g. "breast_mnist:1.0.0".
    label: the column (manifest) or feature (tfds) that holds the diagnosis.
    multi_label: several diagnoses an example; in a manifest they are joined by "|".
    split: the fractions (train, val, test) where the data has no split; stratified, grouped by patient. In cross-validation val
      is cut from what is not tested on, in the proportion that it has to train here.
    size, scanner: phantom: how many images, and which of the two synthetic scanners ("a", "b") took them.
    train_size: use this many examples of the train split (0: all), the first of a stratified order drawn from `split_seed`.
    split_seed: the seed of the split, of `train_size` and of the phantom.
    """
    config = ConfigDict(
        dict(
            kind=kind,
            path="",
            name="",
            label="diagnosis",
            multi_label=False,
            split=(0.7, 0.15, 0.15),
            size=0,
            scanner="a",
            train_size=0,
            split_seed=0,
        )
    )
    config.update(fields)
    return config


def stage(**fields) -> ConfigDict:
    """One training run.

    epochs: passes over the stage's own domain; the number of steps is epochs * ceil(n / batch_size).
    batch_size: examples of the stage's own domain in a step, over all devices.
    source_batch_size: target stage, joint: examples of the source domain in a step (0: as batch_size).
    freeze: "none"; "backbone"; or "1".."5", the stem and so many stages. Holds for parameters that were loaded, so not for scratch.
    batch_norm: "batch" statistics of the global batch, or "frozen" running statistics; independent of freeze. For scratch it
      is always "batch".
    optimizer: any Optax optimizer, with options: "sgd(momentum=0.9, nesterov=True)".
    schedule: "constant", "cosine", "linear", or any Optax schedule with options, whose init_value is the learning rate.
    warmup: the fraction of the steps in which the learning rate rises linearly from 0.
    weight_decay: decoupled; leaves out norms and biases.
    clip_norm: global gradient norm at most this (0: not clipped).
    ema: decay of the exponential moving average of the parameters that evaluation then uses, with the BatchNorm statistics of
      the last step (0: none).
    accumulate: the batch is worked through in so many parts and their gradients are added, in the memory of one part (on CPUs
      with JAX 0.12). BatchNorm in batch mode then has the statistics of each part. On CPUs each part takes its time to compile.
    """
    config = ConfigDict(
        dict(
            epochs=10,
            batch_size=32,
            source_batch_size=0,
            freeze="none",
            batch_norm="batch",
            optimizer="adam",
            learning_rate=1e-4,
            schedule="constant",
            warmup=0.0,
            weight_decay=0.0,
            clip_norm=0.0,
            ema=0.0,
            accumulate=1,
        )
    )
    config.update(fields)
    return config


def arm(init: str, source_stage: bool, joint: bool) -> ConfigDict:
    """One of the runs that are compared.

    init: "weights" (random where the config names no weight file) or "random".
    source_stage: whether the source stage comes first.
    joint: whether the target stage minimises mean_source + lambda * mean_target, or mean_target alone.

    Every arm gets the same number of optimizer steps: one without a source stage spends those on the target.
    """
    return ConfigDict(dict(init=init, source_stage=source_stage, joint=joint))


def default() -> ConfigDict:
    """The embedded experiment, and every field that `--config.path.to.field=value` can set."""
    c = ConfigDict()
    c.name = "phantom"
    c.seeds = (0,)
    c.arms = ("transfer", "scratch")  # those that run, of the ones defined in `arm`
    c.arm = ConfigDict(
        dict(
            transfer=arm("weights", source_stage=True, joint=True),
            target_only=arm("weights", source_stage=False, joint=False),
            scratch=arm("random", source_stage=False, joint=False),
        )
    )

    c.data = ConfigDict(
        dict(
            image_size=32,
            channels=1,  # 1: grey, 3: RGB (grey images are repeated)
            resize="squash",  # squash to the square | crop its centre | pad to it
            cache="auto",  # memory | disk | stream | auto: memory up to 2 GiB, disk up to 64 GiB, else stream
            cache_dir="",  # of decoded images (cache="disk") and of a frozen backbone's features; empty: ~/.cache/medtl
            # Decoded data lies on the devices, many steps a dispatch: always | never | auto: features, and images on GPUs and TPUs with
            # room. On CPUs "always" trains convolutions ten times as slowly (docs/performance.md).
            resident="auto",
            workers=0,  # Grain worker processes for cache="stream"; 0: threads
            source=dataset("phantom", size=2000, scanner="a", split=(0.8, 0.1, 0.1)),
            target=dataset("phantom", size=700, scanner="b", split=(0.1, 0.1, 0.8), split_seed=1),
        )
    )

    c.augment = ConfigDict(
        dict(
            crop=1.0,  # random resized crop: the least area, as a share of the image; 1: none
            flip=True,  # left-right, half of the time
            rotation=0.0,  # degrees, uniform in +-
            brightness=0.0,  # shift, uniform in +-, as a share of the range 0..255
            contrast=0.0,  # factor, uniform in 1 +-
            noise=0.0,  # standard deviation of Gaussian noise, as a share of the range 0..255
        )
    )

    c.model = ConfigDict(
        dict(
            name="cifar_resnet20",
            stages=0,  # keep the first n stages; 0: all
            stride_in="3x3",  # bottleneck ResNets: "3x3" (torchvision, v1.5) or "1x1" (MSRA, Keras, v1)
            classifier=False,  # VGG: features are those of the second 4,096-wide layer
            dtype="float32",  # compute dtype: float32 | bfloat16; parameters are float32
            remat=False,  # the backward pass computes the inside of each block again: less memory, more time
            hidden=(),  # widths of the head's hidden layers
            dropout=0.0,
            prior_bias=False,  # the last bias starts at the log frequencies of the classes in train
            heads="auto",  # shared | separate | auto: shared where source and target have the same classes
        )
    )
    c.weights = ConfigDict(
        dict(
            path="",  # .safetensors, .npz, .pth, .th, .h5, or hf://org/repo/file; empty: none
            sha256="",  # refuse a file with another one
            normalization="auto",  # what the file or its family states; or torchvision | caffe | centered
            allow=(),  # patterns of names that may be missing, unused or of another shape
        )
    )

    c.objective = ConfigDict(
        dict(
            lambda_=1.0,
            lambda_schedule="",  # any Optax schedule, e.g. "linear_schedule(0.0, 1.0, 1000)"; takes the place of lambda_
            reduction="mean",  # mean | sum, over each domain
            losses=dict(
                main=dict(loss="cross_entropy", weight=1.0)
            ),  # loss: a name, or import path, with options
        )
    )
    c.stages = ConfigDict(dict(source=stage(learning_rate=1e-3), target=stage(learning_rate=1e-3)))

    c.parallel = "pmap"  # pmap | mesh | none
    c.checkpoint = ConfigDict(
        dict(
            select="best",  # best on val by `metric` | last; the checkpoint that a stage hands on
            metric="auroc",
            every_steps=0,  # save after so many steps, too; 0: only the best on val, the last, and an evaluation every 30 s
        )
    )
    c.evaluation = ConfigDict(
        dict(
            batch_size=64,
            times=10,  # each stage is evaluated on val so many times at equal distances
            folds=0,  # cross-validation over all labelled examples of the target, stratified, by patient; 0: the data's own split
            repeats=1,  # of the cross-validation, each with folds of its own
            # Nested selection: every arm tries each combination on the target stage and takes the best on val by checkpoint.metric.
            tune=dict(lambda_=(), learning_rate=(), weight_decay=()),  # empty: not tuned
            target_sizes=(),  # learning curve: train on so many labels of the target, e.g. (25, 50, 100, "all"); nested subsets
            reference="",  # the arm with which the others are compared; empty: target_only, else scratch, else the last
            positive="",  # of two classes the one that counts as positive; empty: the second
            threshold="youden",  # operating threshold, chosen on val: youden | sensitivity=S | specificity=S | a number
            sensitivity=0.9,  # at which the specificity is given
            specificity=0.9,  # at which the sensitivity is given
            prevalence=0.0,  # for which PPV and NPV are given; 0: that of the examples evaluated
            ordinal=False,  # the classes are grades, in order: adds Cohen's quadratic kappa
            coverage=0.9,  # of conformal prediction sets
            resamples=2000,  # of the patients, for the intervals
        )
    )
    # --mode=sweep: every combination of these, trained by one compiled program and compared on val.
    c.sweep = ConfigDict(
        dict(
            arm="",  # empty: the first joint arm without a source stage, else the first joint one, else the first
            lambda_=(),  # empty: as objective.lambda_ says
            learning_rate=(),  # of the target stage; empty: as it says
            weight_decay=(),
            solver="train",  # train: the trainer's own steps | lbfgs: frozen backbone, linear heads at the minimum, weight_decay / 2 |W|² included
        )
    )
    return c
