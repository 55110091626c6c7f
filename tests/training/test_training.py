from collections import defaultdict
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

from tests.helpers.pairs import random_pairs
from tests.helpers.results import same_bits
from twinsqueeze.data.encoder import EncodedPairs
from twinsqueeze.errors import InputError
from twinsqueeze.evaluation.evaluator import Evaluator, pair_losses
from twinsqueeze.model.initialization import initial_layers, pca_layer
from twinsqueeze.model.quantizers import fit_codebooks
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.batching import num_parallel_batches, plan_batches
from twinsqueeze.training.loop import train_replicas
from twinsqueeze.training.teacher import TEACHER_RECIPE, train_teachers
from twinsqueeze.training.trainer import BatchedTrainer, SeedStreams, TrainingSetup
from twinsqueeze.utils.compute import map_threaded, resolve_device

SMALL = Recipe(epochs=3, dim=8, device="cpu")


def make_recipes(alphas, seeds, **fields) -> list[Recipe]:
    return [SMALL.model_copy(update={"alpha": a, "seed": s, **fields}) for a, s in product(alphas, seeds)]


def plain_loop(recipe: Recipe, train: EncodedPairs) -> tuple[nn.Sequential, list[float]]:
    """Trains one model with autograd and PyTorch's modules and Adam; returns it and the losses of the epochs.

    Draws from the streams of the seed: the weights; per epoch an order; per step the noise of the first sentences, then
    of the second ones.
    """
    streams = SeedStreams.from_seed(recipe.seed)
    sizes = (train.dimension, 128, 64, recipe.dim)
    model = nn.Sequential(nn.Linear(*sizes[:2]), nn.ReLU(), nn.Linear(*sizes[1:3]), nn.ReLU(), nn.Linear(*sizes[2:]))
    for layer in model[::2]:
        bound = layer.in_features**-0.5
        for parameter in (layer.weight, layer.bias):
            parameter.data = torch.tensor(streams.weights.uniform(-bound, bound, parameter.shape), dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    labels = (np.tanh(4 * (train.scores / 5 - 0.5)) + 1) / 2
    losses = []
    for _ in range(recipe.epochs):
        order = streams.order.permutation(len(train))
        summed = 0.0
        for start in range(0, len(train), recipe.batch_size):
            rows = order[start : start + recipe.batch_size]
            x = np.concatenate([train.embeddings[train.first[rows]], train.embeddings[train.second[rows]]])
            if recipe.alpha:
                noise = 2 * streams.noise.random(x.shape, dtype=np.float32) - 1
                x = x + noise * recipe.alpha / np.sqrt(train.dimension)
            first, second = model(torch.tensor(x, dtype=torch.float32)).chunk(2)
            label = torch.tensor(labels[rows], dtype=torch.float32)
            loss = functional.mse_loss(functional.cosine_similarity(first, second), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            summed += loss.item() * len(rows)
        losses.append(summed / len(train))
    return model, losses


@pytest.mark.parametrize("alpha", [0.0, 0.75])
def test_batched_trainer_matches_a_plain_autograd_loop(alpha, small_train, small_dev):
    """Over 15 steps. Later, differences by rounding grow."""
    for seed in (0, 7):
        recipe = SMALL.model_copy(update={"alpha": alpha, "seed": seed})
        model, losses = plain_loop(recipe, small_train)
        results = train_replicas(make_recipes([0.0, 0.75], [0, 7]), small_train, small_dev)
        (result,) = [each for each in results if each.recipe == recipe]
        np.testing.assert_allclose(result.history.loss, losses, rtol=1e-5)
        for (weight, bias), layer in zip(result.compressor.layers, model[::2], strict=True):
            torch.testing.assert_close(weight, layer.weight.data, rtol=0, atol=2e-6)
            torch.testing.assert_close(bias, layer.bias.data, rtol=0, atol=2e-6)


class StraightThroughSign(torch.autograd.Function):
    """Sign with the gradient of the identity from -1 to 1."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (ctx.saved_tensors[0].abs() <= 1)


class StraightThroughCentroids(torch.autograd.Function):
    """The nearest centroid of each subvector with the gradient of the identity."""

    @staticmethod
    def forward(ctx, x, codebooks):
        subvectors = x.view(len(x), -1, 1, codebooks.shape[-1])
        nearest = (subvectors - codebooks).square().sum(-1).argmin(-1)
        return torch.cat([codebook[code] for codebook, code in zip(codebooks, nearest.T, strict=True)], 1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class ResidualModel(nn.Module):
    """A linear layer plus a branch of 1,024 ReLU units whose output weights start at zero."""

    def __init__(self, layer: nn.Linear, generator: np.random.Generator) -> None:
        super().__init__()
        self.layer, self.up, self.down = layer, nn.Linear(24, 1024), nn.Linear(1024, 8)
        self.up.weight.data = torch.tensor(generator.uniform(-1, 1, size=(1024, 24)) / np.sqrt(24)).float()
        for zero in (self.up.bias, self.down.weight, self.down.bias):
            nn.init.zeros_(zero)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.layer(vectors) + self.down(functional.relu(self.up(vectors)))

    def as_plain_layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Returns the equivalent two layers with ReLU between, since z = ReLU(z) - ReLU(-z)."""
        weight, bias, identity = self.layer.weight.data, self.layer.bias.data, torch.eye(8)
        return [
            (torch.cat([weight, -weight, self.up.weight.data]), torch.cat([bias, -bias, self.up.bias.data])),
            (torch.cat([identity, -identity, self.down.weight.data], 1), self.down.bias.data),
        ]


@pytest.mark.parametrize(
    ("architecture", "quantizer", "subvector_dim", "neighbor_weight", "num_neighbors", "init", "teacher", "unpaired"),
    [
        ("linear", "none", 4, 0.0, 0, "random", "encoder", 0),
        ("linear", "none", 4, 0.3, 0, "random", "encoder", 0),
        ("linear", "none", 4, 0.3, 2, "random", "encoder", 0),
        ("linear", "none", 4, 0.3, 2, "random", "encoder", 90),
        ("linear", "sign", 4, 0.0, 0, "random", "encoder", 0),
        ("linear", "sign", 4, 0.3, 0, "random", "encoder", 90),
        ("linear", "product", 4, 0.3, 0, "teacher", "projection", 0),
        ("linear", "product", 2, 0.3, 3, "teacher", "projection", 0),
        ("residual", "none", 4, 0.0, 0, "random", "encoder", 0),
        ("residual", "sign", 4, 0.3, 0, "random", "encoder", 0),
        ("residual", "product", 4, 0.3, 3, "teacher", "projection", 90),
    ],
)
def test_linear_and_residual_recipes_match_a_plain_autograd_loop(
    architecture,
    quantizer,
    subvector_dim,
    neighbor_weight,
    num_neighbors,
    init,
    teacher,
    unpaired,
    small_train,
    small_dev,
    monkeypatch,
):
    """With Pearson's correlation, AdamW, quantizers and neighborhoods; `unpaired` sentences have no scores."""
    monkeypatch.setattr("twinsqueeze.training.losses.SAMPLE_SIZE", 30)
    decay = 0.05 if architecture == "linear" else 0.0  # the two units of a skip connection would decay twice
    recipe = Recipe(
        architecture=architecture, loss="pearson", label_transform="linear", subvector_dim=subvector_dim,
        quantizer=quantizer, neighbor_weight=neighbor_weight, num_neighbors=num_neighbors, init=init, teacher=teacher,
        neighbor_temperature=0.1,
        dim=8, epochs=3, lr=1e-3, weight_decay=decay, lr_schedule="cosine", alpha=0.75, seed=7, device="cpu",
    )  # fmt: skip
    streams = SeedStreams.from_seed(7)
    layer = nn.Linear(24, 8)
    known = torch.tensor(small_train.embeddings)
    if unpaired:
        further = random_pairs(pairs=2, sentences=unpaired, dimension=24, seed=9).embeddings
        small_train = replace(small_train, unpaired=further)
        known = torch.cat([known, torch.tensor(further)])
    if init == "random":
        q, r = np.linalg.qr(streams.weights.normal(size=(24, 8)))
        layer.weight.data = torch.tensor((q * np.sign(np.diag(r))).T, dtype=torch.float32)
        center = known.mean(0) if quantizer == "sign" else torch.zeros(24)
        layer.bias.data = -(layer.weight.data @ center)
    else:
        (projection,) = train_teachers([7], 2.0, small_train, torch.device("cpu"))
        linear = recipe.model_copy(update={"architecture": "linear"})
        ((weight, bias),) = initial_layers(linear, known.numpy(), streams.weights, projection)
        layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
        codebooks = fit_codebooks(functional.normalize(known @ weight.T + bias).numpy(), subvector_dim, 7)
    model: nn.Module = layer
    if architecture == "residual":
        model = ResidualModel(layer, streams.weights)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)

    def log_probs(vectors: torch.Tensor) -> torch.Tensor:
        unit = functional.normalize(vectors, dim=1)
        off_diagonal = ~torch.eye(len(unit), dtype=torch.bool)
        return functional.log_softmax((unit @ unit.T / 0.1)[off_diagonal].view(len(unit), -1), -1)

    def sample() -> list[int]:
        """30 sentences, each followed by its nearest neighbors, without duplicates."""
        sampled = []
        for row in streams.neighbors.permutation(len(known)):
            cosine = known @ known[row]
            cosine[row] = torch.inf  # so that the sentence is the first
            sampled += [
                other for other in cosine.argsort(descending=True)[: num_neighbors + 1].tolist() if other not in sampled
            ]
        return sampled[:30]

    def quantize(outputs: torch.Tensor) -> torch.Tensor:
        if quantizer == "sign":
            return StraightThroughSign.apply(outputs)
        return (
            StraightThroughCentroids.apply(functional.normalize(outputs, dim=1), codebooks)
            if quantizer == "product"
            else outputs
        )

    losses = []
    for _ in range(3):
        order = streams.order.permutation(150)
        summed = 0.0
        for rows in np.split(order, [32, 64, 96, 128]):
            clean = np.concatenate(
                [small_train.embeddings[side[rows]] for side in (small_train.first, small_train.second)]
            )
            noise = 2 * streams.noise.random(clean.shape, dtype=np.float32) - 1
            outputs = model(torch.tensor(clean + noise * 0.75 / np.sqrt(24), dtype=torch.float32))
            student = quantize(outputs)
            cosine = functional.cosine_similarity(*student.chunk(2))
            label = torch.tensor(small_train.scores[rows] / 5, dtype=torch.float32)
            loss = 1 - torch.corrcoef(torch.stack([cosine, label]))[0, 1]
            summed += loss.item() * len(rows)
            teacher_vectors = torch.tensor(clean)
            if num_neighbors:
                teacher_vectors = known[sample()]
                noise = 2 * streams.noise.random(teacher_vectors.shape, dtype=np.float32) - 1
                student = quantize(model(teacher_vectors + torch.tensor(noise) * 0.75 / np.sqrt(24)))
            if teacher == "projection":
                teacher_vectors = teacher_vectors @ projection[0].T + projection[1]
            divergence = functional.kl_div(
                log_probs(student), log_probs(teacher_vectors), log_target=True, reduction="batchmean"
            )
            optimizer.zero_grad()
            (loss + neighbor_weight * divergence).backward()
            optimizer.step()
            schedule.step()
        losses.append(summed / 150)
    grid = [recipe.model_copy(update={"alpha": a, "seed": s}) for a, s in product([0.0, 0.75], [0, 7])]
    (result,) = [each for each in train_replicas(grid, small_train, small_dev) if each.recipe == recipe]
    np.testing.assert_allclose(result.history.loss, losses, rtol=1e-4)
    wanted = [(layer.weight.data, layer.bias.data)]
    if isinstance(model, ResidualModel):
        wanted = model.as_plain_layers()
    for layer, expected in zip(result.compressor.layers, wanted, strict=True):
        torch.testing.assert_close(layer, expected, rtol=0, atol=2e-5)
    stored = result.compressor.compress_as_stored(torch.from_numpy(small_train.embeddings))
    cosine = functional.cosine_similarity(stored[small_train.first], stored[small_train.second]).numpy()
    assert result.history.clean_loss[-1] == pytest.approx(1 - stats.pearsonr(cosine, small_train.scores)[0], abs=1e-5)
    expected = functional.normalize(model(torch.from_numpy(small_dev.embeddings)).detach(), dim=1)
    if quantizer == "sign":
        expected = expected.sign()
    elif quantizer == "product":
        expected = StraightThroughCentroids.apply(expected, codebooks)
    cosine = functional.cosine_similarity(expected[small_dev.first], expected[small_dev.second]).numpy()
    spearman = stats.spearmanr(cosine, small_dev.scores)[0]
    assert result.history.dev["spearman"][-1] == pytest.approx(spearman, abs=2e-3)
    assert Evaluator(small_dev, "linear", torch.device("cpu"))(result.compressor).scores["spearman"] == pytest.approx(
        result.history.dev["spearman"][-1]
    )


LINEAR = {"architecture": "linear", "loss": "pearson", "weight_decay": 0.01, "lr_schedule": "cosine"}
RESIDUAL = LINEAR | {"architecture": "residual"}


# Product quantizers and teachers, at other dimensions.
SLOW_SHAPES = [
    (256, LINEAR | {"quantizer": "sign", "neighbor_weight": 0.1, "batch_size": 64}),
    (36, LINEAR | {"quantizer": "product", "neighbor_weight": 1, "init": "teacher", "teacher": "projection"}),
    (48, LINEAR | {"quantizer": "product", "subvector_dim": 8, "neighbor_weight": 1, "init": "teacher"}),
    (
        20,
        LINEAR
        | {
            "quantizer": "product",
            "neighbor_weight": 1,
            "num_neighbors": 3,
            "init": "teacher",
            "teacher": "projection",
        },
    ),
    (32, LINEAR | {"neighbor_weight": 1, "num_neighbors": 3, "init": "teacher", "teacher": "projection"}),
    (20, RESIDUAL | {"neighbor_weight": 1, "num_neighbors": 3, "init": "teacher", "teacher": "projection"}),
    (33, RESIDUAL | {"neighbor_weight": 0.1}),
]


@pytest.mark.parametrize(
    ("dim", "fields"),
    [
        *((dim, {}) for dim in (8, 10, 32, 33, 128)),  # 10 and 33 are not multiples of a vector register
        (33, LINEAR | {"neighbor_weight": 0.1}),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_SHAPES),
    ],
)
def test_a_replica_has_the_same_bits_alone_and_in_every_grid(dim, fields):
    train = random_pairs(pairs=150, sentences=120, dimension=384, seed=1)
    dev = random_pairs(pairs=60, sentences=70, dimension=384, seed=2)
    (alone,) = train_replicas(make_recipes([0.75], [3], dim=dim, **fields), train, dev)
    grids = [
        ([0.75], [3, 4]),
        ([0.0, 0.75], [0, 3]),
        ([0.1, 0.75, 3.0], [1, 2, 3, 5, 8]),
        (np.arange(12) / 4, range(5)),
    ]
    for alphas, seeds in grids:
        grid = train_replicas(make_recipes(map(float, alphas), seeds, dim=dim, **fields), train, dev)
        (same,) = [each for each in grid if (each.recipe.alpha, each.recipe.seed) == (0.75, 3)]
        assert same_bits(alone, same), (dim, len(grid))


PRODUCT_TEACHER = LINEAR | {"quantizer": "product", "neighbor_weight": 1, "init": "teacher"}


@pytest.mark.parametrize("fields", [{}, pytest.param(PRODUCT_TEACHER, marks=pytest.mark.slow)])
def test_parallel_batches_have_the_bits_of_each_alone(fields):
    """In parallel each has one core, alone it has all of them."""
    train = random_pairs(pairs=600, sentences=500, dimension=384, seed=1)
    dev = random_pairs(pairs=60, sentences=70, dimension=384, seed=2)
    batches = [make_recipes([0.0, 0.75], [seed, seed + 1], dim=36, **fields) for seed in (0, 2, 4)]
    alone = [train_replicas(recipes, train, dev) for recipes in batches]
    for (_, together), wanted in zip(
        map_threaded(iter(batches), lambda batch: train_replicas(batch, train, dev), 2), alone, strict=True
    ):
        assert all(map(same_bits, together, wanted))


def test_initial_weights_do_not_depend_on_parallel_trainings(monkeypatch):
    """K-means of one sets the BLAS threads that compute the principal components of another."""
    train = random_pairs(pairs=600, sentences=500, dimension=384, seed=1)
    weights = defaultdict(set)

    def recording_pca_layer(vectors, dim, *teacher):
        result = pca_layer(vectors, dim, *teacher)
        weights[dim].add(result[0].tobytes())  # float64, since rounding to float32 hides most differences
        return result

    def start(dim: int) -> None:
        (recipe,) = make_recipes([0.0], [0], dim=dim, **LINEAR | {"quantizer": "product", "init": "pca"})
        BatchedTrainer.start(TrainingSetup(recipe, [0.0], [0], train, torch.device("cpu")))

    monkeypatch.setattr("twinsqueeze.model.initialization.pca_layer", recording_pca_layer)
    dims = [32, 64, 96, 128]
    for dim in dims:
        start(dim)
    list(map_threaded(iter(6 * dims), start, 3))
    assert [len(each) for each in weights.values()] == [1] * len(dims)


@pytest.mark.parametrize(
    ("device", "cores", "expected"), [("cpu", 2, 2), ("cpu", 1, 1), ("cpu", 64, 4), ("cuda", 8, 1)]
)
def test_number_of_parallel_batches(monkeypatch, device, cores, expected):
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    assert num_parallel_batches(map(torch.device, ["cpu", device])) == expected


def test_teachers_are_trainings_at_full_dimension(small_train, small_dev):
    """With a recipe of their own, and without dev."""
    teachers = train_teachers([3, 5], 0.5, small_train, torch.device("cpu"))
    recipes = [Recipe(dim=24, seed=seed, alpha=0.5, device="cpu", **TEACHER_RECIPE) for seed in (3, 5)]
    for result, teacher in zip(train_replicas(recipes, small_train, small_dev), teachers, strict=True):
        assert all(map(torch.equal, result.compressor.layers[0], teacher))
        assert result.history.clean_loss[-1] < result.history.clean_loss[0]


def test_equal_recipes_give_equal_bits_and_seeds_differ(small_train, small_dev):
    a, b = (train_replicas(make_recipes([0.75], [1, 2]), small_train, small_dev) for _ in range(2))
    assert same_bits(a[0], b[0])
    assert not same_bits(a[0], a[1])


def test_results_are_in_the_order_of_the_recipes(small_train, small_dev):
    recipes = make_recipes([0.5, 0.0], [3, 1])
    assert [result.recipe for result in train_replicas(recipes[::-1], small_train, small_dev)] == recipes[::-1]


def test_noise_is_for_training_only(small_train, small_dev):
    """The last clean loss and dev scores match PyTorch and SciPy on the final weights."""
    (result,) = train_replicas(make_recipes([3.0], [0]), small_train, small_dev)
    model = nn.Sequential(nn.Linear(24, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 8))
    model.load_state_dict(result.compressor.state_dict())

    def cosine(pairs: EncodedPairs) -> np.ndarray:
        vectors = model(torch.from_numpy(pairs.embeddings)).detach()
        return functional.cosine_similarity(vectors[pairs.first], vectors[pairs.second]).numpy()

    labels = (np.tanh(4 * (small_train.scores / 5 - 0.5)) + 1) / 2
    clean = np.square(cosine(small_train) - labels)
    assert result.history.clean_loss[-1] == pytest.approx(clean.mean(), rel=1e-5)
    np.testing.assert_allclose(pair_losses(result.compressor, small_train, "tanh"), clean, atol=1e-6)
    assert result.history.loss[-1] != pytest.approx(result.history.clean_loss[-1], rel=0.2)
    spearman = stats.spearmanr(cosine(small_dev), small_dev.scores)[0]
    assert result.history.dev["spearman"][-1] == pytest.approx(spearman, abs=1e-3)
    evaluation = Evaluator(small_dev, "tanh", torch.device("cpu"))(result.compressor)
    for name, curve in result.history.dev.items():
        assert evaluation.scores[name] == curve[-1]


def test_clean_loss_is_measured_as_often_as_asked(small_train, small_dev):
    (often,) = train_replicas(make_recipes([0.75], [0], epochs=7), small_train, small_dev)
    (seldom,) = train_replicas(make_recipes([0.75], [0], epochs=7), small_train, small_dev, clean_loss_every=3)
    measured = [0, 2, 5, 6]  # epochs 1, 3, 6 and the last
    assert np.isfinite(often.history.clean_loss).all()
    assert np.flatnonzero(np.isfinite(seldom.history.clean_loss)).tolist() == measured
    assert np.array_equal(often.history.clean_loss[measured], seldom.history.clean_loss[measured])


def test_on_epoch_is_called_every_epoch(small_train, small_dev):
    seen = []
    (result,) = train_replicas(make_recipes([0.75], [0]), small_train, small_dev, on_epoch=seen.append)
    assert [(p.epoch, p.epochs) for p in seen] == [(1, 3), (2, 3), (3, 3)]
    assert [p.loss[0] for p in seen] == result.history.loss.tolist()


def test_training_learns(small_train, small_dev):
    (result,) = train_replicas(make_recipes([0.0], [0], epochs=60, lr=1e-3), small_train, small_dev)
    assert result.history.clean_loss[-1] < 0.2 * result.history.clean_loss[0]


def test_divergence_is_detected(small_train, small_dev):
    (result,) = train_replicas(make_recipes([0.0], [0], lr=1e30, epochs=50), small_train, small_dev)
    assert result.diverged_at is not None
    assert len(result.history.loss) < 50
    (fine,) = train_replicas(make_recipes([0.0], [0]), small_train, small_dev)
    assert fine.diverged_at is None


def test_a_batch_may_be_larger_than_the_data(small_train, small_dev):
    (result,) = train_replicas(make_recipes([0.75], [0], batch_size=10**6), small_train, small_dev)
    assert np.isfinite(result.history.loss).all()


def test_recipes_that_cannot_train_together_are_an_error(small_train, small_dev):
    with pytest.raises(ValueError, match="alpha and seed only"):
        train_replicas([SMALL, SMALL.model_copy(update={"dim": 4})], small_train, small_dev)
    with pytest.raises(ValueError, match="every alpha with every seed"):
        train_replicas(make_recipes([0.0, 0.75], [0, 1])[:3], small_train, small_dev)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_is_an_error_without_a_cuda_device():
    assert resolve_device("auto").type == "cpu"
    with pytest.raises(InputError, match="no CUDA device"):
        resolve_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_trains_like_the_cpu(small_train, small_dev):
    assert resolve_device("auto").type == "cuda"
    on_cpu = train_replicas(make_recipes([0.0, 0.75], [0, 1]), small_train, small_dev)
    on_cuda = train_replicas(make_recipes([0.0, 0.75], [0, 1], device="cuda"), small_train, small_dev)
    for a, b in zip(on_cpu, on_cuda, strict=True):
        np.testing.assert_allclose(a.history.loss, b.history.loss, rtol=1e-3)


@pytest.mark.parametrize(("max_size", "at_once"), [(1, 1), (1, 2), (4, 3), (25, 1), (25, 8), (60, 64)])
def test_any_grid_is_split_into_products_of_alphas_and_seeds_that_fit(max_size, at_once):
    """400 recipes of two shapes, some of them missing as after an interruption."""
    grid = [Recipe(alpha=a / 10, seed=s, dim=d) for a, s, d in product(range(10), range(20), (8, 16))]
    missing = np.random.default_rng(0).choice(len(grid), 37, replace=False)
    wanted = [recipe for i, recipe in enumerate(grid) if i not in missing]
    batches = plan_batches(wanted, at_once=at_once, max_size=max_size)
    assert max_size == 1 or len(batches) % at_once == 0
    assert [len(batch) for batch in batches] == sorted((len(batch) for batch in batches), reverse=True)
    assert sorted(r.digest for batch in batches for r in batch) == sorted(r.digest for r in wanted)
    for batch in batches:
        assert len(batch) <= max_size
        assert len({r.dim for r in batch}) == 1
        alphas, seeds = {r.alpha for r in batch}, {r.seed for r in batch}
        assert {(r.alpha, r.seed) for r in batch} == set(product(alphas, seeds))


def test_a_full_grid_is_split_evenly_and_alphas_of_a_seed_stay_together():
    neftune = [Recipe(alpha=a, seed=s, device="cpu") for a, s in product(range(9), range(10))]
    assert [len(batch) for batch in plan_batches(neftune)] == [5] * 10 + [4] * 10  # 5 is the CPU's maximum
    assert [len(batch) for batch in plan_batches(neftune, max_size=25)] == [18] * 5
    published = [Recipe(alpha=a, seed=s) for a, s in product(range(5), range(5))]
    assert [len(batch) for batch in plan_batches(published, max_size=25)] == [25]
    assert [len(batch) for batch in plan_batches(published, max_size=24)] == [15, 10]


def test_a_grid_is_split_for_parallel_batches():
    published = [Recipe(alpha=a, seed=s, device="cpu") for a, s in product(range(5), range(5))]
    seeds = published[:5]
    assert [len(batch) for batch in plan_batches(published, at_once=2)] == [5, 5, 5, 5, 3, 2]
    assert [len(batch) for batch in plan_batches(published, at_once=4)] == [5, 5, 3, 3, 3, 2, 2, 2]
    assert [[r.seed for r in batch] for batch in plan_batches(seeds, at_once=2)] == [[2, 3, 4], [0, 1]]
    assert [len(batch) for batch in plan_batches(seeds[:3], at_once=4)] == [1, 1, 1]
