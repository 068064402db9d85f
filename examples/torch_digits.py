"""Train a small PyTorch network on the digits, with this package's loss and with PyTorch's."""

from __future__ import annotations

import time

import torch
from sklearn.datasets import load_digits

import softce_fast.torch

STEPS = 100


def train(loss_function: torch.nn.Module) -> tuple[list[float], float]:
    """Return the losses step by step, and the seconds that it took."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    losses = []
    start = time.perf_counter()
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_function(network(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, time.perf_counter() - start


def main() -> dict[str, list[float]]:
    curves = {}
    for module in (softce_fast.torch, torch.nn):
        loss_function = module.CrossEntropyLoss(label_smoothing=0.1)
        curves[module.__name__], seconds = train(loss_function)
        print(f"{module.__name__}: {curves[module.__name__][-1]:.5f} after {seconds:.2f} s")
    return curves


if __name__ == "__main__":
    main()
