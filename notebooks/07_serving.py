# %% [markdown]
# # 7. How do you watch a memory at work?
#
# Several people talk to one model, and each has a memory of their own that learns from every word. Somebody
# has to keep an eye on this: is it learning? Does it help? Who is waiting for whom? Here you look over the
# shoulder of three readers while they read, first in this notebook and then in a server that it starts itself.
#
# *A minute on one core. The server needs `pip install '.[serve]'`, which `make lab` has done.*

# %%
import atexit
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display

from atlas_kit.llama import AtlasSession, Sampling, SessionPool, open_engine
from atlas_kit.settings.recommend import recommend
from atlas_kit.widgets import MemoryCompare, MemoryLab, folded, use_page_style

use_page_style()  # figures that read on a light page and on a dark one
model = "../sample_data/models/tiny-python.gguf"
settings = recommend(model).settings
engine = open_engine(model, n_sequences=3, n_threads=1)  # one model, room for three

READERS = {"Ada": "argparse.py", "Ben": "statistics.py", "Cleo": "english.txt"}
COLOURS = {"Ada": "#0072b2", "Ben": "#d55e00", "Cleo": "#009e73"}
MARKS = {"Ada": "o-", "Ben": "s--", "Cleo": "D-."}
texts = {name: Path("../sample_data/documents", file).read_text() for name, file in READERS.items()}

# %% [markdown]
# ## The smallest example
#
# A session knows how it is doing. `stats` can be asked for at any time and costs nothing:

# %%
with AtlasSession(engine, memory=settings) as session:
    session.feed(texts["Ada"][:3000])
    stats = session.stats

for name in ("tokens_read", "context", "n_ctx", "rollovers"):
    print(f"{name:<16}{stats[name]:>10,}")
for name in ("loss_model", "loss"):
    print(f"{name:<16}{stats[name]:>10.3f}")
print("\nof its memory:")
for name in ("tokens_learned", "window", "window_size", "state_bytes"):
    print(f"{name:<16}{stats['memory'][name]:>10,}")

# %% [markdown]
# `loss_model` and `loss` are the mean surprise in nats per token, of the model alone and with its memory. The
# difference is what the memory is worth.
#
# ## A live picture: three readers
#
# A `SessionPool` decodes the next piece of everybody at the same time. We let three sessions read, look at
# them whenever each has read 250 tokens more, and redraw. Watch it move.


# %%
def draw(looks):
    """Draw the loss of each model alone and with its memory, and how full the windows are."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(2.4, 1), layout="constrained")
    for name, stats in looks.items():
        read = [look["tokens_read"] for look in stats]
        left.plot(read, [look["loss_model"] for look in stats], ":", color=COLOURS[name])
        left.plot(read, [look["loss"] for look in stats], MARKS[name], color=COLOURS[name], label=name)
        right.barh(name, stats[-1]["memory"]["window"] if stats else 0, color=COLOURS[name])
    left.set(xlabel="tokens read", ylabel="mean loss, nats per token", xlim=(0, 2600))
    left.set_title("dotted: the model alone; with marks: with its memory", fontsize=10)
    left.legend(frameon=False, ncols=3, loc="upper right")
    right.set(xlabel="tokens in the window", xlim=(0, 2600))
    right.invert_yaxis()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    plt.close(figure)  # or it would be shown once more below the cell
    return figure


sessions = {name: AtlasSession(engine, memory=settings) for name in READERS}
pool = SessionPool(engine)
for name, session in sessions.items():
    pool.feed(session, engine.tokenize(texts[name])[:2500])

looks = {name: [] for name in READERS}
shown = display(draw(looks), display_id=True)
while len(pool):
    pool.step()  # one decode for all
    fresh = {name: session.stats for name, session in sessions.items()}
    last = {name: stats[-1]["tokens_read"] if stats else 0 for name, stats in looks.items()}
    if all(fresh[name]["tokens_read"] - last[name] >= 250 for name in READERS):
        for name in READERS:
            looks[name].append(fresh[name])
        shown.update(draw(looks))

# %% [markdown]
# Every curve with marks runs below its dotted one, whatever is read. Nobody's reading disturbs another's: each has
# a context and a memory of their own, and only the model is shared.
#
# ## The equation: what happened lately?
#
# Means over everything are slow to change. Ask twice, after $n_1$ and after $n_2$ tokens, and the mean of
# what was read in between is
#
# $$\bar\ell_{1 \to 2} = \frac{n_2\, \bar\ell_2 - n_1\, \bar\ell_1}{n_2 - n_1}$$


# %%
def since(before, after):
    """Return the mean loss of (model, model with memory) between two looks at a session's stats."""
    n1, n2 = (stats["memory"]["tokens_seen"] for stats in (before, after))
    return [(n2 * after[key] - n1 * before[key]) / (n2 - n1) for key in ("loss_model", "loss")]


figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
for name, stats in looks.items():
    saved = [np.subtract(*since(before, after)) for before, after in pairwise(stats)]
    read = [look["tokens_read"] for look in stats[1:]]
    axes.plot(read, saved, MARKS[name], color=COLOURS[name], label=name)
axes.axhline(0, color="#999999", linewidth=0.8)
axes.set(xlabel="tokens read", ylabel="nats saved, lately")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# Now the ups and downs can be seen: pages that repeat what was there before, and pages where everything is
# new.
#
# ## Who waits for whom?
#
# Now Ada pastes a long text, while Ben and Cleo are being answered. Each column below is one decode of the
# model.

# %%
jobs = {"Ada": pool.feed(sessions["Ada"], engine.tokenize(texts["Ada"])[2500:5500])}
for name in ("Ben", "Cleo"):
    jobs[name] = pool.generate(sessions[name], max_tokens=12, sampling=Sampling(temperature=0))

decodes = []
while len(pool):
    before = {name: session.stats["tokens_read"] for name, session in sessions.items()}
    spoke = [job for job, tokens in pool.step() if tokens]
    decodes.append({
        "reads": [name for name in jobs if sessions[name].stats["tokens_read"] > before[name]],
        "speaks": [name for name, job in jobs.items() if job in spoke],
    })  # fmt: skip

figure, axes = plt.subplots(figsize=(10, 1.9), layout="constrained")
for kind, mark in (("reads", "s"), ("speaks", "o")):
    points = [(step, name) for step, decode in enumerate(decodes) for name in decode[kind]]
    colours = [COLOURS[name] for _, name in points]
    axes.scatter(*zip(*points, strict=True), marker=mark, s=90, color=colours, label=kind)
axes.set(xlabel="decode", ylim=(2.5, -0.5))
axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
axes.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# Ben and Cleo get a token with every decode, however long Ada's text is: it is cut into pieces, and nobody
# waits for longer than one of them takes. (This is called *continuous batching*.)
#
# ## A server of your own
#
# The three have sat in this notebook so far. A server is the same for programs anywhere: it owns the model, and
# whoever names a session gets its memory. This one takes a free port, and keeps its memories in a folder that goes
# away with the notebook.

# %%
scratch = tempfile.TemporaryDirectory()
server = None


def start(port="0"):
    """Start the server, on any free port; return its address once it listens."""
    global server
    log = Path(scratch.name, "server.log")
    command = [sys.executable, "-m", "atlas_kit", "serve", "-m", model, "--port", port, "--threads", "1",
               "--atlas-auto", "--atlas-memory-dir", str(Path(scratch.name, "memories"))]  # fmt: skip
    with log.open("w") as file:  # of its own group: who interrupts the kernel does not mean the server
        server = subprocess.Popen(command, stderr=file, start_new_session=True)
    while "listening at " not in log.read_text():
        if server.poll() is not None:
            raise RuntimeError(f"the server did not start: {log.read_text()}")
        time.sleep(0.1)
    return log.read_text().partition("listening at ")[2].split()[0]


def stop():
    """End the server as Ctrl-C does: it saves first."""
    server.terminate()
    return server.wait(60)


atexit.register(lambda: stop() if server and server.poll() is None else None)  # at the latest with the kernel


def post(path, **body):
    """Send JSON, and return the JSON that comes back."""
    request = urllib.request.Request(
        f"{url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def tell(name, text):
    """Let a session read a text and add a few tokens; return what the memory did."""
    atlas = {"session_id": name}
    return post("/v1/completions", prompt=text, max_tokens=4, temperature=0, atlas=atlas)["atlas"]


url = start()
for name in ("Ada", "Ben"):
    said = tell(name, texts[name][:5000])
    alone, remembering = np.exp([said["model_loss"], said["omega_loss"]])
    print(
        f"{name}: {said['tokens_seen']:,} tokens, perplexity {alone:.2f} alone, {remembering:.2f} with the memory"
    )

# %% [markdown]
# Any client of OpenAI's or Anthropic's API does this as well (`OpenAI(base_url=f"{url}/v1", api_key="none")`), and
# the address opens in a browser. `MemoryLab`, which [notebook 5](05_real_model.ipynb) let read, can also look on: it
# sees what a session reads and says from now on, token by token, and, where it is a chat, what was recalled for each
# answer ([notebook 9](09_does_it_remember.ipynb)).

# %%
lab = MemoryLab(url, session="Ada")
said = tell("Ada", texts["Ada"][5000:9000])
while lab.facts()["seen"] < said["tokens_seen"]:  # what is seen arrives a moment later
    time.sleep(0.1)
lab

# %% [markdown]
# The lab stays connected: run the next cells one by one, and look at it again. (The last cell closes it; it then shows
# what it saw last.) And what do Ada and Ben know by now?
# [Notebook 6](06_comparing_memories.ipynb) compared files; here each memory comes from the server at the moment
# that it is looked at, as a file that is on no disk. The text (in the tab *Behaviour*, once the last cell has run) is
# from Ben's document, after what he has read.

# %%
comparison = MemoryCompare(
    url, session=("Ada", "Ben"), model=sessions["Cleo"], probe=texts["Ben"][5000:5600], labels=("Ada", "Ben")
)
comparison.compare_behaviour()
comparison

# %% [markdown]
# ### The server goes, the memory stays
#
# The server ends, and another one starts at the same address, where the lab above finds it again. It has never met
# anybody; but the folder is the same. Ada reads on, and a newcomer reads the same page.

# %%
stop()
url = start(url.rpartition(":")[2])
page = texts["Ada"][9000:12000]
with urllib.request.urlopen(f"{url}/v1/atlas/sessions") as answer:
    print("the new server knows", " and ".join(sorted(one["id"] for one in json.load(answer)["data"])))

for name in ("Ada", "Dora"):
    said = tell(name, page)
    alone, remembering = np.exp([said["model_loss"], said["omega_loss"]])
    print(f"{name:<5}{said['tokens_seen']:>6,} tokens in the memory; this page: "
          f"perplexity {alone:.2f} alone, {remembering:.2f} with it")  # fmt: skip

# %% [markdown]
# Ada's memory has outlived the server: to her, the page is a continuation, and to Dora it is news.
#
# ## Exercise
#
# 1. Ben reads his document a second time, in this notebook. How much less does it surprise him? The model alone
#    cannot know that it has been there before. Use `since`.
# 2. On the server, let a copy of Ada read Ben's page. Does Ada hear of it? A session is copied by
#    `post("/v1/atlas/sessions/Ada/fork", session_id="Eve")`.

# %% tags=["solution"]
with folded():
    before = sessions["Ben"].stats
    sessions["Ben"].feed(engine.tokenize(texts["Ben"])[:2500])
    again = since(before, sessions["Ben"].stats)
    first = since(looks["Ben"][0], looks["Ben"][-1])
    for label, losses in (("first", first), ("second", again)):
        alone, remembering = np.exp(losses)
        print(f"{label:<7} reading: perplexity {alone:5.2f} alone, {remembering:5.2f} with the memory")

    # A perplexity of 1 would be no surprise at all. The window still holds the first reading word for word, and says
    # what came next; the learned matrix alone would know the text's manner, and not its every word.

# %% tags=["solution"]
with folded():
    post("/v1/atlas/sessions/Ada/fork", session_id="Eve")
    tell("Eve", texts["Ben"][:3000])
    with urllib.request.urlopen(f"{url}/v1/atlas/sessions") as answer:
        for one in sorted(json.load(answer)["data"], key=lambda one: one["id"]):
            learned = one["tokens_learned"]
            print(one["id"], "rests in a file" if learned is None else f"has learned {learned:,} tokens")

# %%
lab.close()
comparison.close()
print("the server has ended, with status", stop())
scratch.cleanup()
for session in sessions.values():
    session.close()
engine.close()

# %% [markdown]
# ## What to read in the code
#
# | file | holds |
# |---|---|
# | `atlas_kit/llama/pool.py` | the pool: a page |
# | `atlas_kit/llama/session.py` | a session's work in steps, so that others can batch them, and `stats` |
# | `atlas_kit/server/service.py` | the same with a name for everybody, and what is kept of them |
# | `atlas_kit/server/memory_views.py` | what a server gives of a memory: the file, the matrix on its page |
# | `atlas_kit/widgets/lab/attached.py` | a lab that looks on |
#
# Next, a detective story: [Who broke the memory?](08_broken_memory.ipynb)
