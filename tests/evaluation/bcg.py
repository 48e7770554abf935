"""The 13 BCG vaccine trials of Colditz et al. (1994, JAMA 271, 698), metafor's `dat.bcg`."""

import numpy as np

# cases and others, vaccinated and not
_TABLE = np.array(
    [
        (4, 119, 11, 128),
        (6, 300, 29, 274),
        (3, 228, 11, 209),
        (62, 13536, 248, 12619),
        (33, 5036, 47, 5761),
        (180, 1361, 372, 1079),
        (8, 2537, 10, 619),
        (505, 87886, 499, 87892),
        (29, 7470, 45, 7232),
        (17, 1699, 65, 1600),
        (186, 50448, 141, 27197),
        (5, 2493, 3, 2338),
        (27, 16886, 29, 17825),
    ],
    float,
)
_CASES, _OTHERS, _CONTROLS, _REST = _TABLE.T
LOG_RISK_RATIO = np.log(_CASES / (_CASES + _OTHERS) * (_CONTROLS + _REST) / _CONTROLS)
VARIANCE = 1 / _CASES - 1 / (_CASES + _OTHERS) + 1 / _CONTROLS - 1 / (_CONTROLS + _REST)
