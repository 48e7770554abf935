r"""Intensive care or not from chest X-rays, measurements and notes of 62 patients (Cohen 2020).

    python launch.py --config=configs/chest_xray_icu.py
    python launch.py --config=configs/chest_xray_icu.py --config.arms=fusion,text \
        --workdir=runs/icu_words --config.data.preprocessing.mask_synonyms=False \
        --config.data.allow=duplicate_images,near_duplicate_images,text_names_class

134 frontal X-rays by a frozen ImageNet ResNet-50 up to layer3 (1,024 features), five columns (51 to
91 % of the cells of four are empty), and notes, which half of the images have. The data and weights
are not part of medtl; the config expects them in ../shared.

The notes give the answer away: 28 of 67 name intensive care, or the tubes and lines that are placed
there, and all 28 are of class icu. Three ways were weighed. To leave these notes out would make a
missing note the sign of the other class; to leave the rows out would choose patients by the answer.
So the words are masked in all notes, and the others stay (first command); the second command shows
what the words add. Masking is not enough to call a note prior to the decision: most were written
afterwards, about the whole stay. `text` and `fusion` are upper limits; `image_table` is the fused
model that could be asked at the bedside.

Results of the first command: AUROC, mean of 5 folds by patient x 5 repeats, 95 % interval, and the
difference to fusion by the corrected resampled t; 2 CPU cores, busy, 236 s; Python 3.13, JAX 0.12.0
(benchmarks/results/chest_xray_icu.json):

    arm           AUROC                    difference to fusion       Hannover   elsewhere
    fusion        0.905 (0.816 to 0.954)                              0.796      0.867
    image         0.887 (0.802 to 0.938)   -0.019 (-0.125 to +0.088)  0.798      0.887
    table         0.775 (0.653 to 0.863)   -0.130 (-0.281 to +0.020)  0.771      0.702
    text          0.791 (0.670 to 0.876)   -0.115 (-0.242 to +0.013)  0.500      0.775
    image_table   0.892 (0.807 to 0.942)   -0.014 (-0.087 to +0.059)  0.807      0.870
    logistic      0.902 (0.818 to 0.949)   -0.004 (-0.101 to +0.093)  0.825      0.890

62 patients do not show that fusion is better than the image alone. Most values within a site are
lower than over both: sites differ in the share of intensive care, and an X-ray, as well as the
absence of a note, shows the site. `text` knows the site alone in Hannover, which has no notes. With
the words (second command), text has 0.799 instead of 0.791, and 0.814 instead of 0.775 elsewhere;
fusion has 0.907.

`data.allow` accepts 7 images that have a copy or near copy under another patient's id, which folds
by patient do not keep together: 3 equal ones of x021 and x041, 4 near copies of x017 and x073, with
the same ages and notes, so presumably two persons with two ids each. `--mode=inspect` lists them.
With one id each (sed 's/,x041,/,x021,/;s/,x073,/,x017,/' on the manifest, beside its images, and
`--config.data.allow=`) no copy is left; on the folds of these 60 patients fusion has 0.862, image
0.860, table 0.737, text 0.736, image_table 0.874 and logistic 0.871. Other folds alone may move the
figures as far, so what the copies add is not known. logistic reads all three inputs. Learning
rate and weight decay are those of configs/covid_ct.py; nothing was tuned on these folds.
"""

from medtl.config import arm, dataset, default, stage

SHARED = "../shared"  # beside the folder in which the command runs
# What is done in intensive care names it as plainly as its name.
SYNONYMS = (
    "intensive care",
    "critical care",
    "ITU",
    "HDU",
    "intubat*",
    "extubat*",
    "endotracheal",
    "ET tube",
    "ETT",
    "NG tube*",
    "nasogastric",
    "OG",
    "tube*",
    "ventilat*",
    "ventilator*",
    "central line",
    "central venous",
    "jugular",
    "ECMO",
)


def get_config():
    c = default()
    c.name = "chest_xray_icu"
    c.seeds = (0,)
    own = dict(source_stage=False, joint=False)
    c.arm.fusion = arm("weights", **own)
    c.arm.image_table = arm("weights", **own, inputs=("image", "table"))
    c.arm.logistic = arm(
        "weights", **own, estimator="sklearn.linear_model:LogisticRegression(C=0.01, max_iter=2000)"
    )
    c.arms = ("fusion", "image", "table", "text", "image_table", "logistic")

    c.data.inputs = ("image", "table", "text")
    c.data.image_size = 224
    c.data.channels = 3
    c.data.allow = ("duplicate_images", "near_duplicate_images")
    c.data.target = dataset(
        "manifest",
        path=f"{SHARED}/data/chest_xray_icu/manifest.csv",
        synonyms=tuple(f"icu={words}" for words in SYNONYMS),
    )
    c.data.preprocessing.mask_synonyms = True
    c.augment.flip = False  # a frozen backbone without augmentation: its features are computed once

    c.model.name = "resnet50(stride_in='1x1')"
    c.model.last_layer = "layer3"
    c.model.encoders.table = "linear"
    c.model.modality_dropout = 0.2
    c.weights.path = f"{SHARED}/weights/resnet50_imagenet_c4.safetensors"
    c.weights.sha256 = "d9d92c1a0946997e6b5b532cb479d1fc9b9257a1bfebd436cb050aa223029a93"

    c.stages.target = stage(
        freeze="backbone", batch_norm="frozen", learning_rate=3e-3, weight_decay=0.3, epochs=100
    )
    c.checkpoint.select = "last"
    c.evaluation.folds = 5
    c.evaluation.repeats = 5
    c.evaluation.reference = "fusion"
    c.evaluation.positive = "icu"
    return c
