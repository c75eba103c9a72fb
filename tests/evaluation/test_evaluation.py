"""Attacking a split: whose verdict counts, what is refused, and that batches and interruptions change nothing."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import evaluating
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.attacks.worst_of import WorstOf
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.crafted import Crafted
from robustbench_lab.evaluation.judging import check_images, drawn, predictions
from robustbench_lab.evaluation.keepers.examples import Examples
from robustbench_lab.evaluation.outcome import Outcome
from robustbench_lab.evaluation.record import Circumstances, record_of
from robustbench_lab.evaluation.views import Averaged, Counted, Queries, attacker_view, check_view
from robustbench_lab.evaluation.warnings import warnings_of
from robustbench_lab.models.defended import Defended, frozen
from robustbench_lab.models.front import Front
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.settings.conf import compose
from robustbench_lab.settings.identity import evaluation_of
from robustbench_lab.threats import Budget, ThreatModel

BUDGET = Budget("linf", 0.1)


class Threshold(nn.Module):
    """Class 1 where the pixel exceeds .5; `sign=-1` shows an attacker the opposite slope."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(sign))

    def forward(self, x: Tensor) -> Tensor:
        score = self.gain * (x.flatten(1)[:, 0] - 0.5)
        return torch.stack([-score, score], dim=1)


@dataclass(frozen=True, kw_only=True)
class Scripted(Attack):
    """Returns what it is told, and remembers the pixels that it was given."""

    change: Callable[[Tensor], Tensor]
    seen: list[float] = field(default_factory=list)

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        self.seen.extend(x.flatten().tolist())
        return self.change(x)


@pytest.fixture
def data() -> ImageSet:
    """Pixels .1 (right), .45 (right, breakable), .55 (wrong), .9 (right), .4999 (right)."""
    pixels = torch.tensor([0.1, 0.45, 0.55, 0.9, 0.4999]).view(5, 1, 1, 1)
    return ImageSet(pixels, torch.tensor([0, 0, 0, 1, 0]), torch.tensor([40, 3, 17, 8, 0]))


@pytest.fixture
def clean_digits_model(digits_model: Defended) -> Iterator[Defended]:
    yield digits_model
    digits_model._fast.clear()


def judged(model: Defended, data: ImageSet, attack: Attack, view: nn.Module | None = None, budget: Budget = BUDGET, **how: Any) -> Outcome:
    return evaluating.judged(model, data, attack, budget, view, **{"batch_size": 2, **how})


def examples_of(model: Defended, data: ImageSet, attack: Attack, **how: Any) -> dict[str, np.ndarray]:
    """What an evaluation keeps of the first images."""
    examples = Examples()
    judged(model, data, attack, keepers=[examples], **how)
    return examples.arrays


def white(sees: str = "defended", answers: str = "logits") -> ThreatModel:
    return ThreatModel(sees, ["seed=1"] if sees in ("twin", "substitute") else [], answers)


# One outcome per image


def test_images_that_are_wrong_already_are_broken_and_not_attacked(data: ImageSet) -> None:
    attack = Scripted(change=lambda x: x + 0.08)
    outcome = judged(Defended(Threshold()), data, attack)
    assert outcome.ids.tolist() == [40, 3, 17, 8, 0]
    assert outcome.clean.tolist() == [True, True, False, True, True]
    assert outcome.robust.tolist() == [True, False, False, True, False]
    assert outcome.done.all()
    assert attack.seen == pytest.approx([0.1, 0.45, 0.9, 0.4999])
    np.testing.assert_allclose(outcome.distance, [0.08, 0.08, np.nan, 0.08, 0.08], atol=1e-6)
    assert outcome.distance.dtype == np.float64


def test_wrong_images_are_attacked_on_request_and_stay_broken(data: ImageSet) -> None:
    """Lowered by .1, the wrong image .55 becomes right: that is told in `after`, and changes no verdict."""
    attack = Scripted(change=lambda x: x - 0.1)
    outcome = judged(Defended(Threshold()), data, attack, misclassified=True)
    assert len(attack.seen) == 5
    assert outcome.robust.tolist() == [True, True, False, True, True]
    assert outcome.after.tolist() == [1, 1, 1, 1, 1]
    assert (outcome.broken_by == -1).all()
    assert outcome.survivors() == [4]
    spared = judged(Defended(Threshold()), data, Scripted(change=lambda x: x - 0.1))
    assert spared.after.tolist() == spared.right.tolist() == [1, 1, 0, 1, 1]
    both = WorstOf(attacks={"one": shift(-0.1), "two": shift(0.1)})
    with pytest.raises(LabError, match="attack_misclassified: expected false for a list of attacks"):
        judged(Defended(Threshold()), data, both, misclassified=True)


def crafted_on(data: ImageSet, path: Path) -> Crafted:
    found = Crafted.of(path, data)
    assert found is not None
    return found


def test_what_was_found_on_a_source_is_tried_on_other_models_and_searched_once(data: ImageSet, tmp_path: Path) -> None:
    source, path = Defended(Threshold(-1.0)), tmp_path / "crafted" / "shift.npz"
    first, second = shift(0.1), shift(0.1)
    plain = judged(Defended(Threshold()), data, shift(0.1), source)
    crafted = crafted_on(data, path)
    one = judged(Defended(Threshold()), data, first, source, crafted=crafted)
    assert (one.robust == plain.robust).all()
    assert (len(first.seen), one.reused.tolist()) == (4, [0])
    crafted.save(seconds=19.0)
    assert not path.exists(), "quickly found again"
    crafted.save(seconds=21.0)
    everything_right = Defended(Threshold(1.0))
    everything_right.network.gain.data.fill_(1e-9)  # the same verdicts
    two = judged(everything_right, data, second, source, crafted=crafted_on(data, path), misclassified=True)
    assert second.seen == pytest.approx([0.55]), "the one that the first model had wrong"
    assert two.reused.tolist() == [4]
    np.testing.assert_array_equal(two.right, plain.right)
    np.testing.assert_allclose(two.distance[[0, 1, 3, 4]], plain.distance[[0, 1, 3, 4]], atol=1e-7)


def test_a_search_that_goes_on_is_written_now_and_then(data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "crafted.npz"
    crafted = crafted_on(data, path)
    crafted.stage("pgd")[0][0] = True
    crafted.save(60.0, last=False)
    assert not path.exists()
    monkeypatch.setattr("robustbench_lab.evaluation.crafted.SAVE_EVERY", -1.0)
    crafted.save(60.0, last=False)
    assert path.exists()
    again = Crafted.of(path, data, afresh=True)
    assert again is not None
    assert (again.made, path.exists()) == ({}, False)


def test_kept_examples_outside_the_ball_are_an_error(data: ImageSet, tmp_path: Path) -> None:
    crafted = crafted_on(data, tmp_path / "crafted.npz")
    made, x_adv = crafted.stage("Scripted")
    made[:], x_adv[:] = True, data.images + 0.2
    with pytest.raises(LabError, match=r"Scripted \(kept in .*crafted.npz\) left the budget"):
        judged(Defended(Threshold()), data, shift(0.1), Defended(Threshold(-1.0)), crafted=crafted)


def test_an_attack_on_the_whole_split_gets_it_whole(data: ImageSet, built: Callable[..., Any]) -> None:
    """With the authors' index error, a batch of two is no part of a batch of five."""
    sizes = []

    class Counting(Threshold):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x)

    attack = built("attack", "minimal_fgsm_as_published")
    judged(Defended(Counting()), data, attack, budget=Budget("linf", 1.0), batch_size=2, misclassified=True)
    assert max(sizes) == 5


def test_two_processes_add_to_one_file(data: ImageSet, tmp_path: Path) -> None:
    path = tmp_path / "crafted.npz"
    here, there = crafted_on(data, path), crafted_on(data, path)
    for crafted, place in ((here, 0), (there, 3)):
        made, x_adv = crafted.stage("pgd")
        made[place], x_adv[place] = True, place / 10
    here.save(60.0)
    there.save(60.0)
    made, x_adv = crafted_on(data, path).stage("pgd")
    assert made.tolist() == [True, False, False, True, False]
    assert x_adv.flatten().tolist() == pytest.approx([0, 0, 0, 0.3, 0])


@pytest.mark.parametrize("content", [b"", b"not a zip", "other ids"])
def test_a_damaged_file_of_examples_is_written_anew(
    content: bytes | str, data: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "crafted.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, ids=np.arange(5), **{"made.x": np.ones(5, bool), "x_adv.x": np.zeros((5, 1, 1, 1), np.float32)})
    crafted = crafted_on(data, path)
    assert "is of no use" in caplog.text
    assert not crafted.made
    made, _ = crafted.stage("pgd")
    made[2] = True
    crafted.save(60.0)
    assert crafted_on(data, path).stage("pgd")[0].tolist() == [False, False, True, False, False]


def test_too_many_images_are_not_kept(data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustbench_lab.evaluation.crafted.LARGEST", 19)
    assert Crafted.of(tmp_path / "crafted.npz", data) is None


def test_the_attack_is_given_the_images_own_random_numbers(data: ImageSet) -> None:
    keys: list[int] = []

    class Drawing(Attack):
        def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
            keys.extend(rng.keys.tolist())
            return x

    judged(Defended(Threshold()), data, Drawing(), seed=9)
    assert keys == ImageRandom.of(torch.tensor([40, 3, 8, 0]), 9, "attack").keys.tolist()


def test_the_verdict_falls_on_the_defended_model(data: ImageSet, built: Callable[..., Any]) -> None:
    """The source slopes the other way: what raises its loss makes the defended model surer."""
    defended, source, fgsm = Defended(Threshold()), Defended(Threshold(-1.0)), built("attack", "fgsm")
    view = attacker_view(white("twin"), defended, source, undefended=False)
    assert view is source
    assert judged(defended, data, fgsm, view).robust.tolist() == [True, True, False, True, True]
    assert judged(defended, data, fgsm).robust.tolist() == [True, False, False, True, False]


def test_the_model_is_left_as_it_was(data: ImageSet, built: Callable[..., Any]) -> None:
    model = Defended(Threshold()).train()
    judged(model, data, built("attack", "pgd"))
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("overrides", "forward", "backward"),
    [
        ((), 5, 5),
        (("attack.labels=predicted",), 6, 5),
        (("attack.keep=best",), 6, 5),
        (("attack.restarts=3", "attack.keep=best"), 18, 15),
        (("attack.eot_samples=4",), 20, 20),
    ],
)
def test_passes_are_counted(overrides: tuple[str, ...], forward: int, backward: int, data: ImageSet, built: Callable[..., Any]) -> None:
    """Per attacked image, of which there are four: a step is one forward and one backward pass."""
    outcome = judged(Defended(Threshold()), data, built("attack", "pgd", "attack.steps=5", "attack.keep=last", *overrides))
    assert (outcome.forward.tolist(), outcome.backward.tolist()) == ([4 * forward], [4 * backward])
    assert outcome.seconds > 0


# Batches and interruptions


class InDouble(nn.Module):
    """The same network in double precision; torch.fx cannot trace it, so that no copy of it in single precision is attacked instead."""

    def __init__(self, model: Defended) -> None:
        super().__init__()
        self.network = deepcopy(model.network).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.double()).float() if len(x) else x.new_zeros(0, 10)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_batch_size_and_order_change_nothing(
    norm: str, digits: tuple[ImageSet, ImageSet], clean_digits_model: Defended, built: Callable[..., Any]
) -> None:
    """In double precision: in single, a kernel's rounding depends on the batch, and a search may fork on it."""
    data, budget = digits[1].subset(torch.arange(40)), Budget(norm, 0.1 if norm == "linf" else 0.7)
    model, attack = Defended(InDouble(clean_digits_model)).eval(), built("attack", "pgd", "attack.steps=4")
    whole = judged(model, data, attack, batch_size=64, budget=budget)
    assert 5 < whole.robust.sum() < whole.clean.sum() - 5
    for size, order in (
        (1, torch.arange(40)),
        (7, torch.arange(40)),
        (7, torch.randperm(40)),
        (64, torch.arange(40).flip(0)),
    ):
        part = judged(model, data.subset(order), attack, batch_size=size, budget=budget)
        assert part.clean.tolist() == whole.clean[order].tolist()
        assert part.robust.tolist() == whole.robust[order].tolist()
        np.testing.assert_allclose(part.distance, whole.distance[order], atol=1e-6)
        assert (part.forward.tolist(), part.backward.tolist()) == (whole.forward.tolist(), whole.backward.tolist())
    assert judged(model, data, attack, batch_size=64, budget=budget, seed=1).distance.tolist() != whole.distance.tolist()


def test_going_on_from_a_partial_outcome(
    digits: tuple[ImageSet, ImageSet],
    clean_digits_model: Defended,
    built: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("robustbench_lab.evaluation.loop.SAVE_EVERY", -1.0)
    data, attack, saved = digits[1].subset(torch.arange(30)), built("attack", "pgd", "attack.steps=3"), list[Outcome]()

    def save(outcome: Outcome) -> None:
        saved.append(deepcopy(outcome))

    whole = judged(clean_digits_model, data, attack, batch_size=7, save=save)
    assert [int(outcome.done.sum()) for outcome in saved] == [7, 14, 21, 28]
    assert np.isnan(saved[1].distance[14:]).all()
    assert not saved[1].robust[14:].any()
    for partial in (saved[1], Outcome.empty(data.ids.numpy()), whole):
        seconds = float(partial.seconds.sum())
        rest = judged(clean_digits_model, data, attack, batch_size=5, outcome=partial)
        for name in ("ids", "clean", "robust", "done"):
            assert np.array_equal(getattr(rest, name), getattr(whole, name)), name
        np.testing.assert_allclose(rest.distance, whole.distance, atol=1e-6)
        assert (rest.forward.tolist(), rest.backward.tolist()) == (whole.forward.tolist(), whole.backward.tolist())
        assert rest.seconds.sum() >= seconds


# Examples


class Larger(nn.Module):
    """Class 1 where the second of two pixels is the larger one; linear."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(2))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


def same_examples(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, got in one.items():
        assert got.dtype == other[name].dtype, name
        np.testing.assert_allclose(got, other[name], atol=1e-3, err_msg=name)


def test_the_first_images_are_kept_with_what_the_attack_made_of_them(built: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """FGSM lowers the pixel of the true class by .1 and raises the other one, inside [0, 1]; wrong images are left alone."""
    pixels = [[200, 100], [120, 100], [100, 120], [100, 120], [255, 0], [5, 10], [3, 200], [9, 9]]
    monkeypatch.setattr("robustbench_lab.evaluation.keepers.examples.EXAMPLES", 6)
    labels, ids = torch.tensor([0, 0, 0, 1, 0, 1, 1, 0]), torch.tensor([70, 3, 9, 4, 1, 0, 2, 5])
    data = ImageSet(torch.tensor(pixels, dtype=torch.uint8).view(8, 1, 1, 2), labels, ids)
    examples = examples_of(Defended(Larger()), data, built("attack", "fgsm"), batch_size=4)
    assert {name: array.dtype for name, array in examples.items()} == {
        "index": np.int64, "x": np.uint8, "delta": np.float16, "label": np.int64, "clean_prediction": np.int64, "prediction": np.int64,
    }  # fmt: skip
    assert examples["index"].tolist() == [70, 3, 9, 4, 1, 0]
    assert examples["x"].shape == examples["delta"].shape == (6, 1, 1, 2)
    assert examples["x"].reshape(6, 2).tolist() == pixels[:6]
    expected = [[-0.1, 0.1], [-0.1, 0.1], [0, 0], [0.1, -0.1], [-0.1, 0.1], [0.1, -10 / 255]]
    np.testing.assert_allclose(examples["delta"].reshape(6, 2).astype(float), expected, atol=1e-4)
    assert examples["label"].tolist() == [0, 0, 0, 1, 0, 1]
    assert examples["clean_prediction"].tolist() == [0, 0, 1, 1, 0, 1]
    assert examples["prediction"].tolist() == [0, 1, 1, 0, 0, 0]


def test_examples_do_not_depend_on_batches_and_interruptions(
    digits: tuple[ImageSet, ImageSet], clean_digits_model: Defended, built: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robustbench_lab.evaluation.loop.SAVE_EVERY", -1.0)
    monkeypatch.setattr("robustbench_lab.evaluation.keepers.examples.EXAMPLES", 6)
    data, attack, saved = digits[1].subset(torch.arange(12)), built("attack", "pgd", "attack.steps=3"), list[Any]()
    whole, examples = Examples(), Examples()
    outcome = judged(clean_digits_model, data, attack, batch_size=12, keepers=[whole])
    empty = {name: array.copy() for name, array in whole.empty().items()}

    def save(outcome: Outcome) -> None:
        saved.append((deepcopy(outcome), deepcopy(examples.arrays)))

    judged(clean_digits_model, data, attack, batch_size=4, keepers=[examples], save=save)
    assert saved[0][1]["label"].tolist() == [*data.labels[:4].tolist(), -1, -1]
    assert not saved[0][1]["x"][4:].any()
    assert whole.arrays["delta"].any(axis=(1, 2, 3)).tolist() == outcome.clean[:6].tolist()
    for partial, arrays in (*saved, (Outcome.empty(data.ids.numpy()), empty)):
        rest = examples_of(clean_digits_model, data, attack, batch_size=5, outcome=partial, kept={"examples": arrays})
        same_examples(rest, whole.arrays)


# Several attacks, one verdict


def shift(by: float) -> Scripted:
    return Scripted(change=lambda x: x + by)


def test_an_image_is_broken_by_any_attack_and_spared_the_later_ones(data: ImageSet) -> None:
    """.1, .45, .9 and .4999 are right; +.02 breaks .4999, +.08 breaks .45 too, -.02 nothing more."""
    attacks = {"little": shift(0.02), "more": WorstOf(attacks={"a": shift(0.08), "b": shift(-0.02)})}
    attack = WorstOf(attacks=attacks)
    assert [name for name, _ in attack.stages()] == ["little", "more.a", "more.b"]
    examples = Examples()
    outcome = judged(Defended(Threshold()), data, attack, batch_size=5, keepers=[examples])
    assert outcome.robust.tolist() == [True, False, False, True, False]
    assert outcome.broken_by.tolist() == [-1, 1, -1, -1, 0]
    assert outcome.survivors() == [3, 2, 2]
    np.testing.assert_allclose(outcome.distance, [0.02, 0.08, np.nan, 0.02, 0.02], atol=1e-6)
    # What broke an image is shown, or the last attempt.
    np.testing.assert_allclose(examples.arrays["delta"].flatten().astype(float), [-0.02, 0.08, 0, -0.02, 0.02], atol=1e-4)
    assert examples.arrays["clean_prediction"].tolist() == [0, 0, 1, 1, 0]
    assert examples.arrays["prediction"].tolist() == [0, 1, 1, 1, 1]
    assert attacks["little"].seen == pytest.approx([0.1, 0.45, 0.9, 0.4999])
    assert [pixel for _, stage in attack.stages()[1:] for pixel in stage.seen] == pytest.approx([0.1, 0.45, 0.9, 0.1, 0.9])
    x, y = data.images[[0, 1, 4]], data.labels[[0, 1, 4]]
    alone = attack(Defended(Threshold()), x, y, BUDGET, ImageRandom.of(torch.arange(3), 0))
    assert alone.flatten().tolist() == pytest.approx([0.08, 0.53, 0.5199])


def test_each_attack_is_judged_on_the_defended_model(data: ImageSet, built: Callable[..., Any]) -> None:
    """The first attack breaks every image of the twin, which slopes the other way, and none of the defended model."""
    defended, twin = Defended(Threshold()), Defended(Threshold(-1.0))
    attack = WorstOf(attacks={"fgsm": built("attack", "fgsm"), "shift": shift(0.08)})
    outcome = judged(defended, data, attack, attacker_view(white("twin"), defended, twin, undefended=False))
    assert outcome.survivors() == [4, 2]


def test_a_list_of_attacks_needs_what_its_parts_need(built: Callable[..., Any]) -> None:
    mixed = WorstOf(attacks={"one": built("attack", "random_fgsm"), "two": built("attack", "pgd")})
    assert (mixed.norms, mixed.needs_finite_ball, mixed.needs_gradients, mixed.needs_logits) == (("linf",), True, True, True)
    with pytest.raises(LabError, match=r"^budget\.norm"):
        mixed.check(Budget("l2", 1))
    with pytest.raises(LabError, match=r"^attack\.alpha"):
        mixed.check(Budget("linf", 0.01))
    for wrong in ({}, [], {"one": 1}, None):
        with pytest.raises(LabError, match=r"^attacks: expected a mapping from names \(each an Attack\) of one or more, got "):
            WorstOf(attacks=wrong)  # type: ignore[arg-type]


def test_what_a_rounded_search_believes_broken_is_attacked_again_in_full_precision(
    digits: tuple[ImageSet, ImageSet], clean_digits_model: Defended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fast copy that sees every image broken would let all of them go; the judge sends them back, to the model itself."""
    asked = []

    @dataclass(frozen=True, kw_only=True)
    class Asking(Attack):
        def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
            asked.append((len(x), bool((model(x).argmax(1) != y).all())))
            return x.clone()

    monkeypatch.setattr("robustbench_lab.models.fast_copy.FastCopy.forward", lambda self, x: -self.run(x))
    data = digits[1].subset(torch.arange(20))
    outcome = judged(clean_digits_model, data, Asking(), batch_size=20)
    right = int(outcome.clean.sum())
    assert asked == [(right, True), (right, False)]
    assert outcome.robust.sum() == right
    assert outcome.forward.tolist() == [2 * right]


def test_an_example_of_an_image_that_was_attacked_again_shows_the_second_attack(data: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustbench_lab.models.fast_copy.FastCopy.forward", lambda self, x: -self.run(x))
    calls = []
    attack = Scripted(change=lambda x: calls.append(len(x)) or x + 0.08 * (len(calls) > 1))
    examples = examples_of(Defended(Threshold()), data, attack, batch_size=5)
    assert calls == [4, 4]
    np.testing.assert_allclose(examples["delta"].flatten().astype(float), [0.08, 0.08, 0, 0.08, 0.08], atol=1e-4)
    assert examples["prediction"].tolist() == [0, 1, 1, 1, 1]


# Random output


class Noisy(Threshold):
    """Class 1 where the pixel and noise of the same size as the budget exceed .5."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.randn(len(x), 1, 1, 1))


def test_the_verdict_on_random_output_is_drawn_afresh(data: ImageSet) -> None:
    """.1 and .9 are right in every draw of ten; .45, .55 and .4999 in some."""
    model = Defended(Noisy(), stochastic=True)
    state = torch.get_rng_state()
    outcome = judged(model, data, shift(0.0), draws=40, batch_size=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert outcome.right[[0, 3]].tolist() == [1, 1]
    assert ((outcome.clean_right > 0) & (outcome.clean_right < 1))[[1, 2, 4]].all()
    assert outcome.robust.tolist() == [True, False, False, True, False]  # right in every draw
    assert (outcome.right <= outcome.clean_right).all()
    again = judged(model, data, shift(0.0), draws=40, batch_size=5)
    assert again.right.tolist() == outcome.right.tolist()
    assert judged(model, data, shift(0.0), draws=40, batch_size=5, seed=1).right.tolist() != outcome.right.tolist()
    worse = judged(model, data, shift(0.08), draws=40, batch_size=5)
    assert (worse.right[[0, 3]] > 0.9).all()
    assert worse.right[1] < outcome.right[1] - 0.2


def test_examples_of_random_output_tell_the_first_draw(data: ImageSet) -> None:
    """+.08 hurts .45 in more draws than no change does, which comes last."""
    attack = WorstOf(attacks={"more": shift(0.08), "none": shift(0.0)})
    kept = Examples()
    outcome = judged(Defended(Noisy(), stochastic=True), data, attack, draws=40, batch_size=5, keepers=[kept])
    examples = kept.arrays
    assert 0 < outcome.right[1] < outcome.clean_right[1]
    assert float(examples["delta"][1].item()) == pytest.approx(0.08, abs=1e-4)
    assert ((examples["clean_prediction"] == examples["label"]) == outcome.clean).all()
    generators = torch.random.get_rng_state()
    with drawn(True, 0, "verdict", 0):
        first = predictions(Defended(Noisy(), stochastic=True), data.images)
    assert torch.equal(torch.random.get_rng_state(), generators)
    assert examples["clean_prediction"].tolist() == first.tolist()
    with drawn(True, 0, "verdict", 0):
        first = predictions(Defended(Noisy(), stochastic=True), data.images + 0.08)
    assert examples["prediction"].tolist() == first.tolist()


def test_the_attacker_averages_over_the_draws(data: ImageSet, built: Callable[..., Any]) -> None:
    model = Defended(Noisy(), stochastic=True)
    outcome = judged(model, data, built("attack", "pgd", "attack.steps=3"), draws=4, eot_samples=7, batch_size=5)
    attacked = int((outcome.clean_right > 0).sum())
    assert outcome.forward.tolist() == outcome.backward.tolist() == [7 * 3 * attacked]
    constant = Averaged(Defended(Threshold()), 3)
    x = torch.tensor([0.2, 0.7]).view(2, 1, 1, 1)
    torch.testing.assert_close(constant(x), Threshold()(x))


# A failed attack is an error, never a score


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x + 0.1001, r"attack Scripted left the budget: linf distance 0\.1001"),
        (lambda x: x * torch.nan, r"attack Scripted returned pixels that are not finite"),
        (
            lambda x: x.expand(-1, 3, -1, -1),
            r"attack Scripted returned images of shape \(2, 3, 1, 1\), expected \(2, 1, 1, 1\)",
        ),
        (lambda x: x[:1], r"attack Scripted returned images of shape \(1, 1, 1, 1\)"),
    ],
)
def test_a_failed_attack(change: Callable[[Tensor], Tensor], message: str, data: ImageSet) -> None:
    with pytest.raises(LabError, match=message):
        judged(Defended(Threshold()), data, Scripted(change=change))


def test_pixels_outside_the_box() -> None:
    x = torch.tensor([0.95, 0.02]).view(2, 1, 1, 1)
    check_images(x.clamp(0.01, 0.99), x, BUDGET, "Any")
    with pytest.raises(LabError, match=r"attack Any left the budget: .*pixels .* to 1\.0"):
        check_images(x + 0.06, x, BUDGET, "Any")
    with pytest.raises(LabError, match=r"attack Any left the budget: .*pixels -0\.0"):
        check_images(x - 0.03, x, BUDGET, "Any")


def test_a_gradient_that_is_not_finite_is_an_error(data: ImageSet, built: Callable[..., Any]) -> None:
    """The root of a number that is zero forward has no slope: an attack that stood still would call it robust."""

    class Masked(Threshold):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + (x - x.detach()).square().flatten(1).sum(1, keepdim=True).sqrt()

    model = Defended(Masked())
    for overrides in ((), ("attack.keep=last",), ("attack.keep=best",), ("attack.restarts=2", "attack.keep=best")):
        with pytest.raises(LabError, match="attack PGD returned pixels that are not finite"):
            judged(model, data, built("attack", "pgd", *overrides))


def test_a_model_whose_output_is_not_finite(data: ImageSet) -> None:
    class Bad(Threshold):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return logits.masked_fill(x.flatten(1) > 0.89, torch.nan)

    with pytest.raises(LabError, match=r"output is not finite for 1 of 2 images of a batch: image 8"):
        judged(Defended(Bad()), data, Scripted(change=lambda x: x))
    assert predictions(Defended(Bad()), torch.tensor([0.3, 0.7]).view(2, 1, 1, 1)).tolist() == [0, 1]


def test_a_model_that_breaks_on_the_way(data: ImageSet, built: Callable[..., Any]) -> None:
    """NaN just above .92: FGSM does not go there from .45; from .9 it would go down; noise does."""

    class Trap(Threshold):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).masked_fill(x.flatten(1) > 0.92, torch.nan)

    @dataclass(frozen=True, kw_only=True)
    class Up(Attack):
        def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
            model(budget.project(x + 0.05, x))
            return x

    with pytest.raises(LabError, match=r"^attack Up: the model's output is not finite for 1 images, found on the way from image 8; "):
        judged(Defended(Trap()), data, Up(), batch_size=5)
    assert judged(Defended(Trap()), data, built("attack", "fgsm"), batch_size=5).clean.sum() == 4


def test_a_budget_that_the_attack_cannot_search(data: ImageSet, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=r"^budget\.norm"):
        judged(Defended(Threshold()), data, built("attack", "random_fgsm"), budget=Budget("l2", 0.5))


# Views


class Half(Front):
    def transform(self, x: Tensor) -> Tensor:
        return x / 2


class Learned(Half):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))


def test_a_search_on_an_ensemble_differentiates_single_draws(data: ImageSet, built: Callable[..., Any]) -> None:
    """An ensemble of 4 noisy passes: FGSM with EOT over 3 draws sends 3 passes an image, and the verdict 4."""

    class Noisy(Threshold):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            type(self).calls += len(x)
            return super().forward(x + 0.001 * torch.randn_like(x))

    model = Defended(Noisy(), passes=4, stochastic=True)
    outcome = judged(model, data, built("attack", "fgsm"), eot_samples=3, batch_size=5)
    attacked = int((outcome.clean_right > 0).sum())
    assert outcome.forward.tolist() == [3 * attacked]
    assert Noisy.calls == 4 * 5 + 3 * attacked + 4 * attacked


@pytest.mark.parametrize("answers", ["logits", "labels"])
def test_queries_answer_but_give_no_gradient(answers: str, data: ImageSet, built: Callable[..., Any]) -> None:
    model = Defended(Threshold())
    view = attacker_view(white("queries", answers), model, None, undefended=True)
    assert isinstance(view, Queries)
    x = torch.tensor([0.1, 0.9]).view(2, 1, 1, 1)
    expected = model(x) if answers == "logits" else torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert torch.equal(view(x), expected)
    with pytest.raises(LabError, match=r"^threat_model\.sees=queries gives no gradient"):
        judged(model, data, built("attack", "fgsm"), view)
    assert judged(model, data, Scripted(change=lambda x: x), view).robust.sum() == 4
    with frozen(view) as target:
        counted = Counted(target)
        with torch.no_grad():
            counted(x)
    assert (counted.forward_images, counted.backward_images) == (2, 0)
    assert view.own_loss is model.own_loss


@pytest.mark.parametrize("answers", ["logits", "labels"])
def test_what_an_attack_needs_and_the_threat_model_hides(answers: str, built: Callable[..., Any]) -> None:
    class Labels(Attack):
        needs_gradients, needs_logits = False, False
        search = Scripted.search

    class Logits(Labels):
        needs_logits = True

    check_view(white(), built("attack", "pgd"))
    check_view(white("queries", answers), Labels())
    with pytest.raises(LabError, match=r"^threat_model\.sees=queries gives no gradient"):
        check_view(white("queries", answers), built("attack", "pgd"))
    if answers == "labels":
        with pytest.raises(LabError, match=r"^threat_model\.answers=labels hides the logits"):
            check_view(white("queries", answers), Logits())
    else:
        check_view(white("queries", answers), Logits())


def test_queries_are_answered_by_the_fast_copy_and_judged_without_it(
    digits: tuple[ImageSet, ImageSet], clean_digits_model: Defended
) -> None:
    data, seen = digits[1].subset(torch.arange(10)), []

    @dataclass(frozen=True, kw_only=True)
    class Looking(Attack):
        def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
            seen.append(type(model.model.model).__name__)  # type: ignore[union-attr]
            return x

    judged(clean_digits_model, data, Looking(), attacker_view(white("queries"), clean_digits_model, None, undefended=True))
    assert set(seen) == {"FastCopy"}


def test_views() -> None:
    plain, source = Defended(Threshold()), Defended(Threshold())
    fronted, learned = Defended(Threshold(), [Half()]), Defended(Threshold(), [Learned()])
    for model in (plain, fronted, learned):
        assert attacker_view(white("defended"), model, None, undefended=False) is model
        assert attacker_view(white("substitute"), model, source, undefended=False) is source
    assert attacker_view(white("learned"), plain, None, undefended=True) is plain
    without = attacker_view(white("learned"), fronted, None, undefended=False)
    assert isinstance(without, Defended)
    assert not len(without.fronts)
    assert without.network is fronted.network
    for model in (plain, learned):
        with pytest.raises(LabError, match=r"^threat_model\.sees=learned hides the fixed pre-processing, but"):
            attacker_view(white("learned"), model, None, undefended=False)


def test_the_white_box_goes_through_the_front(built: Callable[..., Any]) -> None:
    """Half(.9) = .45 counts as class 0: the verdict needs the front, and so does the slope."""
    data = ImageSet(torch.full((1, 1, 1, 1), 0.9), torch.tensor([0]), torch.tensor([0]))
    model = Defended(Threshold(), [Half()])
    outcome = judged(model, data, built("attack", "fgsm"))
    assert outcome.clean.all()
    assert outcome.robust.all()  # Half(1.0) = .5 is not above the threshold
    assert not judged(Defended(Threshold()), data, built("attack", "fgsm")).clean.any()


# Records


def record_with(outcome: Outcome, stages: list[str], stochastic: bool) -> dict[str, Any]:
    overrides = ["attack=worst_of"]
    cfg, choices = compose("evaluate", overrides)
    return record_of(evaluation_of(cfg, choices, overrides), outcome, stages, {"run": "digest"}, Circumstances(2, stochastic, 1, "cpu"))


def test_a_record_tells_the_worst_draw_and_the_mean(data: ImageSet) -> None:
    """Four draws: the first image is always right, the second in half of them when attacked, the third never, two are wrong anyway."""
    outcome = Outcome.empty(data.ids.numpy(), stages=2)
    outcome.clean[:] = [True, True, True, True, False]
    outcome.clean_right[:] = [1, 1, 1, 0.75, 0]
    outcome.right[:] = [1, 0.5, 0, 0.25, 0]
    outcome.broken_by[:] = [-1, -1, 0, -1, -1]
    outcome.distance[:4] = [0.1, 0.1, 0.05, 0.1]
    outcome.forward[:], outcome.backward[:], outcome.seconds[:] = [8, 4], [4, 0], [2.0, 1.0]
    record = record_with(outcome, ["one", "two"], stochastic=True)
    assert (record["clean_correct"], record["robust_correct"], record["attacked"], record["n"]) == (4, 1, 4, 5)
    assert record["draws"] == {"count": 10, "clean_accuracy_mean": pytest.approx(0.75), "robust_accuracy_mean": pytest.approx(0.35)}
    assert record["stages"] == [
        {"attack": "one", "survivors": 3, "forward_per_attacked_image": 2, "backward_per_attacked_image": 1, "seconds": 2},
        {"attack": "two", "survivors": 3, "forward_per_attacked_image": 1, "backward_per_attacked_image": 0, "seconds": 1},
    ]
    assert (record["forward_per_attacked_image"], record["seconds"]) == (3, 3)
    assert record["distance_of_broken"]["mean"] == pytest.approx(0.05)
    assert record_with(outcome, ["one", "two"], stochastic=False)["draws"] is None


def test_passes_are_told_by_the_images_that_each_stage_searched(data: ImageSet) -> None:
    """Of four images, four had the first attack's examples from before and two the second's: 8 passes on the other two."""
    outcome = Outcome.empty(data.ids.numpy(), stages=2)
    outcome.clean[:4], outcome.distance[:4] = True, 0.1
    outcome.reused[:], outcome.forward[:] = [4, 2], [0, 8]
    record = record_with(outcome, ["one", "two"], stochastic=False)
    assert [stage["forward_per_attacked_image"] for stage in record["stages"]] == [None, 4]
    assert record["forward_per_attacked_image"] == 4


def test_a_record_without_an_attacked_image(data: ImageSet) -> None:
    record = record_with(Outcome.empty(data.ids.numpy()), ["one"], stochastic=False)
    assert (record["attacked"], record["forward_per_attacked_image"], record["distance_of_broken"]["mean"]) == (0, None, None)
    assert record["stages"][0]["forward_per_attacked_image"] is None
    assert "collapsed" in [warning["code"] for warning in record["warnings"]]


# Warnings


def record(accuracy: float = 0.9, sees: str = "defended", source: str | None = None, eot_samples: int = 1, draws: int = 10) -> dict[str, Any]:
    return {
        "clean_accuracy": accuracy,
        "eot_samples": eot_samples,
        "config": {"threat_model": {"sees": sees}, "verdict_draws": draws},
        "run": {"fingerprint": "this"},
        "source": None if source is None else {"fingerprint": source},
    }


@pytest.mark.parametrize(
    ("facts", "stochastic", "codes"),
    [
        (record(), False, []),
        (record(0.1), False, ["collapsed"]),
        (record(0.11), False, []),
        (record(eot_samples=1), True, ["random_output_one_draw"]),
        (record(), True, ["random_output_one_draw"]),
        (record(eot_samples=8), True, []),
        (record(eot_samples=8, draws=1), True, ["random_output_judged_once"]),
        (record(draws=1), False, []),
        (record(sees="twin", source="other"), False, ["transfer_only"]),
        (record(sees="twin", source="this"), False, []),  # the twin of an undefended run is that run: the attacker saw it
        (record(0.05, sees="substitute", source="other"), False, ["collapsed", "transfer_only"]),
        (record(sees="queries"), False, []),
    ],
)
def test_warnings(facts: dict[str, Any], stochastic: bool, codes: list[str]) -> None:
    found = warnings_of(facts, 10, stochastic)
    assert [warning["code"] for warning in found] == codes
    assert all(warning["message"] and len(warning) > 2 for warning in found)
