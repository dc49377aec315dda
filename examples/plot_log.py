"""Draw the loss curve of a log: python examples/plot_log.py losses.jsonl loss.png"""

import json
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

if len(sys.argv) != 3 or sys.argv[1].startswith("-"):
    sys.exit(__doc__)
log, picture = sys.argv[1:]
with open(log, encoding="utf-8") as file:
    lines = [json.loads(line) for line in file]
width = max(1, len(lines) // 100)  # each point is the mean of this many steps
points = [lines[i : i + width] for i in range(0, len(lines), width)]
measured = [line for line in lines if "val_loss" in line]

figure, axes = pyplot.subplots(figsize=(7, 4))
means = [sum(line["loss"] for line in point) / len(point) for point in points]
axes.plot([point[-1]["step"] for point in points], means, label="training")
if measured:
    steps, losses = zip(*((line["step"], line["val_loss"]) for line in measured), strict=True)
    axes.plot(steps, losses, label="validation")
axes.set(xlabel=f"step (of {lines[-1]['seconds']:.0f} seconds in all)", ylabel="loss")
axes.legend()
figure.savefig(picture, dpi=90, bbox_inches="tight")
