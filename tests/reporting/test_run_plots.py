import numpy as np
import pytest
from scipy import stats

from twinsqueeze.reporting import run_plots

RNG = np.random.default_rng(0)


def test_predictions_are_averaged_by_bins_of_the_label():
    labels, predicted = RNG.random(500), RNG.random(500)
    labels[:2] = 0, 1
    figure = run_plots.plot_run_predictions({"dev": (labels, predicted), "test": (labels, predicted / 2)}, "tanh")
    dev, test = figure.axes
    assert dev.get_title() == "Predicted cosine on dev (500 pairs)"
    assert dev.get_ylim() == test.get_ylim()
    for axes, values in ((dev, predicted), (test, predicted / 2)):
        x, y = axes.get_lines()[0].get_data()
        assert x == pytest.approx(stats.binned_statistic(labels, labels, bins=10, range=(0, 1)).statistic)
        assert y == pytest.approx(stats.binned_statistic(labels, values, bins=10, range=(0, 1)).statistic)


def test_losses_are_shares_of_the_pairs_with_a_dot_at_the_mean():
    losses = {"train": RNG.exponential(0.01, 300), "dev": np.array([0, 1e-20, 0.04, 0.5])}
    figure = run_plots.plot_run_losses(losses)
    (axes,) = figure.axes
    curves, dots = axes.get_lines()[::2], axes.get_lines()[1::2]
    for curve, dot, (split, values) in zip(curves, dots, losses.items(), strict=True):
        assert curve.get_ydata().sum() == pytest.approx(1)  # no pair is hidden, not even one without error
        assert curve.get_label() == f"{split}: mean {values.mean():.4f}"
        assert dot.get_xdata() == pytest.approx([values.mean()])


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_epochs_are_whole_numbers(epochs):
    curve = RNG.random(epochs)
    figure = run_plots.plot_loss_curves(curve, curve, dict.fromkeys(("mse", "pearson", "spearman"), curve))
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert all(tick == int(tick) for tick in axes.get_xticks())


def test_a_legend_has_the_series_of_all_panels_in_order():
    figure, (left, right) = run_plots.panels(2, legend=["a", "b$", "c"])
    right.plot([0, 1], label="a")
    left.plot([0, 1], label="b$")
    run_plots.draw_legend(figure, ["a", "b$", "c"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", r"b\$"]
