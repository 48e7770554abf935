r"""COVID-CT from São Paulo's CT, all layers fine-tuned, one seed.

    python launch.py --config=configs/covid_ct_finetune.py

The three arms of the main comparison, with ResNet-50 up to layer3 at 160 px.

Results on COVID-CT's val split (118 images); 146 steps per arm; 27.5 minutes on 2 CPU cores with
other work on the machine (about 11 images/s in training), Python 3.13, JAX 0.12.0
(benchmarks/results/covid_ct_finetune.json):

    arm           AUROC   accuracy
    transfer      0.749   0.678
    target_only   0.786   0.627
    scratch       0.619   0.636

ImageNet weights help. Inconclusive for São Paulo: transfer is 0.036 below target_only, which is one
seed. The last checkpoint is taken, as nothing may be chosen on the split that is reported.

Frozen BatchNorm statistics cost target_only much. With the batch's statistics and 10 epochs (140
steps, 450 s),

    python launch.py --config=configs/covid_ct_finetune.py --config.arms=target_only \
        --workdir=runs/covid_ct_batch_norm --config.stages.target.batch_norm=batch \
        --config.stages.target.epochs=10 --config.evaluation.times=2

it reaches AUROC 0.873, accuracy 0.771 (one seed;
benchmarks/results/covid_ct_finetune_target_only.json). A PyTorch fine-tune of the same layers
(AdamW 1e-4, 16 epochs) reaches AUROC 0.874, the linear head of covid_ct.py 0.822. The other arms
were not run again in this mode.
"""

import importlib.util
from pathlib import Path

from medtl.config import stage

_spec = importlib.util.spec_from_file_location("covid_ct", Path(__file__).with_name("covid_ct.py"))
covid_ct = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(covid_ct)


def get_config():
    c = covid_ct.get_config()
    c.name = "covid_ct_finetune"
    c.seeds = (0,)
    c.arms = ("transfer", "target_only", "scratch")
    c.data.image_size = 160
    c.augment.flip = True
    tuned = dict(batch_norm="frozen", learning_rate=1e-4, weight_decay=1e-2, optimizer="adam")
    c.stages.source = stage(**tuned, epochs=1)
    c.stages.target = stage(**tuned, epochs=6)
    c.evaluation.times = 3
    c.evaluation.batch_size = 32
    return c
