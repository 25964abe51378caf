"""What a candidate loses, from rows that it was not fitted to: exact by definition, and less noisy than counts."""

import models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor import compare
from edgepress.compressor.data import open_data
from edgepress.compressor.estimate import NEAR, Answers, Estimate, estimate, expected_loss
from edgepress.compressor.metrics import answers
from edgepress.compressor.model import input_specs
from edgepress.compressor.protocols import Matrix
from edgepress.compressor.scoring import BuiltIn

ERROR = BuiltIn("mse", "y", lambda a, b: a, higher_is_better=False)
RIGHT = BuiltIn("top1", "y", lambda a, b: a, "%", scale=100.0)
SAME = BuiltIn("agreement", "y", lambda a, b: a, "%", scale=100.0, needs_reference=True)


def by_loops(margins: Matrix, changes: Matrix, costs: Matrix) -> float:
    rows = sorted(range(len(margins)), key=lambda i: margins[i])
    n, total = len(rows), 0.0
    width = min(n, max(NEAR[0], n // NEAR[1]))
    for place, i in enumerate(rows):
        first = min(max(place - width // 2, 0), n - width)
        near = rows[first : first + width]
        total += costs[i] * sum(margins[i] + changes[j] < 0 for j in near) / width
    return max(total / n, 0.0)


@given(st.integers(1, 300), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_expected_loss_is_the_mean_over_pairs_of_like_rows(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    margins, changes, costs = rng.exponential(2, n), rng.normal(0, 2, n), rng.uniform(-0.5, 1, n)
    loss, error = expected_loss(margins, changes, costs)
    assert loss == pytest.approx(by_loops(margins, changes, costs))
    assert error >= 0


def test_expected_loss_and_its_error_are_true_and_less_noisy_than_counts() -> None:
    rng = np.random.default_rng(5)

    def draw(n: int) -> tuple[Matrix, Matrix]:
        margins = rng.gamma(1.0, 3.0, n)
        return margins, rng.normal(0, 0.3 + 0.15 * margins)  # what is sure changes more

    margins, changes = draw(400_000)
    truth = np.mean(margins + changes < 0)
    found = []
    for _ in range(300):
        margins, changes = draw(250)
        found.append((*expected_loss(margins, changes, np.ones(250)), np.mean(margins + changes < 0)))
    loss, error, count = np.array(found).T
    assert loss.mean() == pytest.approx(truth, rel=0.1)
    assert error.mean() == pytest.approx(loss.std(), rel=0.2)
    assert loss.std() < 0.95 * count.std()


def test_on_the_same_rows_candidates_compare_better_than_by_counts() -> None:
    """Equal candidates that differ by chance alone: the luckiest of them looks less lucky."""
    rng = np.random.default_rng(6)
    margins, none = rng.gamma(1.0, 3.0, 300), np.ones(300)
    found, counts = [], []
    for _ in range(100):
        changes = rng.normal(0, 0.6, 300)
        found.append(expected_loss(margins, changes, none)[0])
        counts.append(np.mean(margins + changes < 0))
    assert np.std(found) < 0.95 * np.std(counts)


def test_what_does_not_change_costs_nothing() -> None:
    margins = np.random.default_rng(0).exponential(1, 100)
    assert expected_loss(margins, np.zeros(100), np.ones(100)) == (0.0, 0.0)
    told = Answers(margins, margins, margins=True, costs=np.ones(100))
    found = estimate(RIGHT, np.ones(100), np.ones(100), told)
    assert (found.drop_percent, found.margin_percent) == (0.0, 0.0)
    assert found.within(0.0)


def test_costs_are_relative_to_the_answers_that_are_right() -> None:
    margins, half = np.full(200, 1.0), np.repeat([1.0, 0.0], 100)
    told = Answers(margins, -margins, margins=True, costs=np.full(200, 0.3))
    assert estimate(RIGHT, half, half, told).drop_percent == pytest.approx(100 * 0.3 / 0.5)
    assert estimate(SAME, np.ones(200), 1 - half, told).drop_percent == pytest.approx(30)


def test_without_margins_changes_are_counted_and_labels_may_overrule() -> None:
    rng = np.random.default_rng(1)
    base = np.ones(400)
    ours = (rng.random(400) < 0.9).astype(float)
    same = (rng.random(400) < 0.8).astype(float)
    few, many = Answers(base, base, margins=False), Answers(base, same, margins=False)
    assert estimate(RIGHT, base, ours, few).drop_percent == pytest.approx(100 * (1 - ours.mean()))
    assert estimate(RIGHT, base, base, many).drop_percent == pytest.approx(60 * (1 - same.mean()))


def test_a_broken_output_counts_as_changed() -> None:
    scores = np.random.default_rng(2).normal(size=(64, 5))
    broken = scores.copy()
    broken[:32, 1] = np.nan
    before, after = compare.margin(scores, scores, 0.0), compare.margin(broken, scores, 0.0)
    assert (before >= 0).all()
    assert (after[:32] < -1e6).all()
    np.testing.assert_array_equal(after[32:], before[32:])
    told = Answers(before, after, margins=True)
    assert not estimate(SAME, np.ones(64), np.ones(64), told).within(20)


def test_margins_of_probabilities_are_those_of_their_scores() -> None:
    rng = np.random.default_rng(3)
    before, after = rng.normal(size=(2, 50, 4)) * 3
    p, q = (np.exp(a) / np.exp(a).sum(1, keepdims=True) for a in (before, after))
    np.testing.assert_allclose(compare.margin(q, p, 0.5), compare.margin(after, before, 0.0), atol=1e-9)


def test_single_scores_have_two_classes() -> None:
    before, after = np.array([[0.9], [0.2], [0.6]]), np.array([[0.6], [0.7], [0.4]])
    own, margins = compare.margin(before, before, 0.5), compare.margin(after, before, 0.5)
    np.testing.assert_allclose(own, np.abs(np.log(before / (1 - before)))[:, 0])
    assert [m > 0 for m in margins] == [True, False, False]
    np.testing.assert_allclose(compare.margin(np.array([-2.0]), np.array([3.0]), 0.0), [-4.0])


def test_a_change_costs_what_belief_and_label_say() -> None:
    scores = np.array([[5.0, 4.0, 0.0], [5.0, 4.0, 0.0], [5.0, 4.0, 0.0]])
    believed = np.tanh(0.5)
    expected = [(believed + 1) / 2, believed / 2, believed / 2]
    np.testing.assert_allclose(compare.cost_of_a_change(scores, np.array([0, 1, 2]), 0.0), expected)
    one_hot = np.eye(3)
    np.testing.assert_allclose(compare.cost_of_a_change(scores, one_hot, 0.0), expected)
    single = np.array([[2.0], [2.0]])
    np.testing.assert_allclose(
        compare.cost_of_a_change(single, np.array([1, 0]), 0.0), [(np.tanh(2) + 1) / 2, np.tanh(2) / 2]
    )


def test_which_answers_have_margins_and_costs() -> None:
    model = models.mlp(8, 4)
    rng = np.random.default_rng(4)
    x = rng.normal(size=(40, 6)).astype(np.float32)
    labelled = next(iter(open_data({"x": x, "y": rng.integers(0, 4, 40)}, input_specs(model)).batches(40)))
    bare = next(iter(open_data({"x": x}, input_specs(model)).batches(40)))
    outputs = models.run(model, {"x": x})
    assert [m and m.name for m in answers(outputs, labelled)] == ["margin", "cost"]
    assert [m and m.name for m in answers(outputs, bare)] == ["margin", None]
    maps = {"y": rng.normal(size=(40, 4, 3, 3)).astype(np.float32)}
    assert [m and m.name for m in answers(maps, bare)] == ["agreement", None]


def test_estimates_of_losses() -> None:
    base = np.random.default_rng(0).random(100) + 0.5
    assert estimate(ERROR, base, base, None).drop_percent == 0
    worse, better = estimate(ERROR, base, base * 1.25, None), estimate(ERROR, base, base * 0.9, None)
    assert worse.drop_percent == pytest.approx(20.0)  # 1 / (1 − 20 %) times the loss
    assert better.drop_percent < 0
    assert estimate(ERROR, base, np.full(100, np.inf), None).drop_percent >= 100
    assert not estimate(ERROR, base, np.full(100, np.nan), None).within(50)


def test_more_samples_make_a_smaller_margin() -> None:
    rng = np.random.default_rng(1)
    margins = []
    for n in (50, 500, 5000):
        base = np.ones(n)
        margins.append(estimate(RIGHT, base, (rng.random(n) < 0.9).astype(float), None).margin_percent)
    assert margins == sorted(margins, reverse=True)


def test_chance_in_the_unseen_rows_is_part_of_the_margin() -> None:
    rng = np.random.default_rng(7)
    before = rng.gamma(1.0, 3.0, 400)
    after = before + rng.normal(0, 1, 400)
    ones = np.ones(400)
    for told in (Answers(before, after, True, 0.5 * ones), Answers(ones, (after > 0).astype(float), False)):
        few, many, all_rows = (
            estimate(SAME, ones, ones, told, unseen).margin_percent for unseen in (50, 5000, np.inf)
        )
        assert few > 1.5 * many > 1.5 * all_rows > 0
        assert (
            estimate(RIGHT, ones, ones, told).margin_percent
            > 0.5 * estimate(RIGHT, ones, ones, told).drop_percent
        )
    losses = (estimate(ERROR, before, before + rng.random(400), None, n).margin_percent for n in (50, np.inf))
    assert next(losses) > 1.5 * next(losses)


def test_what_half_of_the_rows_settle_the_others_seldom_change() -> None:
    rng = np.random.default_rng(2)
    budget, settled, wrong = 2.0, 0, 0
    for _ in range(400):
        margins = rng.gamma(1.0, 3.0, 500)
        changes = rng.normal(0, rng.uniform(0.05, 0.5) * (0.3 + 0.15 * margins))

        def judged(n: int, margins: Matrix = margins, changes: Matrix = changes) -> Estimate:
            told = Answers(margins[:n], margins[:n] + changes[:n], margins=True)
            same = np.ones(n)
            return estimate(SAME, same, same - (told.after < 0), told, 2000)

        half = judged(250)
        if half.settled(budget):
            settled += 1
            wrong += half.within(budget) != judged(500).within(budget)
    assert settled > 150
    assert wrong < 0.05 * settled


def test_few_rows_without_a_change_settle_nothing() -> None:
    same = np.ones(20)
    told = Answers(np.full(20, 5.0), np.full(20, 5.0), margins=True)
    found = estimate(SAME, same, same, told)
    assert found.cautious == 0
    assert not found.settled(2.0)
    assert found.settled(6.0)
    assert not found.settled(np.inf)
