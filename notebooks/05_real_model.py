# %% [markdown]
# # 5. Does it help a real model?
#
# A memory is worth something if the model is less surprised with it than without. So we take a language model
# and a text that it has never seen, let it read, and count its surprise: for the model alone, for the ATLAS
# memory, for each half of it, and for the strongest rival there is, a search through everything that was ever
# read.
#
# Then you press **Start** and watch it happen.
#
# *The model is small (8 million parameters, trained on Python's standard library), so that all of this runs
# on a laptop, in about a minute. The text, `argparse.py`, was kept from it.*

# %%
import html
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML

from atlas_kit.llama import AtlasSession, open_engine
from atlas_kit.operations.perplexity import NOTES, compare
from atlas_kit.settings.recommend import recommend
from atlas_kit.widgets import folded, use_page_style

use_page_style()  # figures that read on a light page and on a dark one
model = "../sample_data/models/tiny-python.gguf"
text = Path("../sample_data/documents/argparse.py").read_text()
engine = open_engine(model, n_threads=1)  # quick enough, and the rest of your computer stays awake
settings = recommend(model).settings
print(f"{engine.info.name} looks back {engine.n_ctx} tokens; the text has {len(engine.tokenize(text)):,}")

# %% [markdown]
# ## The smallest example
#
# A session is a model with a memory. `feed` reads, learns, and says how surprised both were: perplexity is
# the number of equally likely tokens that would have been as hard to guess between.

# %%
tokens = engine.tokenize(text)[:3000]
with AtlasSession(engine, memory=settings) as session:
    fed = session.feed(tokens)
print(f"perplexity of the model alone: {fed.model_perplexity:5.2f}")
print(f"             with the memory: {fed.perplexity:5.2f}")

# %% [markdown]
# ## A picture: where does it help?
#
# The end of what was read, painted by what the memory changed: the bluer a token, the more likely the memory
# made it (orange: where it was wrong to listen to it). Hover over a token for the number.

# %%
gain = fed.logprob[:, 1] - fed.logprob[:, 0]  # nats, one for each token


def painted(tokens, gain):
    """Return the text of tokens as HTML, each on the colour of its gain in nats."""
    spans = []
    for token, nats in zip(tokens, gain, strict=True):
        strength = 0.7 * min(abs(nats) / 3, 1)
        colour = f"rgba(0,114,178,{strength:.2f})" if nats > 0 else f"rgba(213,94,0,{strength:.2f})"
        piece = html.escape(engine.piece(token).decode(errors="replace"))
        spans.append(f'<span style="background:{colour}" title="{nats:+.2f} nats">{piece}</span>')
    return '<pre style="font-family:monospace;line-height:1.5">' + "".join(spans) + "</pre>"


HTML(painted(tokens[-420:], gain[-420:]))

# %% [markdown]
# Names that come again, phrases of this author, the way that this file is laid out: this is what one reading
# has taught it.
#
# ## The equation
#
# The memory stands beside the model and changes no weight of it. For the next token $x$ there are three
# opinions:
#
# $$p(x) = g_1\, p_{\text{model}}(x) + g_2\, p_{\text{memory}}(x) + g_3\, p_{\text{window}}(x), \quad \sum_i g_i = 1$$
#
# - the **model** knows its weights and the last 512 tokens;
# - the **window** keeps what followed the last 12,288 states exactly, and finds those that are most like now;
# - the **learned memory** is a matrix. The first 512 tokens say in which directions states vary, and nothing is
#   learned from them. From then on it takes a gradient step every 16 tokens: the Omega rule (arXiv 2505.23735,
#   equation 9) over just these $c = 16$, with $\gamma = 1$ and the surprise at the token that came as the loss
#   $\ell$. (`features="polynomial"` is the paper's own form.)
#
# $$\min_{\mathcal M} \sum_{i=t-c+1}^{t} \gamma_i^{(t)}\, \ell(\mathcal M; \mathbf k_i, \mathbf v_i)$$
#
# The weights $g$ are learned while reading, too. And what we measure is
#
# $$\text{perplexity} = \exp\Bigl(-\frac{1}{n} \sum_{t=1}^{n} \ln p(x_t)\Bigr).$$
#
# ## More pictures: the rivals
#
# All read the same 7,000 tokens at the same time. The unbounded rival is kNN-LM (arXiv 1911.00172): it keeps *every*
# state in full width and searches them all, so that it grows with every token. It is tried twice: with one weight for
# what it finds, the best one for this very text, and with a gate that is learned while reading, as ATLAS has it.

# %%
kinds = ("none", "omega", "knn-fixed", "window", "knn", "atlas")
result = compare(engine, [("argparse.py", text)], kinds, settings=settings, after=4096, limit=7000)

print(f"{'':<38}perplexity    after token 4,096     keeps")
for kind, score in result.results.items():
    numbers = f"{score.perplexity:10.2f}{score.perplexity_after:21.2f}{score.state_bytes / 1e6:7.1f} MB"
    print(f"{NOTES[kind]:<38}{numbers}")

# %%
COLOURS = dict(zip(kinds, ("#7a7a7a", "#56b4e9", "#ddaac8", "#e69f00", "#cc79a7", "#0072b2"), strict=True))

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=(1, 1.25), layout="constrained")
scores = [result.results[kind].perplexity_after for kind in kinds]
left.barh([NOTES[kind] for kind in kinds], scores, color=[COLOURS[kind] for kind in kinds])
left.bar_label(left.containers[0], fmt="%.2f", padding=3)
left.set(xticks=[], xlim=(0, max(scores) * 1.15))
left.set_title("perplexity beyond token 4,096 (less is better)", fontsize=10)
left.invert_yaxis()
left.spines[:].set_visible(False)
left.tick_params(length=0)

middle = (np.array(result.edges[1:]) + result.edges[:-1]) / 2
alone = np.array(result.results["none"].curve)
for kind, style in (("omega", "s--"), ("knn", "^-."), ("atlas", "D-")):
    lower = 100 * (1 - np.array(result.results[kind].curve) / alone)
    right.plot(middle, lower, style, color=COLOURS[kind], label=NOTES[kind])
right.axvline(engine.n_ctx, color="#999999", linestyle=":")
right.text(engine.n_ctx, 28, "  the model's own context ends here", color="#777777")
right.set(xlabel="token", ylabel="percent")
right.set_title("along the text: how much lower than the model alone", fontsize=10)
right.set_ylim(0, None)
right.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.06, 1))  # beside the dotted line
right.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# What to take from it, honestly:
#
# - With a memory the model is clearly less surprised, and the gap opens as there is more to remember.
# - As long as a text fits into it, the exact window does most of the work, and the learned memory adds the
#   last bit. On its own the learned memory is weaker, but its size never grows, and it does not forget when
#   the window is full.
# - The rival that keeps everything in full is no better here, and has to keep everything.
#
# ## Now you: press Start
#
# The same, live, on `statistics.py` or what you like. Press **Start** and follow the two curves: the loss of
# the model alone, and with the memory. The gap between them is what the memory is worth. Below them, in
# tabs, is what surprises it in the text, what it recalls, and the matrix as it learns. Move the sliders, **Reset**,
# try a text of your own.

# %%
from atlas_kit.widgets import MemoryLab

session = AtlasSession(model, memory="auto", engine_options={"n_threads": 1})
documents = sorted(Path("../sample_data/documents").glob("*.[pt]*"))
lab = MemoryLab(session, Path("../sample_data/documents/statistics.py"), documents=documents)
lab.run(2000)  # the first pages, so that there is something to see
lab

# %% [markdown]
# Everything you see is there for Python, too: `lab.history` has the losses, `lab.snapshots` the memory as it
# was at several moments, `lab.save("my.atlas")` keeps it. Compare two of them in [notebook
# 6](06_comparing_memories.ipynb).
#
# ## Exercise
#
# The window is exact, but it costs room for every token. What remains if it may keep 512 tokens only, or 64,
# or none at all? `AtlasSession(engine, memory=settings, window=512)` is a session with such a window. Let
# each read the `tokens` from above, and compare perplexity and size
# (`session.stats["memory"]["state_bytes"]`).

# %% tags=["solution"]
with folded():
    for window in (512, 64, 0):
        with AtlasSession(engine, memory=settings, window=window) as session:
            fed = session.feed(tokens)
            size = session.stats["memory"]["state_bytes"] / 1e6
        print(f"window {window:3}: perplexity {fed.perplexity:.2f} with {size:.2f} MB")

    # With the whole window it was 10.01. Without any exact copy, the learned memory alone keeps two fifths of the gain:
    # from 11.36 to 10.83. Its size stays the same, whether it reads three thousand tokens or three million.
    # (All three take 1.5 MB, where the whole window takes 3.0: one of up to 512 tokens costs no more than none.)

# %% [markdown]
# ## What to read in the code
#
# | file | holds |
# |---|---|
# | `atlas_kit/llama/token_memory.py` | `TokenMemory`: from states and logits to the blended prediction, and back |
# | `atlas_kit/operations/perplexity.py` | the comparison above, with the rivals |
# | `atlas_kit/llama/session.py` | `AtlasSession`: what happens when the context is full |
# | `tools/bench/quality.py` | the numbers in README: longer texts, other settings |
#
# Next: [How do two memories differ?](06_comparing_memories.ipynb)
