#!/usr/bin/env python3
"""A stranger's checkpoint: a ResNet-20 for CIFAR-10 in plain PyTorch, saved as people save them.

    python examples/strangers_resnet20.py resnet20.pt            # 15 epochs of CIFAR-10; minutes on a GPU
    python examples/strangers_resnet20.py resnet20.pt --epochs 2 --images 10000 --device cpu        # two minutes on a CPU

It knows nothing of robustbench_lab: layers are named conv1, bn1, layer1.0.conv1, ..., linear; shortcuts pad zeros around the channels;
images are fed under ImageNet's mean and std; and the file has the state_dict of a DataParallel model under `state_dict`, beside its score.
"""

import argparse
import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import CIFAR10

MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.zeros = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.zeros, self.zeros))
        return F.relu(out + shortcut)


class ResNet20(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean(dim=(2, 3)))


def images_of(root: str, train: bool, device: str) -> tuple[Tensor, Tensor]:
    data = CIFAR10(root, train=train, download=True)
    x = torch.from_numpy(data.data).permute(0, 3, 1, 2).float().div(255)
    return ((x - MEAN) / STD).to(device), torch.tensor(data.targets, device=device)


def augmented(x: Tensor) -> Tensor:
    """Random shifts of up to four pixels and mirror images; one shift for a whole batch is enough here."""
    up, left = torch.randint(0, 9, (2,)).tolist()
    x = F.pad(x, (4, 4, 4, 4))[:, :, up : up + 32, left : left + 32]
    return torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(3), x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", default=os.environ.get("ROBUSTBENCH_LAB_DATA", "data"))
    asked = parser.parse_args()
    torch.manual_seed(0)
    model = nn.DataParallel(ResNet20()) if asked.device == "cuda" else nn.ModuleDict({"module": ResNet20()})
    net = model.to(asked.device)["module"] if isinstance(model, nn.ModuleDict) else model.cuda()
    x, y = (tensor[: asked.images] for tensor in images_of(asked.data, True, asked.device))
    steps = asked.epochs * (len(x) // 128)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=steps)
    for epoch in range(asked.epochs):
        net.train()
        for batch in torch.randperm(len(x), device=asked.device).split(128)[: len(x) // 128]:
            optimizer.zero_grad()
            F.cross_entropy(net(augmented(x[batch])), y[batch]).backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {asked.epochs}", flush=True)
    net.eval()
    x, y = images_of(asked.data, False, asked.device)
    with torch.no_grad():
        right = sum(int((net(some).argmax(1) == labels).sum()) for some, labels in zip(x.split(500), y.split(500), strict=True))
    score = 100 * right / len(y)
    torch.save({"state_dict": model.state_dict(), "best_prec1": score, "epoch": asked.epochs}, asked.file)
    print(f"{asked.file}: {score:.2f} % of the test images")


if __name__ == "__main__":
    main()
