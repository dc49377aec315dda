"""Tell two moons apart with a small network of scalar Values, in the manner of micrograd's demo.

    python examples/two_moons.py                     train, print loss and accuracy
    python examples/two_moons.py moons.png           draw the decision boundary too (Matplotlib)

After https://github.com/karpathy/micrograd: 100 points, a network of 2, 16, 16 and 1 neurons with
337 parameters, the max-margin loss, and gradient descent written out. Only Value is imported.
"""

import argparse
import importlib.util
import math
import os
import random
from itertools import pairwise

from microgpt import Value, no_grad


def two_moons(n, noise, rng):
    """Return n points on two half circles, with noise, and their labels, 1 and -1."""
    points, labels = [], []
    for i in range(n):
        angle = math.pi * (i // 2) / (n // 2 - 1)
        x, y = math.cos(angle), math.sin(angle)
        label = 1 if i % 2 else -1
        if label == 1:
            x, y = 1 - x, 0.5 - y
        points.append((x + rng.gauss(0, noise), y + rng.gauss(0, noise)))
        labels.append(label)
    return points, labels


class MLP:
    """A network of layers of neurons; each but the last ends in a relu."""

    def __init__(self, sizes, rng):
        self.layers = [
            [([Value(rng.uniform(-1, 1)) for _ in range(nin)], Value(0)) for _ in range(nout)]
            for nin, nout in pairwise(sizes)
        ]

    def __call__(self, x):
        for layer in self.layers:
            x = [sum((w * xi for w, xi in zip(weights, x, strict=True)), bias)
                 for weights, bias in layer]  # fmt: skip
            if layer is not self.layers[-1]:
                x = [neuron.relu() for neuron in x]
        return x[0]

    def parameters(self):
        return [p for layer in self.layers for weights, bias in layer for p in (*weights, bias)]


def loss_and_accuracy(model, points, labels):
    """Return the max-margin loss, with a penalty on large weights, and the accuracy."""
    scores = [model(point) for point in points]
    losses = [(1 - label * score).relu() for label, score in zip(labels, scores, strict=True)]
    penalty = 1e-4 * sum(p * p for p in model.parameters())
    right = sum((score.data > 0) == (label > 0)
                for label, score in zip(labels, scores, strict=True))  # fmt: skip
    return sum(losses) * (1 / len(losses)) + penalty, right / len(labels)


def train(model, points, labels, steps):
    for step in range(steps):
        loss, accuracy = loss_and_accuracy(model, points, labels)
        for p in model.parameters():
            p.grad = 0
        loss.backward()
        learning_rate = 1.0 - 0.9 * step / steps
        for p in model.parameters():
            p.data -= learning_rate * p.grad
        if step % 10 == 9:
            print(f"step {step + 1:3} | loss {loss.data:.4f} | accuracy {accuracy:.0%}")


def draw(model, points, labels, picture):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def axis(values):
        least, most = min(values) - 0.4, max(values) + 0.4
        return [least + (most - least) * i / 79 for i in range(80)]

    xs, ys = axis([x for x, _ in points]), axis([y for _, y in points])
    with no_grad():
        scores = [[model((x, y)).data for x in xs] for y in ys]
    figure, axes = pyplot.subplots(figsize=(5, 4))
    axes.contourf(xs, ys, scores, levels=[-math.inf, 0, math.inf], colors=["#9ecae1", "#fdae6b"])
    axes.scatter(*zip(*points, strict=True), c=labels, cmap="coolwarm", edgecolors="black", s=25)
    figure.savefig(picture, dpi=90, bbox_inches="tight")


def picture_asked_for():
    """Return the path on the command line or None; a picture that cannot be drawn is an error."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("picture", nargs="?", help="a file to draw the decision boundary in")
    path = parser.parse_args().picture
    if path and not os.path.isdir(os.path.dirname(path) or "."):
        parser.error(f"the folder of {path} does not exist")
    if path and importlib.util.find_spec("matplotlib") is None:
        parser.error("a picture needs Matplotlib: pip install matplotlib")
    return path


if __name__ == "__main__":
    picture = picture_asked_for()
    rng = random.Random(1337)
    points, labels = two_moons(100, 0.1, rng)
    model = MLP([2, 16, 16, 1], rng)
    print(f"num params: {len(model.parameters())}")
    train(model, points, labels, 100)
    if picture:
        draw(model, points, labels, picture)
