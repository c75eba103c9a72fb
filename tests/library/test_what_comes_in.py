"""Images, labels and models as programs have them: what is taken, and what is refused with what to do."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import robustbench_lab as lab

PIXELS = [0.1, 0.45, 0.55, 0.9, 0.4999]  # class 1 above .5: right but the third; within .1 of the border: the second and the fifth
X, Y = torch.tensor(PIXELS).view(5, 1, 1, 1), torch.tensor([0, 0, 0, 1, 0])
CLEAN, ROBUST = [True, True, False, True, True], [True, False, False, True, False]


class Threshold(nn.Module):
    """Logits -s and s, of s = pixel - .5, as `answer` gives them."""

    def __init__(self, answer: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.gain, self.answer = nn.Parameter(torch.ones(())), answer

    def forward(self, x: Tensor) -> Any:
        score = self.gain * (x.flatten(1)[:, :1] - 0.5)
        return self.answer(torch.cat([-score, score], dim=1))


class Pair(NamedTuple):
    features: Tensor
    logits: Tensor


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter(zip(X, Y.tolist(), strict=True))


class Pictures(Dataset):
    """Pairs of whatever a program makes of them."""

    def __init__(self, x: Any = lambda i: X[i].numpy(), y: Any = lambda i: int(Y[i])) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.x(i), self.y(i)


def judged(model: Any = None, x: Any = X, y: Any = Y, **how: Any) -> lab.Result:
    return lab.evaluate(model or Threshold(), x, y, **{"attack": "fgsm", "eps": 0.1, "panel": False, **how})


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (X, Y),
        (X.numpy(), Y.numpy().astype(np.uint8)),
        (X.double(), Y.int()),
        (X.numpy()[::-1][::-1], Y),
        (TensorDataset(X, Y), None),
        (DataLoader(TensorDataset(X, Y), batch_size=2), None),
        (DataLoader(Pictures(), batch_size=3), None),
        (Pictures(), None),
        (Stream(), None),
    ],
)
def test_the_same_images_in_whatever_form(x: Any, y: Any) -> None:
    """The verdicts by hand: an image within .1 of the border is broken, and only by as much as it takes."""
    result = judged(x=x, y=y, keep_x_adv=True)
    assert (result.clean.tolist(), result.robust.tolist(), result.n) == (CLEAN, ROBUST, 5)
    assert result.broken_by.tolist() == ["", "FGSM", "", "", "FGSM"]
    assert (result.clean_accuracy, result.robust_accuracy) == (0.8, 0.4)
    low, high = result.robust_interval  # Wilson 1927 by hand: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), p = .4, n = 5
    assert (round(low, 4), round(high, 4)) == (0.1176, 0.7693)
    assert type(result.x_adv) is (np.ndarray if isinstance(x, np.ndarray) else Tensor)
    assert result.x_adv.shape == X.shape
    assert result.x_adv.dtype == (x.dtype if isinstance(x, Tensor | np.ndarray) else torch.float32)
    np.testing.assert_allclose(result.x_adv.reshape(-1), [0.2, 0.55, 0.55, 0.8, 0.5999], atol=1e-6)
    np.testing.assert_allclose(result.distance, [0.1, 0.1, np.nan, 0.1, 0.1], atol=1e-6)


FOUR = torch.rand(4, 3, 8, 8)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ((255 * X).byte(), Y, r"x: expected floating-point pixels in \[0, 1\], got uint8; divide them: x / 255"),
        ((255 * X).long(), Y, r"got int64; convert them: x.float\(\) / 255"),
        (255 * X, Y, r"x: expected pixels in \[0, 1\], got values from 25.5 to 229.5; divide them: x / 255"),
        ((X - 0.5) / 0.2, Y, r"got values from -2 to 2; undo the normalisation, and let the model do it"),
        (X.where(X < 0.9, torch.nan), Y, r"x: expected finite pixels in \[0, 1\], got nan or inf, first in image 3"),
        (FOUR.permute(0, 2, 3, 1), Y[:4], r"x: expected images \[B, C, H, W\], got shape \[4, 8, 8, 3\], with the channels last; move"),
        (X[:, 0], Y, r"got shape \[5, 1, 1\]; x\[:, None\] for grey images \[B, H, W\], x\[None\] for one image"),
        (X.flatten(1), Y, r"got shape \[5, 1\]; give each row as an image of one pixel, x\[:, :, None, None\]"),
        (X.tolist(), Y, r"x: expected a torch tensor or a numpy array of images.*or a DataLoader.*, got a list"),
        (np.array([None]), Y, r"x: expected a torch tensor or a numpy array.*, got an array of object"),
        (X[:0], Y[:0], "x: expected at least one image, got none"),
        (X, Y[:4], "y: expected 5 labels, one for each image of x, got 4"),
        (X, None, "y: expected the images' classes, whole numbers"),
        (X, Y.float(), r"y: expected whole numbers, got float32; convert them: y.long\(\)"),
        (X, nn.functional.one_hot(Y), r"y: expected one class for each image.*got shape \[5, 2\]; give y.argmax\(1\), if they are one-hot"),
        (X, Y[:, None], r"got shape \[5, 1\]; give y.squeeze\(1\)"),
        (X, Y + 1, "y: expected classes 0 to 1, of which the model gives 2, got 2 for image 3; number the classes from 0"),
        (X, -Y, "y: expected classes 0 to 1, of which the model gives 2, got -1 for image 3"),
        (TensorDataset(X, Y), Y, r"y: expected none, for what brings its labels \(a TensorDataset\), got a Tensor; name what follows"),
        (TensorDataset(X), None, r"x: expected pairs \(x, y\) from TensorDataset, got 1 things"),
        (DataLoader([{"x": X[0], "y": 0}]), None, r"x: expected pairs \(x, y\) from DataLoader, got a dict"),
        (Pictures(lambda i: "a picture"), None, r"x: expected a Dataset of tensors, got a str from Pictures; give it transform=.*ToTensor"),
        (Pictures(lambda i: torch.zeros(1, 1, 1 + i)), None, r"x: expected images of one size, got \[1, 1, 1\] and \[1, 1, 2\] and"),
    ],
)  # fmt: skip
def test_images_and_labels_that_are_refused(x: Any, y: Any, message: str) -> None:
    with pytest.raises(lab.LabError, match=message):
        judged(x=x, y=y)


def test_what_a_forward_returns_besides_logits() -> None:
    answers: dict[str | int, Callable[[Tensor], Any]] = {
        1: lambda logits: (logits.exp(), logits),
        "out": lambda logits: {"out": logits, "aux": logits},
        "logits": lambda logits: Pair(logits.exp(), logits),
        -1: lambda logits: [logits.exp(), logits],
    }
    for output, answer in answers.items():
        assert judged(Threshold(answer), output=output).robust.tolist() == ROBUST, output
    with pytest.raises(lab.LabError, match=r"output: expected what chooses one tensor of what the model returns, from 0 to 1, got None"):
        judged(Threshold(answers[1]))
    with pytest.raises(lab.LabError, match=r"returns, one of 'out', 'aux', got 'logits'"):
        judged(Threshold(answers["out"]), output="logits")
    with pytest.raises(lab.LabError, match=r"from 0 to 1 \(features, logits\), got 2"):
        judged(Threshold(answers["logits"]), output=2)
    with pytest.raises(lab.LabError, match=r"none \(it is one tensor\), got 'logits'"):
        judged(output="logits")


def test_models_that_are_refused() -> None:
    refused = [
        (lambda x: x, "model: expected a torch.nn.Module.*got a function"),
        (Threshold().half(), r"model: expected float32, got float16 \(gain\).*copy.deepcopy\(model\).float\(\)"),
        (Threshold().double(), "model: expected float32, got float64"),
        (nn.Conv2d(3, 4, 1), r"model: its forward fails on images of shape \[5, 1, 1, 1\], float32 in \[0, 1\], on cpu: RuntimeError"),
        (nn.Conv2d(1, 4, 1), r"model: expected logits \[B, K\], one row for each of 5 images, got shape \[5, 4, 1, 1\]"),
        (Threshold(lambda logits: logits.argmax(1)), r"model: expected logits.*got shape \[5\]"),
        (Threshold(lambda logits: (logits > 0).long()), "model: expected logits, floating-point numbers, got int64"),
        (Threshold(lambda logits: logits / 0), "the model's output is not finite for 5 of 5 images"),
        (Threshold(lambda logits: logits if len(logits) > 2 else logits[0]), r"model: expected logits \[B, K\].*of [12] images"),
    ]  # fmt: skip
    for model, message in refused:
        with pytest.raises(lab.LabError, match=message):
            judged(model, attack="pgd")


def test_probabilities_are_told_and_attacked_by_their_logarithm() -> None:
    """A confident softmax has no gradient that float32 can hold; of the logarithm it has: three images of five stand, two do not."""
    sharp = Threshold(lambda logits: (60 * logits).softmax(1))
    as_logits = judged(sharp)
    assert [warning["code"] for warning in as_logits.warnings] == ["probabilities"]
    assert "say gives='probabilities'" in repr(as_logits)
    with_panel = judged(sharp, panel={"images": 3, "queries": {"queries": 5}, "random": {"draws": 5}, "longer": {"steps": 3}})
    assert [warning["code"] for warning in with_panel.warnings].count("probabilities") == 1
    told = judged(sharp, gives="probabilities", panel={"images": 3, "queries": {"queries": 5}, "random": {"draws": 5}})
    assert (told.robust.tolist(), told.warnings) == (ROBUST, [])
    assert (told.distance[1] > 0) & (as_logits.clean == told.clean).all()
    with pytest.raises(lab.LabError, match=r"gives: expected logits, for a model whose rows do not lie in \[0, 1\] and sum to one"):
        judged(gives="probabilities")
    with pytest.raises(lab.LabError, match="gives: expected logits or probabilities, got 'labels'"):
        judged(gives="labels")


@pytest.mark.parametrize("draw", [torch.randn_like, lambda x: torch.from_numpy(np.random.randn(*x.shape)).float()])  # noqa: NPY002
def test_random_output_is_noticed_and_drawn(draw: Callable[[Tensor], Tensor]) -> None:
    """The border lies at .5, but for noise of deviation .02: within .1 of it nothing is right in all of twenty draws."""
    noisy = Threshold(lambda logits: logits + 0.02 * draw(logits))
    one = judged(noisy, draws=20, eot_samples=4)
    np.random.rand(7)  # noqa: NPY002
    two = judged(noisy, draws=20, eot_samples=4)
    assert (one.random_output, one.draws, one.eot_samples) == (True, 20, 4)
    assert one.figures["draws"] == two.figures["draws"], "of torch or of numpy: its draws are seeded"
    assert 0.6 < one.figures["draws"]["clean_accuracy_mean"] < 0.8, "the image at the border is right in some"
    assert one.robust.tolist() == ROBUST
    assert one.warnings == []
    few = judged(noisy, draws=2, eot_samples=1)
    assert [warning["code"] for warning in few.warnings] == ["random_output_one_draw"]
    assert not judged().random_output
    assert (judged(noisy).draws, judged(noisy).eot_samples) == (10, 20), "as conf/evaluate.yaml has them"


def test_the_ball_and_how_to_ask() -> None:
    assert judged(eps=None).eps == 8 / 255
    assert judged(norm="l2", eps=np.float32(0.25)).eps == 0.25
    assert judged(eps="1/10").robust.tolist() == ROBUST
    box = lab.evaluate(Threshold(), X, Y, attack="deepfool", norm="l2", eps=float("inf"))
    np.testing.assert_allclose(box.distance, [0.408, 0.051, np.nan, 0.408, 0.000102], atol=2e-5)  # to the border, and 2 % more
    assert box.panel is None
    assert "nothing looked for hidden gradients" in repr(box)
    for how, message in (
        ({"norm": "l3"}, "norm: expected one of linf, l2, l0, got 'l3'"),
        ({"norm": "l0", "eps": 1}, "budget.norm: expected linf or l2, the norms that attack FGSM has"),
        ({"eps": 8}, "budget.eps: expected at most 1, the farthest that two images are apart in linf, as a fraction"),
        ({"eps": -0.1}, "eps: expected .*>= 0"),
        ({"batch_size": 0}, "batch_size: expected a whole number >= 1, got 0"),
        ({"draws": 0}, "draws: expected a whole number >= 1, got 0"),
        ({"seed": "one"}, "seed: expected a whole number"),
        ({"ids": [1, 2]}, "ids: expected a torch tensor or a numpy array"),
        ({"ids": Y[:2]}, "ids: expected 5 numbers, one for each image, got 2"),
        ({"attack": 3}, 'attack: expected a name, such as "autoattack", or what lab.attack'),
        ({"panel": "ful"}, "panel: there is no 'ful'; the nearest is full"),
        ({"panel": {"image": 3}}, "panel.image: panel=default has no such knob; the nearest is images"),
        ({"device": "tpu"}, "device: expected auto, free, cpu, cuda or cuda:N, got 'tpu'"),
    ):  # fmt: skip
        with pytest.raises(lab.LabError, match=message):
            judged(**how)
