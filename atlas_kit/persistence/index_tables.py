"""What an index of episodes consists of: the fields of its description, and its entries.

Writing, reading and the specification (``formats/atlas-index.md``) share them.
"""

from __future__ import annotations

from atlas_kit.persistence.tables import FieldRow, KeptRow

#: What the name of an index ends in, behind the whole name of the file that it is of.
ENDING = ".idx"
FORMAT = "atlas-kit/index"
VERSION = 1
#: The entry that describes it; the other keys begin with it and a dot.
INDEX = "index"
#: Words, and tokens, whose places are looked up together.
PAGE = 64

FIELDS = (
    FieldRow("format", "string", f"`{FORMAT}`"),
    FieldRow("version", "number", f"of this description, now {VERSION}"),
    FieldRow("file_size", "number", "bytes of the file that it is of, as it was when it was indexed"),
    FieldRow(
        "file_state", "string", "what that state of the file is called: an ETag, or a time in nanoseconds"
    ),
    FieldRow("vocabulary", "number", "how many tokens the model's vocabulary has"),
    FieldRow("sources", "list", 'names of files, each once; `""` is for talk and for what has no name'),
    FieldRow("dropped", "number", "how many tokens were left out of the file because there were too many"),
)
#: Entries that are read whole, and may be compressed: b blocks, e episodes, k different tokens, p pages of words.
ARRAYS = (
    KeptRow("block_size", "uint8", ("b",), "tokens of each block"),
    KeptRow("block_words", "uint32", ("b",), "words of each block"),
    KeptRow("block_lines", "uint32", ("b",), "line ends in each block"),
    KeptRow("block_asks", "uint8", ("b",), "1 where the block's text ends with a question mark, else 0"),
    KeptRow("episode_start", "uint32", ("e",), "the number of each episode's first block"),
    KeptRow("kind", "uint8", ("e",), "as in the episodes"),
    KeptRow("source", "uint32", ("e",), "as in the episodes"),
    KeptRow("time_ms", "int64", ("e",), "as in the episodes; ascending"),
    KeptRow("line", "uint32", ("e",), "as in the episodes"),
    KeptRow("token", "uint32", ("k",), "the different tokens, ascending"),
    KeptRow("token_count", "uint32", ("k",), "how often each stands in the file"),
    KeptRow("token_at", "int64", ("k + 1",), "where in `token_posts` the blocks of each begin, and the end"),
    KeptRow("piece_at", "uint32", ("k + 1",), "where in `pieces` the bytes of each begin, and the end"),
    KeptRow("page_at", "int64", ("p + 1",), "where in `words` each page begins, and the end"),
)  # fmt: skip
_STEPS = "ascending: how far it is from the one before (the first: from 0)"
#: Entries of which ranges are read: bytes, stored as they are.
RANGES = (
    FieldRow(
        "first_words", "words", f"the first word of each page of {PAGE} words, each with a line end behind it"
    ),
    FieldRow("words", "words", "all words, in the order of their bytes, each with a line end behind it"),
    FieldRow("word_at", "int64", "where in `word_posts` the blocks of each word begin, and the end"),
    FieldRow("word_posts", "LEB128", f"for each block of a word, {_STEPS}; and how often the word is in it"),
    FieldRow("token_posts", "LEB128", f"for each block of a token, {_STEPS}"),
    FieldRow("pieces", "bytes", "the bytes of each token, one behind the other"),
    FieldRow("tokens", "uint32", "all tokens, block by block"),
)


def key_of(name: str) -> str:
    """Return the key of an entry: ``index.words``."""
    return f"{INDEX}.{name}"
