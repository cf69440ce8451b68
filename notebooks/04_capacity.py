# %% [markdown]
# # 4. How much can it hold?
#
# A memory of fixed size cannot keep everything. Here we fill memories with random pairs until they break, watch it
# happen, compare it with what theory promises, and find out what makes one memory hold a dozen times as much as
# another of the same width.
#
# *Fifteen minutes. [Notebook 3](03_learning_at_test_time.ipynb) says how such a memory learns. Equations and
# propositions are those of the paper, [arXiv 2505.23735](https://arxiv.org/abs/2505.23735).*

# %%
import matplotlib.pyplot as plt
import numpy as np

from atlas_kit.memory import Features, Matrix, MemoryConfig, Polynomial
from atlas_kit.memory.capacity import held, least_squares, random_pairs, relative_error, stream
from atlas_kit.memory.trials import TRIALS, Trial
from atlas_kit.widgets import CapacityPlayground, folded, use_page_style

use_page_style()  # figures that read on a light page and on a dark one

# %% [markdown]
# ## The smallest example
#
# A matrix with keys of 8 numbers reads random pairs one after the other, by the Delta rule. After every few pairs we
# ask for *all* pairs so far. A pair counts as found if, of all stored values, the right one is nearest to the answer.

# %%
keys, values = random_pairs(32, d_k=8, d_v=8, seed=1)

for stored in stream(Trial("linear", d=8).config, keys, values, at=[2, 4, 8, 16, 32]):
    recall = stored.recall()
    right = round(recall.accuracy * recall.pairs)
    print(f"{recall.pairs:2} pairs stored, {right:2} found again", "#" * right)

# %% [markdown]
# Up to eight pairs are no trouble. Beyond, most are lost. Eight is the number of numbers in a key, and that is no
# accident.
#
# ## The picture: watch recall break
#
# Press **Start**, and random pairs are stored one by one. On the left is the share that is found again. The picture
# on the right asks for every pair: row $i$ is the answer to key $i$, and shows how alike it is to each of the stored
# values. A good memory has a strong diagonal and nothing else (dark red on a light page, nearly white on a dark one);
# an overfull one fades from the top, where the oldest pairs are.
#
# Then take another preset and press Start again: the curves stay, for comparison.

# %%
playground = CapacityPlayground("Matrix, Delta rule")
playground.compare("Matrix, Delta rule", "Matrix, Omega rule", "Degree 2, Omega rule")
playground

# %% [markdown]
# All three have keys of 16 numbers. The Omega rule, which looks back at the last pairs, gets more out of the same
# matrix. The third one holds several times as many. Its trick is to look at a key *and at the products of its
# numbers*.
#
# ## The equation: why d pairs, and how to get more
#
# When does a matrix $M$ answer all keys rightly? When $k_i M = v_i$ for all $n$ pairs, or, with the keys as the rows
# of $K$, when $K M = V$. For each number of a value these are $n$ equations with $d_k$ unknowns. So up to $n = d_k$
# pairs there is a solution, and beyond, for random values, there is none: **a matrix holds $O(d_k)$ pairs**
# (proposition 1).
#
# The way out is to give it more unknowns. The feature map of equation 5 puts in front of the matrix all products of
# up to $p$ numbers of a key:
#
# $$\phi_p(x) = \bigl[\, a_{|b|} \, x^b \,\bigr]_{|b| \le p}, \qquad x^b = x_1^{b_1} x_2^{b_2} \cdots \tag{5}$$
#
# There are about $d_k^p / p!$ of them. They are not linear in the key, so they give new equations a chance, and **the
# matrix holds $O(d_k^p)$ pairs** (proposition 2). Let us check that with the best matrix there can be, by least
# squares: how many pairs fit before the answers are off by more than 0.3, relative to the values?


# %%
def fits(config, candidates):
    """Return up to how many random pairs the best matrix answers with an error of at most 0.3."""
    most = 0
    for n in candidates:
        keys, values = random_pairs(n, config.d_k, config.d_v)
        if relative_error(least_squares(config, keys, values)[None], values[None])[0] <= 0.3:
            most = n
    return most


widths = [4, 6, 8, 12, 16]
found = {p: [] for p in (1, 2, 3)}
for p, results in found.items():
    for d in widths[: 5 if p < 3 else 3]:
        trial = Trial("polynomial", d=d, degree=p)
        candidates = {round(share * trial.free_numbers) for share in np.linspace(0.8, 1.6, 17)}
        results.append(fits(trial.config, sorted(candidates)))

figure, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
for (p, results), colour, mark in zip(found.items(), ("#0072B2", "#D55E00", "#009E73"), "os^", strict=True):
    d = np.array(widths[: len(results)])
    slope = np.polyfit(np.log(d), np.log(results), 1)[0]
    ax.plot(
        d,
        results,
        mark,
        color=colour,
        label=f"degree {p}: {results[2]} pairs at d = 8, grows like $d^{{{slope:.1f}}}$",
    )
    free = [Trial("polynomial", d=width, degree=p).free_numbers for width in widths]
    ax.plot(widths, free, "--", color=colour, linewidth=1)
ax.set_xscale("log")
ax.set_yscale("log")
ax.set_xticks(widths, widths)
ax.minorticks_off()
ax.set(xlabel="numbers in a key, d", ylabel="pairs that fit", title="Dashed: independent features")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Nearly as promised: about in proportion to $d$, a little less than $d^2$, and more than that. (For degrees 2 and 3 the
# exponents are below $p$, since for small $d$ the lower terms of the polynomial count, too.)
#
# ## What one reading makes of it
#
# Least squares knows all pairs at once. A test-time memory sees each pair once, and has to be content with one small
# step for it. How much of the promise is left? Here are all the memories of the playground, by number of pairs held
# (nine of ten found again).

# %%
curves = {name: trial.curve() for name, trial in TRIALS.items()}

figure, ax = plt.subplots(figsize=(8.4, 4.2), layout="constrained")
names = list(TRIALS)[::-1]
for place, name in enumerate(names):
    free, pairs = TRIALS[name].free_numbers, held(curves[name])
    once = TRIALS[name].training == "one pass"
    ax.barh(place, pairs, color="#0072B2" if once else "#E69F00", height=0.6)
    ax.plot([free, free], [place - 0.38, place + 0.38], color=plt.rcParams["text.color"])
    ax.annotate(f"{pairs:.0f}", (pairs, place), xytext=(4, -4), textcoords="offset points", fontsize=9)
ax.set_yticks(range(len(names)), names)
ax.set_xscale("log", base=2)
ax.set_xticks(ticks := [4, 8, 16, 32, 64, 128, 256, 512, 1024], ticks)
ax.spines[["top", "right"]].set_visible(False)
ax.set_xlabel("pairs held, d = 16")
ax.set_title("Blue: read once. Orange: read 300 times. Stroke: parameters per number of a value", fontsize=10)
plt.show()

# %% [markdown]
# (The windows are 16 for the matrix without features and 32 for the others; each width and rule has a step size that
# suits it.) Three things stand out.
#
# - **Features matter most.** From the first bar to the third, only the features changed.
# - **The window matters.** Where both rules are shown, on a matrix and with degree 2, the Omega rule holds more than
#   the Delta rule. Degree 3 holds the most of what is read once, and is the furthest from its stroke: there would be
#   room for more than one reading leaves.
# - **A deep memory needs practice.** Read once, it holds more than a matrix on the same keys, but far less than it
#   could: after 300 readings (and with Muon) it passes its mark. That is theorem 1, and the reason why Atlas gives a
#   deep memory features as well.
#
# ## Exercise
#
# The paper starts the coefficients of equation 5 at $a_i = 1/i!$, so $(1, 1, \tfrac12)$ for degree 2, and *trains*
# them. Here nothing is trained, and the trials above use $(0, \tfrac12, 1)$ instead: no constant, and squares and
# products weighted up. What difference does it make after one reading, at d = 16? And why?
#
# *Hint:* `Features(Polynomial(degree=2, coefficients=...), normalize=True)` *goes into a* `MemoryConfig`; `stream`
# *stores pairs in it.*

# %% tags=["solution"]
with folded():
    d, counts = 16, [2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]
    keys, values = (
        np.stack(part) for part in zip(*(random_pairs(128, d, d, seed) for seed in range(4)), strict=True)
    )

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.4), layout="constrained")
    for coefficients, colour, mark in (
        ((1.0, 1.0, 0.5), "#D55E00", "o-"),
        ((0.0, 0.5, 1.0), "#0072B2", "s--"),
    ):
        features = Features(Polynomial(2, coefficients), normalize=True)
        curves = []
        for eta in (0.1, 0.2, 0.4):  # each has a step size of its own that suits it best
            config = MemoryConfig(d, d, features, Matrix(), eta=eta, omega_window=16)
            curves.append([stored.recall() for stored in stream(config, keys, values, counts)])
        curve = max(curves, key=lambda curve: np.nan_to_num(held(curve)))
        holds = f"{held(curve):.0f} pairs" if np.isfinite(held(curve)) else "never nine of ten"
        found_again = [recall.accuracy for recall in curve]
        left.plot(counts, found_again, mark, color=colour, label=f"{coefficients}: {holds}")
        phi = features.phi(keys[0].astype(float), {})
        alike = (phi @ phi.T)[np.triu_indices(128, 1)]  # features have length 1: this is their cosine
        right.hist(alike, np.linspace(-0.5, 1, 61), color=colour, alpha=0.7, label=f"mean {alike.mean():.2f}")
    left.set_xscale("log", base=2)
    left.set(xlabel="pairs stored", ylabel="found again", title="Two sets of coefficients")
    right.set(
        xlabel="cosine of the features of two keys", yticks=[], title="Why: the constant makes all keys alike"
    )
    for ax in (left, right):
        ax.legend(frameon=False)
    plt.show()
    # The constant is the same for every key. As the largest part of the features it makes all keys look alike, so that
    # each correction spoils all other answers. The presets of atlas_kit leave it out.

# %% [markdown]
# ## What to read in the code
#
# | file | holds |
# |---|---|
# | `atlas_kit/memory/capacity.py` | random pairs, recall, one reading, many readings, least squares |
# | `atlas_kit/memory/trials.py` | the memories that were tried here, and their step sizes |
# | `atlas_kit/memory/features.py` | equation 5, and how it is computed in a few copies of its result |
# | `atlas_kit/widgets/playground.py` | the playground: controls, a thread, two pictures |
# | `tools/experiments/README.md` | the same at four widths with several seeds, and where the paper does not hold |
#
# Next: [Does it help a real model?](05_real_model.ipynb)
