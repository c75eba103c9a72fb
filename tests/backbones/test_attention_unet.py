"""The Attention U-Net: its size, by formula; its gates; the images that it takes."""

import re

import pytest
import torch
from torch import nn

from robustbench_lab.backbones.attention_unet import AttentionGate, AttentionUNet
from robustbench_lab.errors import LabError


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(("width", "count"), [(64, 34_878_573), (32, 8_726_077), (16, 2_184_741), (8, 547_801)])
def test_its_parameters(width: int, count: int) -> None:
    """As counted by hand from the published layers, 3 channels to 1, four levels."""
    with torch.device("meta"):  # nothing is allocated
        assert parameters(AttentionUNet(3, 1, width, 4)) == count


def test_maps_are_as_large_as_the_images() -> None:
    assert AttentionUNet(3, 2, 4, 4)(torch.rand(2, 3, 32, 16)).shape == (2, 2, 32, 16)
    assert AttentionUNet(1, 1, 4, 2)(torch.rand(2, 1, 28, 8)).shape == (2, 1, 28, 8)


@torch.no_grad()
def test_a_gate_multiplies_the_skipped_maps_by_one_number_a_pixel() -> None:
    """By hand, in eval mode, where BatchNorm here is the identity up to 1e-5: sigmoid(2 relu(.5 g + .25 s))."""
    gate = AttentionGate(1, 1).eval()
    for layer, weight in ((gate.of_gate, 0.5), (gate.of_skip, 0.25), (gate.psi, 2.0)):
        nn.init.constant_(layer.conv.weight, weight)
        nn.init.zeros_(layer.conv.bias)
    skip, deep = torch.tensor([4.0, -8.0]).view(1, 1, 1, 2), torch.tensor([2.0, 2.0]).view(1, 1, 1, 2)
    expected = skip * torch.sigmoid(torch.tensor([2 * 2.0, 0.0])).view(1, 1, 1, 2)
    torch.testing.assert_close(gate(skip, deep), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_with_open_gates_it_is_the_plain_u_net() -> None:
    """psi = 1: what was skipped is put together with what comes from below, unchanged."""
    net, x = AttentionUNet(2, 1, 4, 2).eval(), torch.rand(2, 2, 8, 8)
    gated = net(x)
    for gate in net.gates:
        nn.init.zeros_(gate.psi.norm.weight)
        nn.init.constant_(gate.psi.norm.bias, 100.0)
    pool = nn.functional.max_pool2d
    top = net.down[0](x)
    middle = net.down[1](pool(top, 2))
    bottom = net.down[2](pool(middle, 2))
    middle = net.up[0](torch.cat([middle, net.enlarge[0](bottom)], dim=1))
    top = net.up[1](torch.cat([top, net.enlarge[1](middle)], dim=1))
    torch.testing.assert_close(net(x), net.head(top))
    assert not torch.allclose(net(x), gated)


@pytest.mark.parametrize(
    ("levels", "size", "said"),
    [
        (4, (28, 28), "halved 4 times, multiples of 16 of at least 16 pixels (levels=2 takes these), got '28x28'"),
        (4, (8, 8), "(levels=3 takes these), got '8x8'"),
        (2, (8, 6), "halved 2 times, multiples of 4 of at least 4 pixels (levels=1 takes these), got '8x6'"),
        (1, (7, 8), "(no other number takes sides that are odd), got '7x8'"),
    ],
)
def test_images_that_cannot_be_halved_so_often(levels: int, size: tuple[int, int], said: str) -> None:
    with pytest.raises(LabError, match=f"^levels: expected images whose sides can be .*{re.escape(said)}$"):
        AttentionUNet(1, 1, 2, levels)(torch.rand(2, 1, *size))


@pytest.mark.parametrize(("knob", "value"), [("width", 1), ("levels", 0), ("channels", 0), ("out_channels", 0)])
def test_a_wrong_knob_is_named(knob: str, value: int) -> None:
    with pytest.raises(LabError, match=f"^{knob}: "):
        AttentionUNet(**{"channels": 1, "out_channels": 1, "width": 2, "levels": 1, knob: value})
