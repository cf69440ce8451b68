# %% [markdown]
# # 3. How does a memory learn at test time?
#
# A language model is trained once, and from then on its weights stand still. A *test-time memory* does not stand
# still: while the model reads your text, a small matrix beside it takes a learning step for every token. Here we
# write such a memory ourselves, in a few lines of NumPy, first with the Delta rule and then with the Omega rule of
# ATLAS, look at what it remembers and forgets, and check at the end that `atlas_kit` computes the very same numbers.
#
# *Fifteen minutes. It helps to know what a matrix product is. Equation numbers are those of the paper, [arXiv
# 2505.23735](https://arxiv.org/abs/2505.23735).*

# %%
import matplotlib.pyplot as plt
import numpy as np

from atlas_kit.memory import Features, Identity, Memory, MemoryConfig
from atlas_kit.memory.capacity import random_pairs
from atlas_kit.widgets import MatrixView, folded, use_page_style

use_page_style()  # figures that read on a light page and on a dark one
np.set_printoptions(precision=2, suppress=True)

# %% [markdown]
# ## The smallest example
#
# A memory answers a *key* $k$ with a *value* $v$. The simplest one that can learn is a matrix $M$: its answer to a
# key is the product $k M$. It starts empty, with zeros, so it answers every key with zeros.
#
# Now comes a pair: to the key $(1, 0)$ belongs the value $(2, 4)$. The answer is wrong by $(-2, -4)$. We correct the
# matrix by half of that error:

# %%
M = np.zeros((2, 2))
k, v = np.array([1.0, 0.0]), np.array([2.0, 4.0])

for step in range(1, 4):
    error = k @ M - v
    M = M - 0.5 * np.outer(k, error)
    print(f"step {step}: the error was {error}, now the answer is {k @ M}")

# %% [markdown]
# Each step halves the error. Nothing was trained beforehand: the matrix learned this pair by reading it. The size of
# the correction, here 0.5, is called $\eta$ ("eta").
#
# ## From scratch: the Delta rule
#
# For a whole text we go from pair to pair and correct once for each. That is all there is to the *Delta rule*, which
# Widrow and Hoff wrote down in 1960:


# %%
def delta_rule(keys, values, eta):
    """Return M after every pair: (pairs, d_k, d_v)."""
    M, history = np.zeros((keys.shape[1], values.shape[1])), []
    for k, v in zip(keys, values, strict=True):
        M = M - eta * np.outer(k, k @ M - v)
        history.append(M)
    return np.array(history)


# %% [markdown]
# We let it read 32 pairs. To make it hard, each key resembles the one before it, as the tokens of a text do: their
# cosine is about 0.8.

# %%
d, pairs, alike = 32, 32, 0.8
fresh, values = (array.astype(np.float64) for array in random_pairs(pairs, d, d, seed=3))
keys = fresh.copy()
for t in range(1, pairs):
    keys[t] = alike * keys[t - 1] + np.sqrt(1 - alike**2) * fresh[t]
keys /= np.linalg.norm(keys, axis=1, keepdims=True)

delta = delta_rule(keys, values, eta=0.5)
MatrixView(
    delta[-1],
    title="M after 32 pairs, by the Delta rule",
    rows="key component",
    columns="value component",
)

# %% [markdown]
# That is the whole memory: 1,024 numbers. You can zoom in and point at each of them, but they do not tell much. What
# the memory *knows* shows when we ask it.
#
# ## A picture of remembering and forgetting
#
# After every pair we ask for all pairs so far, and compare each answer with the right value by their cosine: 1 is
# perfect, 0 is guessing. Each row below is one pair and time goes to the right, so a row that stays dark is a pair
# that is remembered. Grey is what has not been read yet.


# %%
def remembered(history, keys, values):
    """Return the cosine of answer and value of pair i after t pairs: (i, t), NaN before the pair came."""
    answers = keys @ history  # (t, i, d_v)
    cosine = (answers * values).sum(-1) / (np.linalg.norm(answers, axis=-1) * np.linalg.norm(values, axis=-1))
    i, t = np.indices(cosine.T.shape)
    return np.where(i <= t, cosine.T, np.nan)


def draw(ax, history, title):
    """Draw what is remembered; return the picture for a colour bar."""
    found = remembered(history, keys, values)
    ax.set_facecolor("#8c8c8c")  # not read yet; grey on a light page and on a dark one
    picture = ax.imshow(found, vmin=0, vmax=1, cmap="viridis_r", interpolation="nearest")
    ax.set(
        title=f"{title}\nmean in the end: {np.nanmean(found[:, -1]):.2f}",
        xlabel="pairs read",
        ylabel="pair asked for",
    )
    return picture


figure, ax = plt.subplots(figsize=(5.6, 4.6), layout="constrained")
figure.colorbar(draw(ax, delta, "The Delta rule"), label="cosine of answer and value")
plt.show()

# %% [markdown]
# The dark band along the diagonal is what has just been read. It fades to the right: every correction for a new key
# also changes the answers to old keys that resemble it. The Delta rule looks at the last pair *only*, and never
# notices.
#
# ## From scratch: the Omega rule
#
# ATLAS changes one thing. Its *Omega rule* corrects for the last $c$ pairs together, not for the last one only. So a
# correction that would spoil what was read a moment ago is held back by those pairs themselves.


# %%
def omega_rule(keys, values, eta, c):
    """Return M after every pair: (pairs, d_k, d_v). A step looks at the last c pairs."""
    M, history = np.zeros((keys.shape[1], values.shape[1])), []
    for t in range(len(keys)):
        K, V = keys[max(0, t - c + 1) : t + 1], values[max(0, t - c + 1) : t + 1]
        M = M - eta * K.T @ (K @ M - V)
        history.append(M)
    return np.array(history)


assert np.allclose(omega_rule(keys, values, eta=0.5, c=1), delta)  # c = 1 is the Delta rule

figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained", sharey=True)
for ax, (c, eta) in zip(axes, ((1, 0.5), (8, 0.3), (32, 0.2)), strict=True):
    picture = draw(ax, omega_rule(keys, values, eta, c), f"c = {c}" + (": the Delta rule" if c == 1 else ""))
    ax.label_outer()
figure.colorbar(picture, ax=axes, label="cosine of answer and value")
plt.show()

# %% [markdown]
# The longer the window, the longer the rows stay dark. It is the same 1,024 numbers; only the rule is another. There
# is a price: a new pair has one vote among $c$, so that it is known at second or third sight only (look at the edge).
#
# ## The equation
#
# What is a memory to do? At step $t$ it should answer the last $c$ keys well. The paper says so in equation 9, with
# weights $\gamma$ that may let old pairs count less, and features $\phi$ of a key, about which [the next
# notebook](04_capacity.ipynb) is:
#
# $$\min_{\mathcal M} \; \sum_{i=t-c+1}^{t} \gamma_i^{(t)} \, \lVert \mathcal M(\phi(k_i)) - v_i \rVert_2^2 \tag{9}$$
#
# A memory does not solve this. It takes one step of gradient descent per token, and lets the past decay by a factor
# $\alpha \le 1$ (equation 10):
#
# $$\mathcal M_t = \alpha_t \mathcal M_{t-1} - \eta_t \, \nabla
# \sum_{i=t-c+1}^{t} \gamma_i^{(t)} \, \lVert \mathcal M_{t-1}(\phi(k_i)) - v_i \rVert_2^2 \tag{10}$$
#
# For a matrix the gradient is `K.T @ (K @ M - V)`, up to a factor 2 that we count as part of $\eta$: our line of
# code. Special cases have names of their own: $c = 1$ is the Delta rule, and with $-v_i$ alone in place of the error it
# is linear attention.
#
# ## From scratch: momentum and Muon
#
# The memory called *Atlas* goes one step further (equations 32 and 33). It collects gradients in a momentum $S$, and
# before the step it makes all directions of $S$ about equally long, so that rare directions are learned as well as
# common ones. This is *Muon*; the equalising is done by five *Newton-Schulz* steps, because a singular value
# decomposition per token would be slow:
#
# $$S_t = \theta_t S_{t-1} + \nabla_t \tag{32}$$
# $$\mathcal M_t = \alpha_t \mathcal M_{t-1} - \eta_t \, \text{NewtonSchulz}_5(S_t) \tag{33}$$


# %%
def newton_schulz_5(S):
    """Return S with its singular values near 1."""
    X = S / np.linalg.norm(S)
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X


def atlas(keys, values, eta, c, theta=0.0, alpha=1.0):
    """Return M after every pair, by equations 32 and 33."""
    M = S = np.zeros((keys.shape[1], values.shape[1]))
    history = []
    for t in range(len(keys)):
        K, V = keys[max(0, t - c + 1) : t + 1], values[max(0, t - c + 1) : t + 1]
        S = theta * S + K.T @ (K @ M - V)
        M = alpha * M - eta * newton_schulz_5(S)
        history.append(M)
    return np.array(history)


gradient = keys.T @ values
before, after = (np.linalg.svd(S, compute_uv=False) for S in (gradient, newton_schulz_5(gradient)))
figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.bar(np.arange(d) - 0.2, before / before[0], 0.4, label="a gradient of 32 pairs", color="#0072B2")
ax.bar(np.arange(d) + 0.2, after, 0.4, label="the same after NewtonSchulz_5", color="#E69F00")
ax.set(xlabel="direction", ylabel="singular value", title="Muon makes rare directions count")
ax.legend(frameon=False, loc="upper right")
ax.set_ylim(0, 1.5)
plt.show()

# %% [markdown]
# Nearly all orange bars stand between 0.6 and 1.2, also where there is hardly a blue one. Only the last two directions,
# in which there is next to nothing, are not lifted all the way by five steps.
#
# ## Is it the same as the library?
#
# `atlas_kit.memory` does this for memories of many kinds, many streams at once, on a processor or a graphics card,
# and it survives input that would make our few lines diverge. On our pairs it must give the same matrix, and it does:

# %%
rules = {
    "Delta rule": (delta, {"eta": 0.5}),
    "Omega rule, c = 8": (omega_rule(keys, values, 0.3, 8), {"eta": 0.3, "omega_window": 8}),
    "Atlas: momentum, decay, Muon": (
        atlas(keys, values, 0.05, 8, theta=0.5, alpha=0.99),
        {"eta": 0.05, "omega_window": 8, "theta": 0.5, "alpha": 0.99, "use_muon": True},
    ),
}
for name, (ours, settings) in rules.items():
    memory = Memory(MemoryConfig(d, d, features=Features(Identity()), dtype="float64", **settings))
    state, report = memory.observe(memory.init(), keys, values)
    difference = np.abs(state.parameters["W"] - ours[-1]).max()
    print(f"{name:<30}largest difference {difference:.0e}, loss of the last pair {report.loss[-1]:.3f}")
    assert difference < 1e-9

# %% [markdown]
# ## Exercise
#
# The window of 8 had a smaller $\eta$ than the Delta rule, 0.3 instead of 0.5. Try 0.5: the answers are nonsense.
# Why? And what is the largest $\eta$ for a window?
#
# *Hint: without the values, a step is $M \leftarrow (I - \eta K^\top K) M$, with the keys of the window as the rows
# of $K$. When does that make some direction of $M$ longer?*

# %% tags=["solution"]
with folded():
    # An eigenvector of K.T @ K with the eigenvalue lambda is multiplied by 1 - eta lambda. That is beyond -1, so that
    # the direction grows with every step, as soon as eta > 2 / lambda. The keys of a window are alike, and their
    # common direction has a large lambda: up to c, if all are the same. For c = 1 it is 1: the limit is 2.
    figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    steps = np.geomspace(0.02, 2.5, 60)
    for c, colour, dashes in ((1, "#0072B2", "-"), (8, "#D55E00", "--"), (32, "#009E73", ":")):
        windows = [keys[max(0, t - c + 1) : t + 1] for t in range(pairs)]
        limit = 2 / max(np.linalg.eigvalsh(K.T @ K).max() for K in windows)
        errors = []
        for eta in steps:
            answers = keys @ omega_rule(keys, values, eta, c)[-1]
            errors.append(np.linalg.norm(answers - values) / np.linalg.norm(values))
        ax.plot(steps, errors, dashes, color=colour, label=f"c = {c}: at most {limit:.2f}")
        ax.axvline(limit, color=colour, linestyle=dashes, linewidth=0.8)
        print(
            f"c = {c:2}: the limit is {limit:.2f}, and the least error is at eta = {steps[np.argmin(errors)]:.2f}"
        )
    ax.set_xscale("log")
    ax.set(
        xlabel="step size",
        ylabel="error in the end",
        ylim=(0, 2),
        title="Beyond its limit, a step does more harm than good",
    )
    ax.legend(frameon=False, loc="upper left")
    plt.show()

# %% [markdown]
# ## What to read in the code
#
# | file | holds |
# |---|---|
# | `atlas_kit/memory/update.py` | equations 32 to 34 and 39 to 41: the lines from above, for a chunk of tokens |
# | `atlas_kit/memory/muon.py` | Newton-Schulz, and why it has these three numbers |
# | `atlas_kit/memory/modules.py` | memories deeper than a matrix, and their gradients, written out by hand |
# | `atlas_kit/memory/presets.py` | Delta rule, linear attention, Titans, OmegaNet and Atlas as settings of one update |
# | `atlas_kit/memory/learning.py` | what happens when a step is too large: it is noticed, and a smaller one taken |
# | `tools/experiments/README.md` | the paper's claims about these rules, measured |
#
# Next: [How much can it hold?](04_capacity.ipynb)
