# %% [markdown]
# # 2. What is in a GGUF?
#
# A `.gguf` file is a whole language model in one piece: what it is called, how it was built, its vocabulary,
# and millions of numbers. We look into one by hand, find out what the numbers look like from close up, give
# the model a memory without touching a single weight, and take it away again, down to the last byte.
#
# *Ten minutes. Nothing is downloaded: the model is in this repository, small and real.*

# %%
import hashlib
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from atlas_kit import GGUFFile
from atlas_kit.operations.convert import ConvertOptions, convert_file
from atlas_kit.operations.diff import diff_files
from atlas_kit.operations.inspect import Wanted, inspect_file
from atlas_kit.widgets import folded, use_page_style

use_page_style()  # figures that read on a light page and on a dark one
micro = "../sample_data/gguf/micro.gguf"  # 3 kB: the smallest model that llama.cpp loads
tiny = "../sample_data/models/tiny-python.gguf"  # 8.8 MB: it has read Python, and continues it
scratch = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The smallest example
#
# A mark, a version and two counts, then *metadata* (named values), then *tensors* (named arrays of numbers).

# %%
for field in inspect_file(micro, Wanted(hex=True)).fields[:4]:
    print(f"byte {field.offset:2}  {field.data.hex(' '):<25}{field.name:<19}{field.value:<9}{field.meaning}")

with GGUFFile.open(micro) as model:
    print("\nmetadata:")
    for field in model.metadata.values():
        print(f"  {field.key:<40}{field.type_name:<10}{field.items}")
    print("\ntensors:")
    for tensor in model.tensors.values():
        place = f"{tensor.nbytes} bytes at {tensor.file_offset}"
        print(f"  {tensor.name:<40}{tensor.type_name:<10}{tensor.shape!s:<10}{place}")

# %% [markdown]
# That is all there is to the format (`formats/gguf.md` has every detail): a header that says what follows,
# and the numbers, laid out so that a program can use them where they lie, without reading them first. This is
# why a model of 40 GB starts in a second.
#
# ## A picture: where do the megabytes go?
#
# Above the small model, below the one that we will use from now on. Each strip is a whole file with a scale of its
# own, so that a finger's width is a few hundred bytes above, and half a million below.

# %%
INK = {
    "header": "#4c72b0",
    "metadata": "#8fb3dd",
    "tensor info": "#c9d9ee",
    "vocabulary": "#6aa56a",
    "attention": "#e6a04b",
    "feed-forward": "#f6cf94",
}


def part_of(region):
    """Return what a region of the file is for; of a tensor, by its name."""
    if region.kind != "tensor":
        return region.kind
    if ".attn" in region.name:
        return "attention"
    return "feed-forward" if ".ffn" in region.name else "vocabulary"


figure, strips = plt.subplots(2, 1, figsize=(10, 2.6), layout="constrained")
for strip, path in zip(strips, (micro, tiny), strict=True):
    regions = inspect_file(path, Wanted(map=True)).regions
    for region in regions:
        colour = INK.get(part_of(region), "none")  # a gap: padding
        strip.barh(0, region.size, left=region.offset, color=colour, edgecolor="white", linewidth=0.6)
    end = regions[-1].offset + regions[-1].size
    strip.set(yticks=[], xlim=(0, end), title=f"{Path(path).name}: {end:,} bytes")
    strip.xaxis.set_major_formatter("{x:,.0f}")
    strip.spines[:].set_visible(False)
patches = [plt.Rectangle((0, 0), 1, 1, color=colour, label=part) for part, colour in INK.items()]
figure.legend(handles=patches, loc="outside lower center", ncols=6, frameon=False)
plt.show()

# %% [markdown]
# In the small one the words *about* the model (the three blues) take nearly half the file. In the real one they are a
# sliver, mostly the spelling of 4,096 tokens. Green are the rows of numbers that stand for the tokens, and nine layers
# of attention and feed-forward fill the rest.
#
# The same with a mouse: click on a part of the map, or open the tab *Tensors*, sort them by size and look into one.

# %%
from atlas_kit.widgets import FileExplorer

FileExplorer(tiny)

# %% [markdown]
# ## The equation: eight and a half bits for a number
#
# Most tensors here have the type `Q8_0`. Weights are cut into blocks of 32. A block is one scale $d$ (a
# 16-bit float) and 32 whole numbers $q_i$ from -127 to 127, and a weight is
#
# $$w_i = d \cdot q_i, \qquad d = \frac{\max_i |w_i|}{127}$$
#
# which makes $(16 + 32 \cdot 8) / 32 = 8.5$ bits per weight instead of 32 (section "Tensor info" of
# `formats/gguf.md`). We decode the first block by hand:

# %%
model = GGUFFile.open(tiny)
block = model.array("token_embd.weight")[0, :34].tobytes()  # 2 bytes of scale, 32 of numbers
d = np.frombuffer(block, "<f2", count=1).astype(np.float32)
q = np.frombuffer(block, "i1", offset=2)
print("d =", d[0], "\nq =", *q)

embedding = model.dequantize("token_embd.weight")  # the library does all 32,768 blocks
assert (embedding[0, :32] == d * q).all()
print("\nw =", *embedding[0, :4].round(4), "...  equal to the library's")

# %%
weight = model.dequantize("blk.4.ffn_down.weight")
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3), width_ratios=(2, 1), layout="constrained")
reach = np.abs(weight).max() / 3
left.imshow(weight, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest")
left.set(title="a weight matrix: blk.4.ffn_down", xlabel="input", ylabel="output")
right.hist(weight.ravel(), bins=80, color="#4c72b0")
right.set(title="its 196,608 numbers", xlabel="weight", yticks=[])
plt.show()

# %% [markdown]
# It looks like noise, and this is the strange thing about it: somewhere in this noise it says that `def` is
# followed by a name. The exercise below finds some of what it knows.
#
# ## Make it ATLAS-native
#
# A model can carry the settings of its memory with it. `auto=True` asks `atlas-tool recommend` what suits
# this model. (In a terminal: `atlas-tool convert MODEL.gguf MODEL-atlas.gguf --auto`.)

# %%
native = scratch / "tiny-python-atlas.gguf"
convert_file(tiny, native, ConvertOptions(to="atlas-gguf", auto=True))

comparison = diff_files(tiny, native)
print(f"{comparison.same} values and tensors are the same, and these were added:\n")
for change in comparison.changes:
    print(f"  {change.name:<34}{change.details[0][2]}")

# %% [markdown]
# Only metadata came, no tensor changed: llama.cpp, and everything built on it, loads the file as before and
# does not even look at these keys. `atlas_kit` does:

# %%
from atlas_kit.llama import AtlasSession, Sampling

with AtlasSession(native) as session:  # no settings here: they come with the model
    print(f"the memory's window: {session.memory.settings.window_size:,} tokens\n")
    prompt = "for line in "
    answer = session.generate(prompt, max_tokens=20, sampling=Sampling(temperature=0))
    print(prompt + "".join(map(str, answer)))

# %% [markdown]
# ## And back again
#
# A conversion that you cannot undo is a risk. This one you can, to the byte: the last key above says what was
# added, and `atlas.source.hash` what must come out.

# %%
stock = scratch / "tiny-python-stock.gguf"
convert_file(native, stock, ConvertOptions(to="gguf"))

for path in (Path(tiny), native, stock):
    print(hashlib.sha256(path.read_bytes()).hexdigest()[:32], f"{path.stat().st_size:>9,} bytes  {path.name}")
assert stock.read_bytes() == Path(tiny).read_bytes()

# %% [markdown]
# ## Exercise
#
# Row $t$ of `token_embd.weight` is what the model knows about token $t$ before it has read anything else. Two
# rows that point into the same direction mean related things. For ` ==`, ` first`, ` import` and ` read`,
# find the five tokens whose rows have the greatest cosine $\frac{u \cdot v}{\lVert u \rVert \lVert v \rVert}$
# with theirs. (In this vocabulary a space is written `Ġ`: look for `Ġ==`.)

# %% tags=["solution"]
with folded():
    vocabulary = list(model.get("tokenizer.ggml.tokens"))
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    for word in ("Ġ==", "Ġfirst", "Ġimport", "Ġread"):
        cosine = unit @ unit[vocabulary.index(word)]
        nearest = np.argsort(-cosine)[1:6]  # the nearest of all is the word itself
        print(f"{word:<9}", *(f"{vocabulary[n]} {cosine[n]:.2f}  " for n in nearest))

    # Nobody told the model that == and != belong together, or first and last. It read 29 million characters of Python.

# %%
model.close()

# %% [markdown]
# ## What to read in the code
#
# | file | holds |
# |---|---|
# | `formats/gguf.md` | the specification, with every known key and tensor type |
# | `atlas_kit/formats/gguf/layout.py` | the bytes: header, metadata, tensor infos |
# | `atlas_kit/formats/gguf/native.py` | how keys are added so that they can be taken away without a trace |
# | `atlas_kit/settings/recommend.py` | which settings suit which model, and why |
#
# Next: [How does a memory learn at test time?](03_learning_at_test_time.ipynb)
