"""COVID-CT fine-tune."""

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
