# %% [markdown]
# # 8. Who broke the memory?
#
# **A detective story.** Monday morning. For a year your assistant has known that you have a bicycle, and that
# its chain slips. Today you ask about it, and the answer is: *"Which bicycle?"*
#
# The memory lies on the table: `assistant.atlas`, 6,889 bytes. Something has happened to it over the weekend.
# Five suspects are in the building, and each of them has broken memories before:
#
# | suspect | is known for |
# |---|---|
# | **the Interrupted Download** | stops halfway, and leaves before the end |
# | **the Crash** | writes zeros over the header, and forgets the rest |
# | **the Other Program** | means well, but counts checksums in a way of its own |
# | **the Intruder** | knows exactly what to change, and where |
# | **the Cosmic Ray** | one bit, no motive |
#
# Let us look at the evidence. (The names of the tools are also the commands: `atlas-tool validate`, `inspect
# --hex`, `repair`, `diff`. They never touch the file that they examine.)

# %%
import shutil
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from atlas_kit import AtlasError, MemoryFile
from atlas_kit.operations.diff import diff_files
from atlas_kit.operations.inspect import Wanted, inspect_file
from atlas_kit.operations.repair import repair_file
from atlas_kit.operations.validate import validate_file
from atlas_kit.widgets import folded, use_page_style

use_page_style()  # figures that read on a light page and on a dark one
archive = Path("../sample_data/broken")
laboratory = Path(tempfile.mkdtemp())
victim = laboratory / "assistant.atlas"
_ = shutil.copy(archive / "bit-flip.atlas", victim)  # its name in the archive says too much

# %% [markdown]
# ## First look: the smallest example of a broken memory

# %%
with MemoryFile.open(victim) as memory:
    for key, entry in memory.items():
        try:
            print(f"{key:<18}{entry.text[:46]!r} ...")
        except AtlasError as error:
            print(f"{key:<18}*** {error.message}")

# %% [markdown]
# Six entries talk, one is silent: `chat/002-bicycle`. Its payload does not give the checksum that was noted
# when it was written, and the library would rather say so than hand out wrong bytes.
#
# ## A picture: the fingerprints
#
# Each culprit leaves findings of its own behind. In the archive there is an earlier case of each; the last row is
# ours.

# %%
CASES = {
    "Interrupted Download": archive / "truncated.atlas",
    "Crash": archive / "no-header.atlas",
    "Other Program": archive / "dialect-crc32.atlas",
    "Intruder": archive / "secret-altered.atlas",
    "our case": victim,
}
prints = {who: {finding.code for finding in validate_file(path).findings} for who, path in CASES.items()}
prints["Intruder"].discard("contents-not-checked")  # only says that we have no passphrase
codes = sorted(set().union(*prints.values()))

figure, axes = plt.subplots(figsize=(9, 2.8), layout="constrained")
for row, (who, left) in enumerate(prints.items()):
    axes.axhline(row, color="#7a7a7a", alpha=0.3, zorder=0)
    columns = [codes.index(code) for code in left]
    axes.scatter(columns, [row] * len(columns), s=190, color="#c44e52" if who == "our case" else "#4c72b0")
axes.set_xticks(range(len(codes)), codes, rotation=25, ha="right")
axes.set_yticks(range(len(prints)), prints)
axes.set(xlim=(-0.6, len(codes) - 0.4), ylim=(len(prints) - 0.5, -0.5))
axes.spines[:].set_visible(False)
axes.tick_params(length=0)
plt.show()

# %% [markdown]
# Our case left a single print, `payload-checksum`, and so did an earlier deed of the Intruder's. It looks bad
# for him. (There is no record of the Cosmic Ray. There never is.)
#
# ## Three alibis
#
# **The Interrupted Download.** It would have left the file shorter than its header promises.

# %%
fields = {field.name: field for field in inspect_file(victim, Wanted(hex=True)).fields}
promised = 104 + int(fields["header.total_size"].value)
print(f"promised {promised:,} bytes, found {victim.stat().st_size:,}")
assert promised == victim.stat().st_size  # not a byte is missing

# %% [markdown]
# **The Crash.** It starts at the front. But the header's checksum is in order:

# %%
print(fields["header.checksum"].meaning)

# %% [markdown]
# **The Other Program.** It uses CRC-32 where FNV-1a is asked for. Then *all* checksums would be wrong, but the header's
# fits, and so do six of the seven entries'. (First the bytes as they stand in the file, the lowest first; then the
# number that they are.)

# %%
for name, field in fields.items():
    if name.endswith(".checksum"):
        number = int.from_bytes(field.data, "little")  # the lowest byte stands first in the file
        print(f"{name:<20}{field.data.hex(' ')}  = 0x{number:08x}  {field.meaning.split(': ')[1]}")

# %% [markdown]
# Two suspects are left: the Intruder, and the Cosmic Ray.
#
# ## The scene of the crime
#
# Have a look around yourself. A small file is checked as it is opened (a larger one when you press *Check the file*):
# the red mark on the map shows where it hurts, and *Findings* takes you there.

# %%
from atlas_kit.widgets import FileExplorer

FileExplorer(victim)

# %% [markdown]
# To read the silent chat we need `repair`. It writes what is whole into a new file, and what is in doubt
# under `lost+found/`:

# %%
result = repair_file(victim, laboratory / "rescued.atlas")
print(f"{result.saved} entries saved, {result.lost} in doubt")
with MemoryFile.open(laboratory / "rescued.atlas") as memory:
    statement = memory["lost+found/chat/002-bicycle"].data
print("", *statement.decode().split("\n")[:2], sep="\n")

# %% [markdown]
# *"Start smal|"*. There is something. But is it the deed, or did somebody mistype a year ago? A typing error
# that was there when the checksum was computed would fit the checksum. We need proof.
#
# ## The equation that convicts
#
# The checksum of version 1 is FNV-1a (section "Version 1" of `formats/atlas.md`),
#
# $$h_0 = \mathtt{0x811C9DC5}, \qquad h_i = (h_{i-1} \oplus b_i) \cdot \mathtt{0x01000193} \bmod 2^{32}$$
#
# and the file says what it was *before* the deed. If the Cosmic Ray did it, there is one bit which, turned
# back, gives exactly this number. The payload has 8,928 bits. Let us interrogate all of them at once, one row
# for each:

# %%
fingerprint = int.from_bytes(fields["entries[1].checksum"].data, "little")

bits = 8 * len(statement)
versions = np.tile(np.frombuffer(statement, np.uint8), (bits, 1))  # (8928, 1116)
versions[np.arange(bits), np.arange(bits) // 8] ^= 1 << (np.arange(bits) % 8).astype(np.uint8)

h = np.full(bits, 0x811C9DC5, np.uint32)
for column in versions.T:
    h = (h ^ column) * np.uint32(0x01000193)  # uint32 wraps around: this is the mod 2**32

guilty = np.flatnonzero(h == fingerprint)
print("bits that explain the checksum:", *guilty)

# %% [markdown]
# One. Not none, and not two. By accident, a wrong bit would fit with a chance of $8928 / 2^{32}$, one in half
# a million.
#
# The picture of it: for each bit, in how many of its 32 digits does the checksum disagree? Innocent bits are
# like coins: about 16.

# %%
wrong = np.unpackbits((h ^ np.uint32(fingerprint)).view(np.uint8).reshape(bits, 4), axis=1).sum(axis=1)
place, bit = divmod(int(guilty[0]), 8)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.2), width_ratios=(2.2, 1), layout="constrained")
left.scatter(np.arange(bits) / 8, wrong, s=2, color="#9fb4d0")
left.scatter([place], [0], s=90, color="#c44e52", marker="X")
left.annotate(f"byte {place}, bit {bit}", (place, 0), (place + 40, 1.2), color="#c44e52", fontsize=11)
left.set(xlabel="byte in which one bit is turned back", ylabel="checksum digits that are wrong")
left.set_ylim(-1.5, 30)

before, after = int(versions[guilty[0], place]), statement[place]
for row, (label, byte) in enumerate((("written", before), ("found", after))):
    right.text(-0.7, row, f"{label} {chr(byte)!r}", ha="right", va="center", fontsize=12, family="monospace")
    for column in range(8):
        changed = 7 - column == bit
        right.text(column, row, (byte >> (7 - column)) & 1, ha="center", va="center", fontsize=15,
                   color="#c44e52" if changed else "#7a7a7a", weight="bold" if changed else "normal")  # fmt: skip
right.set(xlim=(-4.8, 7.6), ylim=(2.6, -1.6))
right.axis("off")
plt.show()

# %% [markdown]
# An `l` became a `|`: one bit of one letter. The Intruder would have changed a word, and put the checksum
# right afterwards, which FNV-1a does not prevent. (Against *people* there is version 3: encrypted and
# authenticated.)
#
# **It was the Cosmic Ray.**
#
# ## Making good
#
# We know which bit, so we can do what no repair could do without proof: turn it back.

# %%
with MemoryFile.load(laboratory / "rescued.atlas") as memory:
    memory.set("chat/002-bicycle", versions[guilty[0]].tobytes(), type=2)  # 2: a conversation
    del memory["lost+found/chat/002-bicycle"]
    memory.save(laboratory / "healed.atlas")
assert validate_file(laboratory / "healed.atlas").ok

# %% [markdown]
# And a witness turns up: `wrong-count.atlas` holds the same chats, only its header was hit. What does `diff`
# say to both?

# %%
repair_file(archive / "wrong-count.atlas", laboratory / "witness.atlas")
comparison = diff_files(laboratory / "witness.atlas", laboratory / "healed.atlas")
print(f"{comparison.same} entries are the same, {len(comparison.changes)} differ")
assert not comparison.changes

# %% [markdown]
# *"How is your bicycle?"* asks the assistant. Case closed.
#
# ## Exercise: the second case
#
# `length-hit.atlas` holds the same chats, and will not even open: its second entry claims to be two gigabytes
# long. All of its bytes are still there, but where does it end? The checksum was not hit. Find the true
# length with nothing but the equation above. (`repair` can do it too. How did it know?)

# %% tags=["solution"]
with folded():
    scene = archive / "length-hit.atlas"
    try:
        MemoryFile.open(scene)
    except AtlasError as error:
        print("the library:", error.message)

    fields = {field.name: field for field in inspect_file(scene, Wanted(hex=True)).fields}
    length = fields["entries[1].data_size"]
    print(
        "the length field:", length.data.hex(" "), "or, the highest byte first,", f"0x{int(length.value):08x}"
    )
    start = fields["entries[1].key_length"].offset + 32 + len("chat/002-bicycle") + 1
    rest = scene.read_bytes()[start:]

    # The checksum is computed byte by byte. So run it until it is what the file says: there the payload ends.
    wanted = int.from_bytes(fields["entries[1].checksum"].data, "little")
    running = 0x811C9DC5
    for length, byte in enumerate(rest, start=1):
        running = (running ^ byte) * 0x01000193 % 2**32
        if running == wanted:
            print("the true length:", length)
            break
    assert length == len(statement)

    # A second proof: the header's total_size counts all entries, and the others account for all but this many bytes.
    for entry in repair_file(scene, laboratory / "second.atlas").rescue.saved:
        print(f"  {entry.key:<18}{entry.size:5} bytes, {entry.how}")

# %% [markdown]
# ## What to read in the code
#
# | file | holds |
# |---|---|
# | `atlas_kit/formats/atlas/scan_v1.py` | finding entries when no count and no length can be trusted |
# | `atlas_kit/formats/atlas/rescue_plan.py` | what becomes of each piece, and `lost+found/` |
# | `atlas_kit/operations/diff.py` | comparing by meaning: text, JSON, numbers |
# | `sample_data/MANIFEST.toml` | all twenty cases in the archive, nine of them models, with what should be found |
#
# Next: [Does it remember?](09_does_it_remember.ipynb) And more about bytes: [What is in a memory
# file?](01_memory_file.ipynb)
