"""Terms, `term(context, **options) -> f32[]`: one number from the batch or the parameters.

`medtl.training.objective.Context` has their arguments. Rows whose mask is 0 count nowhere. Where a
batch has too few rows for a term, as a domain of one row has for a covariance, its value and its
gradient are 0.
"""

from medtl.losses.terms.adversarial import DANN
from medtl.losses.terms.domains import contrastive, coral, mmd
from medtl.losses.terms.ranking import auc_margin, soft_f1
from medtl.losses.terms.regularizers import l2_sp

__all__ = ["DANN", "auc_margin", "contrastive", "coral", "l2_sp", "mmd", "soft_f1"]
