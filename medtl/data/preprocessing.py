"""Clinical columns -> the inputs "table", "text" and "features".

They are fitted on the train part of each split alone. The layout (which columns, categories and
indicators) comes from all rows without their labels, so that every split has inputs of one width;
the numbers (means, quantiles, bins, idf) and whether a category or a missing value occurred are
fitted by scikit-learn on train rows. A category or a missing value that train lacks gives zeros.
The fitted arrays are JSON in the checkpoint. Imports no JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    OneHotEncoder,
    QuantileTransformer,
    StandardScaler,
)

from medtl.data import schema, telltale
from medtl.data.schema import Columns
from medtl.errors import UserError

_QUANTILES = 200


@dataclasses.dataclass(frozen=True)
class Feature:
    """A column of the layout.

    Attributes:
      name: the column's.
      categories: its categories, in order; None: numbers.
      indicator: whether it may be missing, which then is an input of its own.
    """

    name: str
    categories: tuple[str, ...] | None = None
    indicator: bool = False


@dataclasses.dataclass(frozen=True)
class Layout:
    """The columns that become inputs, the same in every split and at prediction.

    Attributes:
      features: of the table.
      texts: the columns whose texts are joined.
      numbers: one of `schema.NUMBERS`.
      bins: of the piecewise-linear encoding.
      text_features: the number of hashed n-grams.
      scale_categories: whether one-hot columns are standardized.
      masked: words that are left out of texts, see `telltale.pattern`.
      embeddings: the columns of embeddings with their lengths, side by side as they are.
    """

    features: tuple[Feature, ...]
    texts: tuple[str, ...]
    numbers: str
    bins: int
    text_features: int
    scale_categories: bool = False
    masked: tuple[str, ...] = ()
    embeddings: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, columns: Mapping[str, Columns], config: Any, masked: Sequence[str] = ()) -> Layout:
        """Return the layout for the columns of all domains.

        Args:
          columns: domain -> columns.
          config: `config.data.preprocessing`.
          masked: words that are left out of texts.
        """
        features, texts, embeddings = [], [], []
        for name, role in _roles(columns).items():
            cells = [c.cells[name] for c in columns.values() if name in c.cells]
            if role == "text":
                texts.append(name)
                continue
            if role == "embedding":
                embeddings.append((name, _length(name, cells)))
                continue
            # A column that a domain lacks is missing there.
            may_lack = any(
                name not in c.cells or schema.is_missing(c.cells[name]).any()
                for c in columns.values()
            )
            categories = None
            if role == "categorical":
                present = set().union(*(schema.canonical(values) for values in cells)) - {""}
                categories = tuple(sorted(present, key=_numeric_order))
            features.append(Feature(name, categories, may_lack))
        c = config
        return cls(
            features=tuple(features),
            texts=tuple(texts),
            numbers=c.numbers,
            bins=c.bins,
            text_features=c.text_features,
            scale_categories=c.scale_categories,
            masked=tuple(masked),
            embeddings=tuple(embeddings),
        )

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Layout:
        """Return the layout that `dataclasses.asdict` made, lists for tuples."""
        features = tuple(
            Feature(
                f["name"],
                None if f["categories"] is None else tuple(f["categories"]),
                f["indicator"],
            )
            for f in fields["features"]
        )
        listed = {name: tuple(fields.get(name, ())) for name in ("texts", "masked")}
        listed["embeddings"] = tuple((name, d) for name, d in fields.get("embeddings", ()))
        return cls(**{**fields, **listed, "features": features})

    @property
    def numeric(self) -> list[Feature]:
        return [f for f in self.features if f.categories is None]

    @property
    def categorical(self) -> list[Feature]:
        return [f for f in self.features if f.categories is not None]

    @property
    def roles(self) -> dict[str, str]:
        """Column -> role, to read a table that is to be scored."""
        roles = dict.fromkeys((f.name for f in self.numeric), "numeric")
        roles |= dict.fromkeys((f.name for f in self.categorical), "categorical")
        roles |= dict.fromkeys((name for name, _ in self.embeddings), "embedding")
        return roles | dict.fromkeys(self.texts, "text")

    def lacking(self, columns: Columns) -> list[str]:
        """Return the columns that are missing altogether."""
        return [
            name
            for name in self.roles
            if name not in columns.cells or schema.is_missing(columns.cells[name]).all()
        ]

    def encode(self, columns: Columns, n: int) -> Encoded:
        """Return the cells of n rows as arrays in the layout's order."""
        numbers = np.full((n, len(self.numeric)), np.nan)
        for i, feature in enumerate(self.numeric):
            if feature.name in columns.cells:
                numbers[:, i] = columns.cells[feature.name]
        codes = np.full((n, len(self.categorical)), -1)
        for i, feature in enumerate(self.categorical):
            if feature.name in columns.cells:
                code = {name: k for k, name in enumerate(feature.categories or ())}
                unknown = len(code)
                names = schema.canonical(columns.cells[feature.name])
                codes[:, i] = [code.get(name, unknown) if name else -1 for name in names]
        counts = None
        if self.texts:
            cells = [columns.cells.get(name, np.full(n, "", object)) for name in self.texts]
            cells = [telltale.masked(values, self.masked) for values in cells]
            counts = _count([" \n ".join(parts) for parts in zip(*cells, strict=True)], self)
        return Encoded(numbers, codes, counts, self._vectors(columns, n))

    def _vectors(self, columns: Columns, n: int) -> np.ndarray | None:
        """Return the embeddings f32[n, D] side by side, 0 where missing; None: there are none."""
        if not self.embeddings:
            return None
        blocks = []
        for name, length in self.embeddings:
            values = columns.cells.get(name, np.zeros((n, length), np.float32))
            if values.ndim == 2 and values.shape[1] == length:
                blocks.append(np.nan_to_num(values))
            elif schema.is_missing(values).all():
                blocks.append(np.zeros((n, length), np.float32))
            else:
                raise UserError(f"column {name!r}: the model reads embeddings of {length} numbers")
        return np.concatenate(blocks, axis=1)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The cells of a table as arrays, before anything is fitted.

    Attributes:
      numbers: float64[N, F], NaN where missing.
      codes: int64[N, C], the position among the categories, -1 where missing, K where unknown.
      counts: the n-grams of the texts, sparse [N, V]; None: the layout has no text.
      vectors: the embeddings, f32[N, D]; None: the layout has none.
    """

    numbers: np.ndarray
    codes: np.ndarray
    counts: sparse.csr_matrix | None
    vectors: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Encoded:
        """Return the given rows."""
        counts = None if self.counts is None else self.counts[rows]
        vectors = None if self.vectors is None else self.vectors[rows]
        return Encoded(self.numbers[rows], self.codes[rows], counts, vectors)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Preprocessing that was fitted on train rows.

    Attributes:
      arrays: float64 arrays by name: `fill` [F] (medians), `mean` and `scale` [F] or `quantiles`
        [Q, F] or `edges` [bins + 1, F], `lacked` [F + C] and `occurred` [sum of K] (1 where train
        has a missing value, or the category), `share` [sum of K] (of train rows that have the
        category), `idf` [V].
    """

    arrays: Mapping[str, np.ndarray]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Fitted:
        """Return what `to_json` wrote."""
        return cls({name: np.array(values, np.float64) for name, values in fields.items()})

    def to_json(self) -> dict[str, Any]:
        """Return the arrays as lists."""
        return {name: values.tolist() for name, values in self.arrays.items()}


def fit(layout: Layout, parts: Sequence[Encoded], also: Sequence[Encoded] = ()) -> Fitted:
    """Fit the preprocessing.

    Args:
      layout: the layout.
      parts: the train rows of the domain, or of all domains.
      also: train rows of other domains from which the model learns, too: a category or a missing
        value that occurs there has been learned.
    """
    numbers = np.concatenate([part.numbers for part in parts])
    arrays: dict[str, np.ndarray] = {}
    if layout.numeric:
        arrays |= _fit_numbers(layout, numbers)
    seen = [*parts, *also]
    lacked = [np.isnan(part.numbers).any(0) for part in seen]
    lacked_codes = [(part.codes < 0).any(0) for part in seen]
    arrays["lacked"] = np.concatenate([np.any(lacked, axis=0), np.any(lacked_codes, axis=0)])
    codes = np.concatenate([part.codes for part in seen])
    arrays["occurred"] = np.concatenate(
        [
            np.isin(np.arange(len(feature.categories or ())), codes[:, i])
            for i, feature in enumerate(layout.categorical)
        ]
        or [np.zeros(0, bool)]
    )
    if layout.scale_categories:
        own = np.concatenate([part.codes for part in parts])
        shares = [_one_hot(f, own[:, i]).mean(axis=0) for i, f in enumerate(layout.categorical)]
        arrays["share"] = np.concatenate([*shares, np.zeros(0)])
    counts = [part.counts for part in parts if part.counts is not None]
    if counts:
        arrays["idf"] = TfidfTransformer().fit(sparse.vstack(counts)).idf_
    return Fitted({name: values.astype(np.float64) for name, values in arrays.items()})


def transformer(layout: Layout) -> ColumnTransformer:
    """Return the unfitted preprocessing of columns [numbers, codes] by scikit-learn.

    `apply` gives the same values, but for what train rows lack; a test holds it to that.
    """
    n_numbers, n_codes = len(layout.numeric), len(layout.categorical)
    last = {
        "standard": StandardScaler(),
        "quantile": QuantileTransformer(
            n_quantiles=_QUANTILES, output_distribution="normal", subsample=None
        ),
        "piecewise_linear": FunctionTransformer(),
    }[layout.numbers]
    one_hot = OneHotEncoder(
        categories=[list(range(len(f.categories or ()))) for f in layout.categorical],
        handle_unknown="ignore",
        sparse_output=False,
    )
    impute = SimpleImputer(strategy="median", keep_empty_features=True)
    return ColumnTransformer(
        [
            ("numbers", make_pipeline(impute, last), list(range(n_numbers))),
            ("codes", one_hot, list(range(n_numbers, n_numbers + n_codes))),
        ]
    )


def _fit_numbers(layout: Layout, numbers: np.ndarray) -> dict[str, np.ndarray]:
    n_quantiles = min(_QUANTILES, len(numbers))
    pipeline = transformer(layout).transformers[0][1]
    if layout.numbers == "quantile":
        pipeline.set_params(quantiletransformer__n_quantiles=n_quantiles)
    pipeline.fit(numbers)
    imputer, last = pipeline[0], pipeline[-1]
    fill = np.nan_to_num(imputer.statistics_)
    if layout.numbers == "standard":
        return {"fill": fill, "mean": last.mean_, "scale": last.scale_}
    if layout.numbers == "quantile":
        return {"fill": fill, "quantiles": last.quantiles_}
    levels = np.linspace(0, 1, layout.bins + 1)
    filled = imputer.transform(numbers)
    # Bins over the values that are there: imputed ones would move the edges to the median.
    columns = [column[~np.isnan(column)] for column in numbers.T]
    edges = [np.quantile(c if len(c) else filled[:, i], levels) for i, c in enumerate(columns)]
    return {"fill": fill, "edges": np.stack(edges, axis=1)}


def apply(layout: Layout, fitted: Fitted, encoded: Encoded) -> dict[str, np.ndarray]:
    """Return the inputs that the layout has: `table`, `text` and `features`, f32[N, D] each."""
    inputs = {}
    if layout.features:
        inputs["table"] = _table(layout, fitted.arrays, encoded)
    if encoded.counts is not None:
        weights = TfidfTransformer()
        weights.idf_ = fitted.arrays["idf"]
        inputs["text"] = weights.transform(encoded.counts).toarray().astype(np.float32)
    if encoded.vectors is not None:
        inputs["features"] = encoded.vectors
    return inputs


def _table(layout: Layout, a: Mapping[str, np.ndarray], encoded: Encoded) -> np.ndarray:
    n_numeric, n = len(layout.numeric), len(encoded.numbers)
    blocks = []
    if n_numeric:
        missing = np.isnan(encoded.numbers)
        filled = np.where(missing, a["fill"], encoded.numbers)
        blocks.append(_transformed(layout, a, filled))
        shown = [i for i, f in enumerate(layout.numeric) if f.indicator]
        blocks.append((missing & (a["lacked"][:n_numeric] > 0))[:, shown])
    start = 0
    for i, feature in enumerate(layout.categorical):
        k = len(feature.categories or ())
        of_feature = slice(start, start + k)
        one_hot = _one_hot(feature, encoded.codes[:, i])
        if layout.scale_categories:
            share = a["share"][of_feature]
            scale = np.sqrt(share * (1 - share))
            one_hot = (one_hot - share) / np.where(scale > 0, scale, 1)
        blocks.append(one_hot * (a["occurred"][of_feature] > 0))
        if feature.indicator:
            is_missing = encoded.codes[:, i, None] < 0
            blocks.append(is_missing & (a["lacked"][n_numeric + i] > 0))
        start += k
    return np.concatenate([np.asarray(b, np.float32) for b in blocks], axis=1).reshape(n, -1)


def _one_hot(feature: Feature, codes: np.ndarray) -> np.ndarray:
    return codes[:, None] == np.arange(len(feature.categories or ()))


def _transformed(layout: Layout, a: Mapping[str, np.ndarray], filled: np.ndarray) -> np.ndarray:
    if layout.numbers == "standard":
        return (filled - a["mean"]) / a["scale"]
    if layout.numbers == "quantile":
        q = a["quantiles"]
        quantile = QuantileTransformer(output_distribution="normal", n_quantiles=len(q))
        quantile.n_quantiles_, quantile.n_features_in_ = len(q), q.shape[1]
        quantile.quantiles_, quantile.references_ = q, np.linspace(0, 1, len(q))
        return quantile.transform(filled)
    return piecewise_linear(filled, a["edges"])


def piecewise_linear(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the piecewise-linear encoding, Gorishniy et al. 2022, arXiv:2203.05556, equation 1.

    `e_t = (x - b_(t-1)) / (b_t - b_(t-1))`, cut to 0..1; below for all bins but the first, above
    for all but the last. A bin without width gives 0 up to its edge, and 1 above.

    Args:
      values: float64[N, F].
      edges: float64[T + 1, F], b_0 to b_T.

    Returns:
      float64[N, F * T].

    >>> piecewise_linear(np.array([[1.5], [3.0]]), np.array([[0.0], [1.0], [2.0]])).tolist()
    [[1.0, 0.5], [1.0, 2.0]]
    """
    low, high = edges[:-1].T, edges[1:].T
    width = high - low
    x = values[:, :, None]
    share = np.where(width > 0, (x - low) / np.where(width > 0, width, 1), x > high)
    least, most = np.zeros(width.shape), np.ones(width.shape)
    least[:, 0], most[:, -1] = -np.inf, np.inf
    return np.clip(share, least, most).reshape(len(values), -1)


def _count(texts: Sequence[str], layout: Layout) -> sparse.csr_matrix:
    """Return the hashed counts of words and pairs of words, and of 3 to 5 characters in words."""
    half = layout.text_features // 2
    settings = dict(alternate_sign=False, norm=None)
    words = HashingVectorizer(
        n_features=half, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", **settings
    )
    characters = HashingVectorizer(
        n_features=layout.text_features - half, analyzer="char_wb", ngram_range=(3, 5), **settings
    )
    return sparse.hstack([words.transform(texts), characters.transform(texts)]).tocsr()


def _length(name: str, cells: Sequence[np.ndarray]) -> int:
    """Return the length of a column's embeddings, one in all domains."""
    lengths = {values.shape[1] if values.ndim == 2 else 0 for values in cells}
    if len(lengths) > 1:
        raise UserError(f"column {name!r} holds embeddings of {sorted(lengths)} numbers (0: none)")
    return lengths.pop()


def _roles(columns: Mapping[str, Columns]) -> dict[str, str]:
    """Return the role of each input column, one for all domains."""
    of_name: dict[str, list[str]] = {}
    for domain in columns.values():
        for column in domain.schema:
            if column.name in domain.cells:
                of_name.setdefault(column.name, []).append(column.role)
    roles = {}
    for name, given in of_name.items():
        if len(set(given)) == 1:
            roles[name] = given[0]
        elif "embedding" in given:
            roles[name] = "embedding"
        elif "text" in given:
            roles[name] = "text"
        else:
            values = [c.cells[name] for c in columns.values() if name in c.cells]
            are_codes = any(v.dtype == object for v in values) or (
                len(set(np.concatenate(values)[~np.isnan(np.concatenate(values))])) <= schema.CODES
            )
            roles[name] = "categorical" if are_codes else "numeric"
    return roles


def _numeric_order(name: str) -> tuple[int, float, str]:
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name
