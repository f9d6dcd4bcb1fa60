"""Search the two parameters of a support vector machine that reads handwritten digits (scikit-learn's).

All points of a Latin hypercube learn from few images, the best third from three times as many, and so on.  What is
finished stands in a journal: interrupt this script, or run it again, and only what is missing is computed.
"""

import argparse

import numpy as np
from scipy.stats import loguniform
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from repartir import halving, latin_hypercube, sweep

options = argparse.ArgumentParser(description=__doc__)
options.add_argument("--quick", action="store_true", help="fewer points")
options.add_argument("--out", help="a file for the picture, which needs matplotlib")
args = options.parse_args()

digits, labels = load_digits(return_X_y=True)
learn, held_out, learn_labels, held_out_labels = train_test_split(
    digits, labels, test_size=297, random_state=0
)


def validate(C, gamma, images, rng):
    chosen = rng.permutation(len(learn))
    few, rest = chosen[:images], chosen[-500:]
    model = SVC(C=C, gamma=gamma).fit(learn[few], learn_labels[few])
    return {"accuracy": model.score(learn[rest], learn_labels[rest])}


computed = []
space = latin_hypercube(9 if args.quick else 81, C=loguniform(0.1, 1000), gamma=loguniform(1e-6, 0.1))
rungs = halving("images", [100, 300, 900], metric="accuracy", mode="max")
found = sweep(
    validate, space, repeats=3, seed=1, rungs=rungs, journal="digits_search.db", on_row=computed.append
)
C, gamma, _ = found.best("accuracy", mode="max").params.values()
score = SVC(C=C, gamma=gamma).fit(learn, learn_labels).score(held_out, held_out_labels)
print(f"{len(computed)} of {len(found)} rows computed, the others were in the journal")
print(f"C = {C:.3g}, gamma = {gamma:.2g}: {score:.1%} of {len(held_out)} images never seen before are read")
if args.out:
    from matplotlib import pyplot

    columns = found.columns()
    images, accuracy = np.array(columns["images"]), columns["accuracy"]
    pyplot.scatter(columns["C"], columns["gamma"], images / 5, accuracy, rasterized=True)
    pyplot.colorbar(label="accuracy")
    pyplot.gca().set(xscale="log", yscale="log", xlabel="C", ylabel="gamma")
    pyplot.savefig(args.out)
