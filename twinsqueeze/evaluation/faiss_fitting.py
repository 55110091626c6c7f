"""Fits a quantizer of FAISS: transforms and codes of a factory string. Needs the extra `search`."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from twinsqueeze.types import FloatArray

NUM_CENTROIDS = 256
# Evenly spaced rows that codebooks are fitted to: 64 per centroid, where FAISS asks for 39.
MAX_TRAIN_ROWS = 16_384
# Iterations of OPQ, and those of k-means in the first and in each other one. FAISS's defaults are 50, 40 and 4 from a
# random rotation. From the one of `_fit_opq`, four find more neighbors than 25 from a random one, in a third of the
# time: on STS-B's dev split 0.655 instead of 0.644 in 16 bytes, 0.767 instead of 0.753 in 32.
OPQ_ITERATIONS = {"niter": 4, "niter_pq_0": 10, "niter_pq": 2}
# Scores of a random rotation vary by 0.005: so many are averaged.
ROTATIONS = 3


@dataclass(frozen=True, eq=False)
class FaissBaseline:
    """A quantizer of FAISS and what it is fitted to.

    Attributes:
        name: For display, without the size.
        factory: The transforms and codes, as for `faiss.index_factory`.
        train: The vectors (N, d).
        layer: Returns weight (k, d) and bias (k,) of a layer before them, which it fits.
        layer_dim: k.
        layer_digest: Identifies what the layer is fitted to, besides the vectors.
    """

    name: str
    factory: str
    train: FloatArray
    layer: Callable[[], tuple[FloatArray, FloatArray]] | None = None
    layer_dim: int = 0
    layer_digest: str = ""

    def sampled(self) -> "FaissBaseline":
        """Return the baseline with the rows alone that it is fitted to."""
        rows = np.linspace(0, len(self.train) - 1, min(len(self.train), MAX_TRAIN_ROWS)).astype(np.int64)
        return replace(self, train=np.ascontiguousarray(self.train[rows], np.float32))

    @property
    def rotations(self) -> int:
        """Random rotations to average scores over; that of OPQ is fitted."""
        return ROTATIONS if re.match(r"PCAR|RR", self.factory) else 1

    @property
    def can_be_fitted(self) -> bool:
        """Whether there are enough vectors and dimensions for its PCA, its subvectors and its 256 centroids."""
        rows, dimension = len(self.train), self.layer_dim or self.train.shape[1]
        components = re.search(r"PCAR?(\d+)", self.factory)
        subvectors = [int(number) for number in re.findall(r"PR?Q(\d+)", self.factory)]
        if components and int(components[1]) > min(rows, dimension):
            return False
        fitted_dim = int(components[1]) if components else dimension
        if any(fitted_dim % number for number in subvectors):
            return False
        return not subvectors or rows >= (max(NUM_CENTROIDS, fitted_dim) if "OPQ" in self.factory else NUM_CENTROIDS)


def import_faiss() -> None:
    """Import FAISS, which takes a worker process a while."""
    import faiss  # noqa: F401, PLC0415 - an extra


def fit_serialized(baseline: FaissBaseline) -> bytes:
    """Return the fitted index as `faiss.serialize_index` writes it; any process can call this."""
    import faiss  # noqa: PLC0415 - an extra

    with single_threaded(faiss):
        return bytes(faiss.serialize_index(_fit(faiss, baseline)))


def _fit(faiss: Any, baseline: FaissBaseline) -> Any:
    """Return the index of the factory string, fitted transform by transform."""
    vectors = baseline.sampled().train
    codes = faiss.index_factory(baseline.layer_dim or vectors.shape[1], baseline.factory.format(d=vectors.shape[1]))
    index = codes if isinstance(codes, faiss.IndexPreTransform) else faiss.IndexPreTransform(codes)
    if baseline.layer:
        layer = _linear_transform(faiss, *baseline.layer())
        index.prepend_transform(layer)
        layer.this.disown()  # the index deletes its transforms
    for i in range(index.chain.size()):
        transform = faiss.downcast_VectorTransform(index.chain.at(i))
        if isinstance(transform, faiss.OPQMatrix):
            _fit_opq(faiss, transform, vectors)
        elif not transform.is_trained:
            transform.train(vectors)
        vectors = transform.apply(vectors)
    storage = faiss.downcast_index(index.index)
    for clustering in _clusterings(faiss, storage):
        clustering.min_points_per_centroid = 1  # with fewer than 39, FAISS warns on standard error
    storage.train(vectors)
    index.is_trained = True
    return index


def _fit_opq(faiss: Any, rotation: Any, vectors: FloatArray) -> None:
    """Fit a rotation that starts from the principal components, distributed over subvectors of equal variance.

    That is the parametric solution of Ge et al. (2013), which needs no iterations if vectors are normally distributed.
    """
    components = faiss.PCAMatrix(rotation.d_in, rotation.d_out)
    components.balanced_bins = rotation.M
    components.train(vectors)
    faiss.copy_array_to_vector(faiss.vector_to_array(components.A), rotation.A)
    for setting, value in OPQ_ITERATIONS.items():
        setattr(rotation, setting, value)
    # k-means takes its settings, and with them a warning for few vectors, from a quantizer of its own.
    quantizer = faiss.ProductQuantizer(rotation.d_out, rotation.M, 8)
    quantizer.cp.min_points_per_centroid = 1
    rotation.pq = quantizer
    rotation.train(vectors)
    rotation.pq = None


def _clusterings(faiss: Any, codes: Any) -> Iterator[Any]:
    """Yield the settings of k-means of product and residual quantizers."""
    if isinstance(codes, faiss.IndexPQ):
        yield codes.pq.cp
    elif isinstance(codes, faiss.IndexProductResidualQuantizer):
        for i in range(codes.prq.nsplits):
            quantizer = faiss.downcast_AdditiveQuantizer(codes.prq.subquantizer(i))
            # k-means on all dimensions at once takes a third of the time of FAISS's default, and is as good.
            quantizer.train_type = faiss.ResidualQuantizer.Train_default
            yield quantizer.cp


def _linear_transform(faiss: Any, weight: FloatArray, bias: FloatArray) -> Any:
    transform = faiss.LinearTransform(weight.shape[1], weight.shape[0], True)
    faiss.copy_array_to_vector(np.ascontiguousarray(weight, np.float32).ravel(), transform.A)
    faiss.copy_array_to_vector(np.ascontiguousarray(bias, np.float32), transform.b)
    transform.is_trained = True
    return transform


@contextmanager
def single_threaded(faiss: Any) -> Iterator[None]:
    """Run FAISS on one thread, so that results do not depend on the thread count and no thread waits for a busy core.

    Distances are computed by matrix products from 20 vectors on, as before FAISS 1.15, whose own kernels take ten times
    as long for short subvectors.
    """
    threads, threshold = faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold
    faiss.omp_set_num_threads(1)
    faiss.cvar.distance_compute_blas_threshold = 20
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
        faiss.cvar.distance_compute_blas_threshold = threshold
