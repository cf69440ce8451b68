# %% [markdown]
# # 1. What is in a memory file?
#
# A language model forgets you when the window closes. What it should keep goes into a `.atlas` file: chats,
# preferences, and the numbers of a memory that learned. Here we open the smallest one there is, look at every
# single byte, break it on purpose, and put it together again.
#
# *You need nothing but this notebook; it takes about ten minutes, and the computer a few seconds.*

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from atlas_kit import AtlasError, MemoryFile
from atlas_kit.operations.convert import convert_file
from atlas_kit.operations.inspect import Wanted, inspect_file
from atlas_kit.operations.repair import RepairOptions, repair_file
from atlas_kit.operations.validate import validate_file
from atlas_kit.widgets import folded, use_page_style

use_page_style()  # figures that read on a light page and on a dark one
sample = Path("../sample_data/atlas/llama-7b_memory.atlas")
scratch = Path(tempfile.mkdtemp())  # whatever we break, we break here

# %% [markdown]
# ## The smallest example
#
# A memory file is a dictionary: keys, and under each key an entry with a type and some bytes.

# %%
with MemoryFile.open(sample) as memory:
    print(memory)
    for entry in memory.entries():
        print(f"\n{entry}\n{entry.text}")

# %% [markdown]
# A short chat, and somebody who likes a dark screen. That is all, and it takes 266 bytes. Where do they go?
#
# ## A picture of every byte
#
# The schema of the format knows what each byte is for. So we can colour them: one square is one byte, written
# in hexadecimal, and next to it what it would be as a letter.

# %%
KINDS = {  # kind: colour, what it is
    "header": ("#bcd7f0", "header: 104 bytes, one per file"),
    "entry": ("#ffe1a8", "entry: sizes, type, time, checksum, key"),
    "payload": ("#c9e8c5", "payload: what was stored"),
}
raw = sample.read_bytes()
regions = inspect_file(sample, Wanted(map=True)).regions


def draw_bytes(axes, data, colours, labels):
    """Draw bytes as squares, 16 in a row. colours: one per byte; labels: the text in each square."""
    rows = -(-len(data) // 16)
    places = np.arange(len(data))
    axes.bar(places % 16, 0.93, 0.95, places // 16 - 0.465, color=colours)
    axes.set(xlim=(-0.5, 15.5), ylim=(rows - 0.5, -0.5))
    for place, label in enumerate(labels):
        axes.text(
            place % 16,
            place // 16,
            label,
            ha="center",
            va="center",
            size=7,
            family="monospace",
            color="black",
        )
    axes.set_xticks(range(16), [f"{n:x}" for n in range(16)])
    axes.set_yticks(range(rows), [f"{16 * n:#05x}" for n in range(rows)])
    axes.tick_params(length=0, labelsize=7)
    axes.spines[:].set_visible(False)


def explain(figure, meanings):
    """Put what colours mean below a figure. meanings: pairs of colour and text."""
    patches = [plt.Rectangle((0, 0), 1, 1, color=colour, label=text) for colour, text in meanings]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False)


colours = [KINDS[region.kind][0] for region in regions for _ in range(region.size)]
letters = [chr(byte) if 32 < byte < 127 else "·" for byte in raw]

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
draw_bytes(left, raw, colours, [f"{byte:02x}" for byte in raw])
draw_bytes(right, raw, colours, letters)
explain(figure, KINDS.values())
plt.show()

# %% [markdown]
# You can read the chat in the green part on the right. The blue header begins with `ATLS`, so that a program
# can tell at once what it has been handed.
#
# ## The schema
#
# Here is the first entry again, field by field. In a terminal you get this with `atlas-tool inspect FILE
# --hex`.

# %%
for field in inspect_file(sample, Wanted(hex=True)).fields:
    if field.name.startswith("entries[0]"):
        shown, name = field.data[:8].hex(" "), field.name.removeprefix("entries[0].")
        print(f"{field.offset:4}  {shown:<25}{name:<12}{field.value[:18]:<20}{field.meaning[:50]}")

# %% [markdown]
# The same by hand and eye: open the tab *Bytes* and click into them, and the field that they belong to lights up.

# %%
from atlas_kit.widgets import FileExplorer

FileExplorer(sample)

# %% [markdown]
# ## The equation: how a file knows that it is whole
#
# Each payload has a *checksum*: a number computed from all of its bytes $b_1 \dots b_n$, such that almost any
# change of them changes the number. Version 1 uses FNV-1a (section "Version 1" of `formats/atlas.md`):
#
# $$h_0 = \mathtt{0x811C9DC5}, \qquad h_i = (h_{i-1} \oplus b_i) \cdot \mathtt{0x01000193} \bmod 2^{32}$$
#
# where $\oplus$ is exclusive or. From scratch it is four lines, and they must give what the file says:


# %%
def fnv1a(data: bytes) -> int:
    h = 0x811C9DC5
    for byte in data:
        h = (h ^ byte) * 0x01000193 % 2**32
    return h


payload = raw[149:191]  # the first green part
written = int.from_bytes(raw[128:132], "little")
print(f"computed {fnv1a(payload):08x}, the file says {written:08x}")
assert fnv1a(payload) == written

# %% [markdown]
# ## Damage it
#
# Disks, cables and half-finished downloads turn bits over. We turn over one bit of the chat: `0x20` is the
# difference between a capital and a small letter.

# %%
hurt = bytearray(raw)
hurt[161] ^= 0x20
damaged = scratch / "damaged.atlas"
damaged.write_bytes(hurt)

for finding in validate_file(damaged).findings:
    print(f"{finding.severity} at byte {finding.offset}, {finding.key}: {finding.message}")

with MemoryFile.open(damaged) as memory:
    print("\nThe other entry is fine:", memory["user_prefs"].text)
    try:
        memory["chat_history"].text
    except AtlasError as error:
        print("This one is not:", error.message)

# %% [markdown]
# You are never given wrong bytes silently, and one bad entry does not take the others with it.
#
# ## Repair it
#
# `repair` never touches the damaged file. It writes a new one with all that is intact, and lays what it
# cannot vouch for beside it under `lost+found/`, because a chat with one wrong letter is still a chat.

# %%
result = repair_file(damaged, scratch / "repaired.atlas")
print(f"{result.saved} saved, {result.lost} damaged\n")
with MemoryFile.open(scratch / "repaired.atlas") as memory:
    for key, entry in memory.items():
        print(f"{key:<26}{' / '.join(entry.text.splitlines())}")
assert validate_file(scratch / "repaired.atlas").ok

# %% [markdown]
# `assistant` has become small. Anyone who knows English can put that right; a checksum cannot.
#
# ## What is guarded, and what is not?
#
# One bit was noticed. Would every other be? There are only 2,128 of them, so let us try them all: turn one
# over, ask `validate`, ask `repair`, turn it back.

# %%
FATES = [  # colour, what it is
    ("#9a9a9a", "nobody notices"),
    ("#cfe4f5", "noticed, and every entry rescued"),
    ("#f7b267", "noticed, and one payload in doubt"),
]


def fate(data, bit):
    """Turn over one bit; return which of the three FATES it meets."""
    tried = bytearray(data)
    tried[bit // 8] ^= 1 << (bit % 8)
    if validate_file(bytes(tried)).ok:
        return 0
    return 1 if repair_file(bytes(tried), None, RepairOptions(dry_run=True)).saved == 2 else 2


def survey(data):
    """Return how many of the eight bits of each byte meet each fate: (bytes, 3)."""
    fates = np.array([fate(data, bit) for bit in range(8 * len(data))]).reshape(-1, 8)
    return (fates[:, :, None] == range(3)).sum(axis=1)


def report(found):
    """Print how many bits met which fate."""
    for (_, fate), count in zip(FATES, found.sum(axis=0), strict=True):
        print(f"{count:5} bits: {fate}")


found = survey(raw)
report(found)

# %%
figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
draw_bytes(axes, raw, [FATES[row.argmax()][0] for row in found], letters)
explain(figure, FATES)
axes.set_title("What happens when a bit of this byte is turned over?", fontsize=10)
plt.show()

# %% [markdown]
# Every bit of the header and of the payloads is guarded. Grey is the weakness of version 1: no checksum
# covers an entry's type, flags, time and key. Turn over a bit of `chat_history` and the file is *valid*, only
# that the chat is now called `chat_hisuory` and no program finds it.
#
# ## Exercise
#
# Version 2 was made to mend this. Convert the sample (`convert_file(sample, scratch / "new.atlas")` writes
# version 2), survey it in the same way, and find out which bytes are still unguarded. Do they matter?

# %% tags=["solution"]
with folded():
    convert_file(sample, scratch / "new.atlas")
    new = (scratch / "new.atlas").read_bytes()
    found = survey(new)
    report(found)

    unguarded = {place for place, row in enumerate(found) if row[0]}
    for region in inspect_file(scratch / "new.atlas", Wanted(map=True)).regions:
        if inside := unguarded & set(range(region.offset, region.offset + region.size)):
            held = " ".join(f"{new[place]:02x}" for place in sorted(inside))
            print(f"unguarded: the {region.kind} at byte {region.offset}, which holds {held}")

    # Padding, zeros that nobody reads: they move the next record to a multiple of 8. In version 2 each record has
    # a checksum over its whole head, so the type, the time and the key are as safe as the payload.
    assert all(new[place] == 0 for place in unguarded)

# %% [markdown]
# ## What to read in the code
#
# | file | holds |
# |---|---|
# | `formats/atlas.md` | the specification, with the field tables that you saw above |
# | `atlas_kit/formats/atlas/layout.py` | the schema: tables, `--hex` and parser come from it |
# | `atlas_kit/formats/atlas/check.py` | what `validate` looks for |
# | `atlas_kit/formats/atlas/rescue.py` | how `repair` finds entries when lengths and counts cannot be trusted |
#
# Next: [What is in a GGUF?](02_gguf.ipynb) And if you liked breaking things: [Who broke the
# memory?](08_broken_memory.ipynb)
