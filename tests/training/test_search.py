"""The losses of queries among candidates."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.helpers.pairs import random_queries
from tests.helpers.recipes import PRODUCT, RESIDUAL, SEARCH, SIGN, make_recipes
from twinsqueeze.task import NEIGHBORS
from twinsqueeze.training.candidates import CandidateSampler, candidate_mask, first_columns, other_answers
from twinsqueeze.training.setup import TrainingSetup
from twinsqueeze.training.trainer import BatchedTrainer
from twinsqueeze.utils.similarity import nearest_neighbors

CPU = torch.device("cpu")


def test_candidates_are_distinct_and_neither_the_query_nor_another_answer():
    queries, candidates = torch.tensor([[7, 7, 8]]), torch.tensor([[1, 2, 1, 7, 5, 5]])
    assert candidate_mask(queries, candidates).tolist() == [
        [[True, True, False, False, True, False]] * 2 + [[True, True, False, True, True, False]]
    ]
    targets = first_columns(candidates)[:, :3]
    assert other_answers(queries, targets, 6).int().tolist() == [[[0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0] * 6]]


def test_passages_that_equal_their_query_and_rows_without_candidates_are_no_obstacle():
    train = random_queries(30, 16, seed=0)
    same = replace(train, second=np.where(np.arange(40) < 5, train.first, train.second), corpus=None)
    alone = replace(train, task=NEIGHBORS, corpus=None)
    alone = replace(alone, embeddings=train.embeddings[:33])  # 32 rows in a batch, then one
    fields = SEARCH | {"dim": 8, "num_neighbors": 0, "num_candidates": 0, "epochs": 1}
    for data, loss in ((same, "infonce"), (alone, "none")):
        (recipe,) = make_recipes([0.0], [0], **fields | {"loss": loss})
        trainer = BatchedTrainer.start(TrainingSetup(recipe, [0.0], [0], data, CPU))
        assert np.isfinite(trainer.train_epoch()).all()
        assert trainer.model.parameters.isfinite().all()


@pytest.mark.parametrize("negatives", [False, True])
def test_candidates_are_passages_random_rows_and_neighbors(negatives):
    train = random_queries(30, 16, seed=0, negatives=negatives)
    (recipe,) = make_recipes(**SEARCH | {"loss": "none", "num_candidates": 9})
    sampler, examples = CandidateSampler(train, recipe), train.examples[:, :5]
    rows = sampler.sample(np.random.default_rng(0), examples)
    passages = examples[1:].ravel()
    assert rows[: len(passages)].tolist() == passages.tolist()
    assert len(rows) == sampler.num_rows(len(examples), 5) - 5 == len(passages) + 9 + 2 * 5
    nearest = nearest_neighbors(
        train.embeddings[:20], 20, queries=train.embeddings[examples[0]], own_rows=np.full(5, -1)
    )
    assert rows.max() < 20  # of the corpus
    assert all(row in near for row, near in zip(rows[-10:], nearest.repeat(2, 0), strict=True))
    alone = replace(train, task=NEIGHBORS, corpus=None)
    rows = CandidateSampler(alone, recipe).sample(np.random.default_rng(0), np.arange(5)[None])
    assert rows[:5].tolist() == list(range(5))
    assert not set(rows[-2:]) & {4}  # a row is not its own neighbor


@pytest.mark.parametrize("quantizer", [{}, PRODUCT, RESIDUAL, SIGN])
def test_a_step_has_the_gradient_of_autograd(quantizer):
    """Of InfoNCE and the neighborhood loss, of float queries among stored candidates, and of the centroids."""
    train = random_queries(40, 16, seed=0)
    fields = SEARCH | quantizer | {"loss": "infonce", "dim": 8, "num_neighbors": 0, "lr": 1e-9, "codebook_lr": 1e-9}
    (recipe,) = make_recipes([0.0], [0], **fields)
    trainer = BatchedTrainer.start(TrainingSetup(recipe, [0.0], [0], train, CPU))
    examples = torch.from_numpy(train.examples[:, 5:25])[None]
    ((rows, vectors),) = trainer._make_inputs([examples])
    loss = trainer._search_step(rows, vectors, torch.zeros(1, 20))
    (weight, bias), model = trainer.model.layers[0], trainer.model

    layer = [tensor.detach().clone().requires_grad_() for tensor in (weight[0, :8], bias[0, 0, :8])]
    queries, candidates = rows[0, :20], rows[0, 20:]
    assert queries.equal(examples[0, 0])
    outputs = functional.linear(trainer.vectors[torch.cat([queries, candidates])], *layer)
    asked, stored = functional.normalize(outputs[:20], dim=-1), outputs[20:]
    codebooks = None
    if quantizer == SIGN:
        stored = torch.clamp(stored, -1, 1) + (stored.sign() - torch.clamp(stored, -1, 1)).detach()
    elif quantizer:
        unit = functional.normalize(stored, dim=-1)
        codebooks = model.quantizer.codebooks[0].clone().requires_grad_()
        decoded = []
        for part, books in zip(unit.detach().split(4, 1), codebooks.split(len(codebooks) // 2), strict=True):
            decoded.append(torch.zeros_like(part))
            for book in books:
                decoded[-1] = decoded[-1] + book[torch.cdist(part - decoded[-1], book).argmin(-1)]
        stored = torch.cat(decoded, -1) + unit - unit.detach()
    stored = functional.normalize(stored, dim=-1)
    kept = [i for i, row in enumerate(candidates.tolist()) if row not in candidates.tolist()[:i]]
    answers = {(q, p) for q, p in zip(*examples[0].tolist(), strict=True)}
    contrastive, distilled = [], []
    for i, query in enumerate(queries.tolist()):
        own = int(examples[0, 1, i])
        columns = [c for c in kept if candidates[c] != query]
        teacher = functional.log_softmax(trainer.vectors[query] @ trainer.vectors[candidates[columns]].T / 0.05, -1)
        student = functional.log_softmax(asked[i] @ stored[columns].T / 0.05, -1)
        distilled.append((teacher.exp() * (teacher - student)).sum())
        columns = [c for c in columns if int(candidates[c]) == own or (query, int(candidates[c])) not in answers]
        target = [int(candidates[c]) for c in columns].index(own)
        contrastive.append(-functional.log_softmax(asked[i] @ stored[columns].T / 0.05, -1)[target])
    expected = torch.stack(contrastive).mean()
    (expected + torch.stack(distilled).mean()).backward()
    torch.testing.assert_close(loss, expected.detach()[None])
    (weight_gradient, bias_gradient), *_ = model._gradients
    torch.testing.assert_close(weight_gradient[0, :8], layer[0].grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bias_gradient[0, 0, :8], layer[1].grad, rtol=1e-4, atol=1e-5)
    if codebooks is not None:
        torch.testing.assert_close(model.quantizer.gradient[0], codebooks.grad, rtol=1e-4, atol=1e-5)
