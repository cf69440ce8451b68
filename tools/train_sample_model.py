"""Train the sample model: a small Llama on the text that ships with Python, written as GGUF.

    python tools/train_sample_model.py --minutes 90

It needs ``pip install torch tokenizers`` (nothing else in this repository does) and about 3 GB of memory. What it
reads is the standard library of the interpreter that runs it, with its tests; what it never reads is
``HELD_OUT``: every figure about this model is measured on those documents only. It writes

- ``sample_data/models/tiny-python.gguf``: Q8_0, with a chat template and where it comes from in its metadata,
- ``sample_data/models/tiny-python.md``: the model card, from the same numbers,
- ``sample_data/documents/``: the held-out documents that the demo and the benchmarks read.

The architecture is the plain one of llama.cpp (RMSNorm, interleaved RoPE, SwiGLU, grouped queries, tied embeddings).
Matrices are trained with Muon, the rest with AdamW; the learning rate is a trapezium over the given time.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import os
import platform
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from tools.held_out import HELD_OUT  # noqa: E402

STDLIB = Path(sysconfig.get_paths()["stdlib"])

#: English instead of Python: what `help("topics")` prints. No part of this file is trained on.
ENGLISH = STDLIB / "pydoc_data" / "topics.py"
ENGLISH_BYTES = 80_000

BOS, EOS, SYSTEM, USER, ASSISTANT, END = SPECIAL = (
    "<|begin|>",
    "<|endoftext|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; 8.7 million parameters, 9.4 MB as Q8_0."""

    vocabulary: int = 4096
    width: int = 256
    layers: int = 9
    heads: int = 4
    heads_kv: int = 2
    feed_forward: int = 768
    context: int = 512
    rope_base: float = 10_000.0
    epsilon: float = 1e-5

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.width // self.heads


# --- text ---------------------------------------------------------------------------------------------------------


def is_held_out(path: Path) -> bool:
    """Whether a file of the standard library belongs to the held-out documents."""
    relative = path.relative_to(STDLIB).as_posix()
    return path == ENGLISH or any(name in relative for names in HELD_OUT.values() for name in names)


def training_files() -> list[Path]:
    """Every source file of the standard library that may be read, in a fixed order."""
    skipped = ("site-packages", "dist-packages", "__pycache__")
    files = sorted(p for p in STDLIB.rglob("*.py") if not any(part in skipped for part in p.parts))
    return [p for p in files if not is_held_out(p)]


def read(path: Path) -> str:
    """The text of a file, or nothing where it is not UTF-8 (the tests of the tokenizer module hold such files)."""
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return ""


def conversations(source: str) -> list[tuple[str, str]]:
    """(docstring, function) pairs of a module: what the chat template is trained on."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    pairs = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (doc := ast.get_docstring(node)):
            code = ast.get_source_segment(source, node)
            if code and len(code) < 1500 and 20 < len(doc) < 400:
                pairs.append((doc.strip(), code))
    return pairs


def english() -> str:
    """The first ``ENGLISH_BYTES`` of the help topics, as a reader sees them."""
    topics: dict[str, str] = ast.literal_eval(ENGLISH.read_text(encoding="utf-8").split("=", 1)[1].strip())
    return "\n\n".join(topics[name] for name in sorted(topics))[:ENGLISH_BYTES]


def train_tokenizer(texts: list[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE with the pre-tokenizer of GPT-2, which llama.cpp knows as ``gpt-2``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def corpus(tokenizer: Tokenizer, texts: list[str], seed: int) -> np.ndarray:
    """All training tokens, files and conversations shuffled, each after a begin token."""
    pieces = [
        [tokenizer.token_to_id(BOS), *e.ids, tokenizer.token_to_id(EOS)]
        for e in tokenizer.encode_batch(texts)
    ]
    chats = [
        f"{BOS}{USER}\n{question}{END}\n{ASSISTANT}\n{answer}{END}\n"
        for text in texts
        for question, answer in conversations(text)
    ]
    pieces += [e.ids for e in tokenizer.encode_batch(chats)]
    order = np.random.default_rng(seed).permutation(len(pieces))
    return np.concatenate([np.asarray(pieces[i], np.int32) for i in order])


# --- model --------------------------------------------------------------------------------------------------------


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on interleaved pairs, as llama.cpp does for this architecture; x: (batch, heads, tokens, head)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Block(nn.Module):
    """Attention and feed-forward, each behind its norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv = shape.heads_kv * shape.head
        self.attn_norm = nn.RMSNorm(shape.width, shape.epsilon)
        self.attn_q = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_k = nn.Linear(shape.width, kv, bias=False)
        self.attn_v = nn.Linear(shape.width, kv, bias=False)
        self.attn_output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.width, shape.epsilon)
        self.ffn_gate = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.ffn_down = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """Return the residual stream (batch, tokens, width) behind this block."""
        b, t, _ = x.shape
        h = self.attn_norm(x)
        q, k, v = (
            layer(h).view(b, t, -1, self.shape.head).transpose(1, 2)
            for layer in (self.attn_q, self.attn_k, self.attn_v)
        )
        groups = self.shape.heads // self.shape.heads_kv
        k, v = (part.repeat_interleave(groups, 1) for part in (rotate(k, cos, sin), v))
        # written out, because compiled it is 1.5 times as fast here as PyTorch's fused attention for the CPU
        weights = rotate(q, cos, sin) @ k.transpose(-1, -2) * self.shape.head**-0.5 + mask[:t, :t]
        y = torch.softmax(weights, -1, dtype=v.dtype) @ v
        x = x + self.attn_output(y.transpose(1, 2).reshape(b, t, -1))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Llama(nn.Module):
    """Token ids (batch, tokens) to logits; the embedding is the read-out too."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, shape.epsilon)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("attn_output.weight", "ffn_down.weight"))
                scale = 0.02 if "embd" in name else parameter.shape[1] ** -0.5
                nn.init.normal_(parameter, std=scale / math.sqrt(2 * shape.layers) if residual else scale)
        frequency = shape.rope_base ** (-torch.arange(0, shape.head, 2) / shape.head)
        angle = torch.outer(torch.arange(shape.context), frequency)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        mask = torch.full((shape.context, shape.context), float("-inf")).triu(1)
        self.register_buffer("mask", mask.to(torch.bfloat16), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits (batch, tokens, vocabulary)."""
        x = self.token_embd(ids)
        cos, sin = self.cos[: ids.shape[1]].to(x.dtype), self.sin[: ids.shape[1]].to(x.dtype)
        for block in self.blk:
            x = block(x, cos, sin, self.mask)
        return F.linear(self.output_norm(x), self.token_embd.weight)

    def loss(self, ids: Tensor) -> Tensor:
        """Mean loss in nats of ids[:, 1:] after ids[:, :-1]."""
        with torch.autocast("cpu", torch.bfloat16):
            logits = self(ids[:, :-1])
        return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten().long())


# --- training -----------------------------------------------------------------------------------------------------


def trapezium(progress: float, warm: float = 0.02, fall: float = 0.35) -> float:
    """Share of the peak learning rate at ``progress`` of the run."""
    return min(1.0, progress / warm, max(0.01, (1 - progress) / fall))


def train(model: Llama, tokens: np.ndarray, args: argparse.Namespace, report) -> dict[str, float]:
    """Train for ``args.minutes``; returns steps, tokens and the last losses."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embd" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embd" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=args.rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    loss_of = torch.compile(model.loss) if args.compile else model.loss
    length, rng = model.shape.context, np.random.default_rng(args.seed)
    windows = len(tokens) // length - 1
    order, step, seen, recent = np.empty(0, np.int64), 0, 0, []
    if args.resume:  # weights only: the optimisers warm up again
        was = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(was["model"])
        step, seen = was["result"]["steps"], was["result"]["tokens"]
    before, started = seen, time.monotonic()
    while (progress := (time.monotonic() - started) / (60 * args.minutes)) < 1:
        if len(order) < args.batch:  # a new epoch starts at a new offset, so that no cut is always the same
            order = np.concatenate([order, rng.permutation(windows) * length + rng.integers(length)])
        starts, order = order[: args.batch], order[args.batch :]
        batch = torch.from_numpy(np.stack([tokens[s : s + length + 1] for s in starts]))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.rate * trapezium(progress)
        loss = loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + batch.numel()
        recent = [*recent[-99:], float(loss.detach())]
        if step % 50 == 0:
            seconds = time.monotonic() - started
            report(
                f"step {step:6d}  {seen / 1e6:7.1f} M tokens  {(seen - before) / seconds:7.0f} tokens/s"
                f"  loss {np.mean(recent):.3f}"
            )
        if step % 250 == 0:
            torch.save(
                {"model": model.state_dict(), "result": {"steps": step, "tokens": seen}}, args.checkpoint
            )
    result = {"steps": step, "tokens": seen, "epochs": seen / len(tokens), "loss": float(np.mean(recent))}
    torch.save({"model": model.state_dict(), "result": result | {"minutes": args.minutes}}, args.checkpoint)
    return result


@torch.no_grad()
def held_out_loss(model: Llama, tokenizer: Tokenizer, text: str) -> tuple[float, int]:
    """Nats per token of a document cut into contexts, and its tokens."""
    ids = [tokenizer.token_to_id(BOS), *tokenizer.encode(text).ids]
    length, total, count = model.shape.context, 0.0, 0
    for start in range(0, len(ids) - 1, length):
        part = torch.tensor([ids[start : start + length + 1]])
        total += float(model.loss(part)) * (part.shape[1] - 1)
        count += part.shape[1] - 1
    return total / count, count


# --- writing ------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, model: Llama, tokenizer: Tokenizer, facts: dict[str, str]) -> None:
    """Write the model as Q8_0 (norms as F32) with its tokenizer, chat template and provenance."""
    shape = model.shape
    out = gguf.GGUFWriter(path, "llama")
    out.add_name("tiny-python")
    out.add_description(facts["description"])
    out.add_license("PSF-2.0")
    out.add_author("The atlas_kit authors")
    out.add_string("general.provenance", facts["provenance"])
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    out.add_context_length(shape.context)
    out.add_embedding_length(shape.width)
    out.add_block_count(shape.layers)
    out.add_feed_forward_length(shape.feed_forward)
    out.add_head_count(shape.heads)
    out.add_head_count_kv(shape.heads_kv)
    out.add_rope_dimension_count(shape.head)
    out.add_rope_freq_base(shape.rope_base)
    out.add_layer_norm_rms_eps(shape.epsilon)
    out.add_vocab_size(shape.vocabulary)
    data = json.loads(tokenizer.to_str())["model"]
    ids = {index: text for text, index in data["vocab"].items()}
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list([ids[i] for i in range(shape.vocabulary)])
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    out.add_token_types([control if ids[i] in SPECIAL else normal for i in range(shape.vocabulary)])
    out.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in data["merges"]])
    out.add_bos_token_id(SPECIAL.index(BOS))
    out.add_eos_token_id(SPECIAL.index(EOS))
    out.add_eot_token_id(SPECIAL.index(END))
    out.add_add_bos_token(True)
    out.add_chat_template(CHAT_TEMPLATE)
    for name, parameter in model.named_parameters():
        array = parameter.detach().float().numpy()
        if array.ndim == 1:
            out.add_tensor(name, array)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            out.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def main() -> None:
    """Train, evaluate, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--batch", type=int, default=16, help="contexts per step")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--checkpoint", type=Path, default=Path("tiny-python.pt"))
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint's weights")
    parser.add_argument(
        "--note", default="", help="a sentence for the model card, such as how it was interrupted"
    )
    parser.add_argument("--export-only", action="store_true", help="write the files from the checkpoint")
    parser.add_argument("--out", type=Path, default=ROOT / "sample_data")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    texts = [text for path in training_files() if (text := read(path))]
    shape = Shape()
    tokenizer = train_tokenizer(texts, shape.vocabulary)
    model = Llama(shape)
    if not args.export_only:
        tokens = corpus(tokenizer, texts, args.seed)
        print(f"{len(texts)} files, {len(tokens) / 1e6:.2f} M tokens", flush=True)
        train(model, tokens, args, lambda line: print(line, flush=True))
    was = torch.load(args.checkpoint, weights_only=True)
    model.load_state_dict(was["model"])
    write_all(args.out, model.eval(), tokenizer, texts, was["result"], args.note)


def write_all(
    folder: Path,
    model: Llama,
    tokenizer: Tokenizer,
    texts: list[str],
    result: dict[str, float],
    note: str = "",
) -> None:
    """Write the model, its card and the held-out documents."""
    for name in ("models", "documents"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    documents = {f"{name}.py": read(STDLIB / f"{name}.py") for name in HELD_OUT["test"]} | {
        "english.txt": english()
    }
    losses = {name: held_out_loss(model, tokenizer, text) for name, text in documents.items()}
    for name, text in documents.items():
        (folder / "documents" / name).write_text(text, encoding="utf-8")
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    facts = {
        "description": "A small Llama trained on the standard library of Python, to try memories with.",
        "provenance": (
            f"trained by tools/train_sample_model.py on {len(texts)} files of the standard library of Python "
            f"{platform.python_version()} (sha256 {digest}), {result['tokens'] / 1e6:.1f} million tokens"
        ),
    }
    path = folder / "models" / "tiny-python.gguf"
    write_gguf(path, model, tokenizer, facts)
    card = model_card(model, path, texts, digest, result, losses, documents, note and f" {note}")
    path.with_suffix(".md").write_text(card, encoding="utf-8")
    print(f"{path}: {path.stat().st_size:,} bytes")


def model_card(
    model: Llama, path: Path, texts: list[str], digest: str, result: dict[str, float],
    losses: dict[str, tuple[float, int]], documents: dict[str, str], note: str,
) -> str:  # fmt: skip
    """Return the model card: what it is, how it was made, how good it is on what it has never seen."""
    shape = model.shape
    count = sum(p.numel() for p in model.parameters())
    rows = "\n".join(
        f"| `{name}` | {tokens:,} | {loss:.3f} | {math.exp(loss):.1f} | "
        f"{loss * tokens / math.log(2) / len(documents[name].encode()):.2f} |"
        for name, (loss, tokens) in losses.items()
    )
    return f"""# tiny-python

A Llama of {count / 1e6:.1f} million parameters ({path.stat().st_size / 1e6:.1f} MB as Q8_0): {shape.layers} layers,
width {shape.width}, {shape.heads} heads with {shape.heads_kv} for keys and values, feed-forward
{shape.feed_forward}, context {shape.context}, byte-level BPE of {shape.vocabulary:,} tokens, tied embeddings. It
continues Python code. It is small enough to ship and to run anywhere, and bad enough to need a memory; it knows
nothing else.

**Made by** `python tools/train_sample_model.py --minutes {result["minutes"]:g}` (Muon and AdamW, bfloat16, PyTorch
{torch.__version__.split("+")[0]}, {os.cpu_count()} CPU cores, other work beside it): {result["steps"]:,.0f} steps,
{result["tokens"] / 1e6:.1f} million tokens, {result["epochs"]:.1f} epochs; training loss at the end
{result["loss"]:.2f} nats per token.{note}

**Trained on** {len(texts):,} files of the standard library of Python {platform.python_version()} with its tests
({sum(map(len, texts)) / 1e6:.1f} million characters; sha256 of the texts, joined by NUL, `{digest}`), and on their
functions as answers to their docstrings, which is what the chat template gives.

**Never trained on:** {", ".join(f"`{n}`" for names in HELD_OUT.values() for n in names)}, all files whose path
names one of them, and `pydoc_data/topics.py` (English). The settings of the memory were chosen on
{", ".join(f"`{n}`" for n in HELD_OUT["tune"])}; what is reported is measured on the others:

| document | tokens | nats per token | perplexity | bits per byte |
|---|---|---|---|---|
{rows}

Each document was cut into contexts of {shape.context} tokens, weights in float32 before quantisation.

**Chat template:** `<|user|>`, `<|assistant|>`, `<|system|>` and `<|end|>`. **Licence:** the texts are the Python
Software Foundation's (PSF-2.0), and so is this model.
"""


if __name__ == "__main__":
    main()
