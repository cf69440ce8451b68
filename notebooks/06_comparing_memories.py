# %% [markdown]
# # 6. How do two memories differ?
#
# One memory has read about command lines, the other about statistics. Both are matrices of half a million
# numbers. What does the one know that the other does not? Can they be joined? And can a memory be made to
# forget, a little or altogether?
#
# *A minute of computing on one core. The model is the small one of this repository; it has seen neither
# document.*
#
# Both memories have the form of the paper, `features="polynomial"`. A memory of the default form first measures the
# states of its own text and whitens them: the same row is another direction in each, and two of them cannot be
# compared or averaged number by number.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from atlas_kit import load_memory
from atlas_kit.llama import AtlasSession, open_engine
from atlas_kit.memory import distance, merge, statistics
from atlas_kit.operations.merge import merge_files
from atlas_kit.settings.recommend import recommend
from atlas_kit.widgets import folded, use_page_style

use_page_style()  # figures that read on a light page and on a dark one
model = "../sample_data/models/tiny-python.gguf"
engine = open_engine(model, n_threads=1)
# Without the exact window: here we want to see what is in the matrix alone.
settings = recommend(model).settings.replace(features="polynomial", window_size=0)
scratch = Path(tempfile.mkdtemp())

NAMES = ("argparse", "statistics")
documents = {name: engine.tokenize(Path(f"../sample_data/documents/{name}.py").read_text()) for name in NAMES}

# %% [markdown]
# ## The smallest example
#
# Two sessions read 3,000 tokens each, and leave their memory in a file after every 500. (They learn every 16 tokens:
# the last eight of the 3,000 still wait, and the comparison below says "2,992 tokens learned".)

# %%
for name, tokens in documents.items():
    with AtlasSession(engine, memory=settings) as session:
        for at in range(0, 3000, 500):
            session.feed(tokens[at : at + 500])
            session.save(scratch / f"{name}-{at + 500}.atlas", context=False)
        alone, learning = np.exp([session.stats["loss_model"], session.stats["loss"]])
    print(f"{name:<11}perplexity {alone:5.2f} alone, {learning:5.2f} with a memory that learned on the way")

files = {name: scratch / f"{name}-3000.atlas" for name in NAMES}
loaded = {name: load_memory(path) for name, path in files.items()}
a, b = (loaded[name].state for name in NAMES)
apart = distance(a, b)["W"]
print(f"\nW has {a.parameters['W'].shape[0]:,} x {a.parameters['W'].shape[1]} numbers in both")
print(f"cosine of the two: {apart.cosine:.3f}")

# %% [markdown]
# The cosine is nearly 0: the two matrices have next to nothing in common, although they began as the same
# zeros. What two documents write into a memory lies in different directions, and this is why one memory can
# hold both.
#
# ## A picture: A, B, and B - A
#
# The three matrices share one colour scale and move together. Below: how their singular values fall, and what
# either memory expects in a text that neither has read.

# %%
from atlas_kit.widgets import MemoryCompare

unread = {name: tokens[3000:3500] for name, tokens in documents.items()}
probe = b"".join(map(engine.piece, unread["argparse"][:200])).decode()  # tokens to text

comparison = MemoryCompare(*files.values(), model=engine, probe=probe, labels=NAMES)
comparison.compare_behaviour()
comparison

# %% [markdown]
# The text at the end is the telling one, a page about command lines. A token is blue where the memory that has read
# about command lines held it for likelier, and orange where the other one did. (Where no kernel runs, the text
# is in the tab *Behaviour*.)
#
# ## The same over time
#
# Given the files of one run, in order, the comparison gets a slider: press *Play* and see the memory fill.

# %%
moments = [scratch / f"argparse-{n}.atlas" for n in range(500, 3001, 500)]
MemoryCompare.over_time(moments, labels=[f"{n} tokens" for n in range(500, 3001, 500)])

# %% [markdown]
# ## What a memory is worth, and to whom
#
# Numbers in a matrix say little. So we let memories read on in both documents, where neither has been,
# without learning (`learn=False`), and ask how much less surprised they are than the model alone.


# %%
def worth(state, tokens):
    """Return by how many percent a memory lowers the perplexity of some tokens; less than 0: it does harm."""
    with AtlasSession(engine, memory=settings, learn=False) as session:
        session.memory.state = state
        fed = session.feed(tokens)
    return 100 * (1 - fed.perplexity / fed.model_perplexity)


both = merge([a, b])
table = np.array([[worth(state, unread[name]) for name in NAMES] for state in (a, b, both)])

figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
axes.imshow(table, cmap="PuOr", vmin=-16, vmax=16, aspect="auto")
for (row, column), value in np.ndenumerate(table):
    axes.text(column, row, f"{value:+.1f} %", ha="center", va="center", fontsize=12, color="black")
axes.set_xticks(range(2), [f"the next page of {name}" for name in NAMES])
axes.set_yticks(range(3), [f"memory of {NAMES[0]}", f"memory of {NAMES[1]}", "both, merged"])
axes.set_title("how much lower is the perplexity?", fontsize=10)
axes.tick_params(length=0)
plt.show()

# %% [markdown]
# A memory helps with what it has read, and *misleads* elsewhere: it expects command lines where there are
# none. (Left to learn, it finds its way within a few hundred tokens; here we have forbidden it.) The merged
# memory helps in both.
#
# ## The equation: why a mean of memories is a memory
#
# The matrix memory reads $y = \phi(q)\, W$, where $\phi$ is the polynomial feature map (arXiv 2505.23735). It
# is linear in $W$, so the mean of two memories reads as the mean of what they read:
#
# $$\phi(q)\, \frac{W_A + W_B}{2} = \frac{\phi(q)\, W_A + \phi(q)\, W_B}{2}$$

# %%
memory = loaded["argparse"].memory
queries = np.random.default_rng(0).standard_normal((5, memory.config.d_k)).astype(np.float32)
one, two, mean = (memory.read(state, queries) for state in (a, b, both))
assert np.allclose(mean, (one + two) / 2, atol=1e-6)
for name, state in (("A", a), ("B", b), ("merged", both)):
    print(f"effective rank of {name:<7}{statistics(memory.config, state).matrices['W'].effective_rank:4.0f}")

# %% [markdown]
# Both fit into one matrix because it has room: it uses more of its directions than either did.
#
# This `merge` joins what two memories *know*. There is another one, `atlas-tool merge`, that joins *files*:
# chats, preferences and other entries, where of two entries with one key one is taken. Two learned memories
# in two files are such a conflict:

# %%
merged = merge_files(list(files.values()), scratch / "files.atlas")
print(f"{merged.entries} entries, {len(merged.conflicts)} of them in conflict, such as:")
for conflict in merged.conflicts[:3]:
    print(f"  {conflict.key}: taken from {Path(conflict.taken).name}")

# %% [markdown]
# ## Forgetting
#
# Forgetting is built into the rule by which a memory learns (equation 33), as the factor $\alpha$:
#
# $$M_t = \alpha_t\, M_{t-1} - \eta_t\, S_t$$
#
# With $\alpha = 1$ nothing is forgotten; after $n$ steps with $\alpha < 1$ a share of $\alpha^n$ is left.
# What remains useful when only a share is left? Merging with an empty memory does it:

# %%
empty = memory.reset(a)  # "hard", the default: everything; "soft" keeps the counters
shares = (1.0, 0.75, 0.5, 0.25, 0.0)
faded = [merge([a, empty], [share, 1 - share]) for share in shares]
curves = {name: [worth(state, unread[name]) for state in faded] for name in NAMES}

figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
for (name, curve), style in zip(curves.items(), ("o-", "s--"), strict=True):
    axes.plot(shares, curve, style, label=f"on the next page of {name}")
axes.axhline(0, color="#999999", linewidth=0.8)
axes.set(xlabel="share of the memory of argparse that is left", ylabel="perplexity lower by (%)")
axes.invert_xaxis()
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# With half of it forgotten, the memory keeps seven tenths of its worth at home, and does hardly any harm
# elsewhere. At 0 there is nothing left but the model.
#
# ## Exercise
#
# A merge may be weighted: `merge([a, b], [0.8, 0.2])`. Draw what the memory is worth on both documents for
# weights from all `a` to all `b`. Is the half the best compromise?

# %% tags=["solution"]
with folded():
    weights = np.linspace(0, 1, 6)
    lines = {name: [worth(merge([a, b], [1 - w, w]), unread[name]) for w in weights] for name in NAMES}

    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    for (name, line), style in zip(lines.items(), ("o-", "s--"), strict=True):
        axes.plot(weights, line, style, label=f"on the next page of {name}")
    axes.plot(weights, np.mean(list(lines.values()), axis=0), ":", color="#7a7a7a", label="mean of both")
    axes.set(xlabel="weight of the memory of statistics", ylabel="perplexity lower by (%)")
    axes.legend(frameon=False)
    plt.show()

    # Nearly. The mean of both is about the same from a fifth to a half and falls after that, since the memory of
    # argparse is worth more. Both documents profit equally at about six tenths.

# %% [markdown]
# ## What to read in the code
#
# | file | holds |
# |---|---|
# | `atlas_kit/memory/statistics.py` | distance, spectra, effective rank, merge: a page |
# | `atlas_kit/memory/update.py` | equations 32 to 34: where forgetting happens |
# | `atlas_kit/operations/behaviour.py` | one text, two memories: where do their predictions differ most? |
# | `atlas_kit/operations/merge.py` | the other merge, of files |
#
# Next: [How do you watch a memory at work?](07_serving.ipynb)
