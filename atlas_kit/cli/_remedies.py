"""What the command line says of an error's or a finding's remedy: which command to type.

The library says what can be done as data (``errors.Remedy``); here are the words, with the file's name where
it is known. Knows nothing of how they are shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_kit.cli import _shell

if TYPE_CHECKING:
    from atlas_kit.errors import AtlasError, Remedy
    from atlas_kit.formats.findings import Finding

#: One sentence for each of ``errors.REMEDIES``. ``{FILE}`` is the file's name, the rest the remedy's arguments;
#: all of them are quoted for a shell.
WORDS: dict[str, str] = {
    # damaged files
    "repair": "Rescue what is intact with: atlas-tool repair {FILE} -o OUT",
    "repair-if-damaged": "If the file is damaged, try: atlas-tool repair {FILE} -o OUT",
    "rescue-entries": "Rescue entries from them with: atlas-tool repair {FILE} -o OUT",
    "mend": "Write a mended copy with: atlas-tool repair {FILE} -o OUT",
    "recover": "Restore an earlier version, if there is a backup: atlas-tool recover {FILE} --restore latest",
    "recover-number": "{backup} would load: atlas-tool recover {file} --restore {number}",
    "recover-journal": "Put it back with: atlas-tool recover {FILE} --restore journal",
    "list-backups": "List them with: atlas-tool recover {FILE}",
    "restore-locked": "Give its own (--passphrase-file or --key-file), or use --force to restore it as it is.",
    "restore-damaged": "Rescue it with: atlas-tool repair {FILE} -o OUT, or use --force to restore it as it is.",
    # files to be written anew
    "rewrite": "Write it anew with: atlas-tool convert {FILE} OUT.atlas",
    "canonical": "Write the canonical form with: atlas-tool convert {FILE} OUT --to atlas-v1",
    "change-version": "Convert it with: atlas-tool convert {FILE} OUT --to atlas-v{version}",
    "to-byte-order": "Convert it with: atlas-tool convert {FILE} OUT.gguf --byte-order {order}",
    "choose-format": "Use --to with one of: {formats}.",
    "make-native": "Give --to atlas-gguf, --auto or a setting such as --window-size to make it ATLAS-native.",
    "leave-settings-out": "Leave out --auto, --memory and settings.",
    "quantise": "Use --quantize TYPE, for example q8_0 or q4_k_m.",
    "requantise": "Start from the model before that, or use --requantize.",
    "name-output": "Give -o OUTPUT, or --dry-run.",
    "as-array": "--npy makes it an array for NumPy.",
    "fit-ending": "Use a name that ends in {ending}; other formats are written by: atlas-tool convert",
    "overwrite": "Use --force to overwrite it, or another name.",
    "overwrite-sidecar": "Move it away, or overwrite it with --force.",
    # models in several files
    "one-shard": "Look at this one alone with: atlas-tool inspect {FILE} --one-shard",
    "join-shards": "Make one file of them with: atlas-tool join {FILE} -o OUT.gguf",
    "first-shard": "Change the first shard: {first}",
    # what a file holds
    "list-entries": "List what there is with: atlas-tool ls {FILE}",
    "inspect": "See what it holds with: atlas-tool inspect {FILE}",
    "example-document": "See what one looks like with: atlas-tool convert FILE.atlas FILE.json",
    "set-value": "Set it, for example: atlas-tool set {FILE} {key} {value}",
    "new-file": "A new memory file needs a name that ends in .atlas, or --new.",
    "replace-or-append": "Use --replace, or --append to go on with it.",
    "append-exact": "Use --exact if the bytes are meant.",
    "append-message": "Use --role ROLE to add a message, or --exact if the bytes are meant.",
    "set-type": "Set it again: atlas-tool set {FILE} {key} VALUE --type {type}",
    "set-missing": "Convert the model again, or set it: atlas-tool set {FILE} {key} VALUE",
    "change-value": "Change it with: atlas-tool set {FILE} {key} VALUE, or convert again.",
    "remove-tensor": "Remove it with: atlas-tool rm {FILE} {key}, or convert the model again.",
    "remove-prefix": "Take off what stands before the names: atlas-tool rename {FILE} {pattern} '*' --glob",
    "rename-tensor": "Rename it with: atlas-tool rename {FILE} {key} NAME",
    "index-memories": "Make indexes of them with: atlas-tool ask MODEL -m {FILE} --index",
    # secrets
    "give-secret": "Give --passphrase-file or --key-file, or set ATLAS_PASSPHRASE.",
    "give-new-secret": "Give --new-passphrase-file or --new-key-file.",
    "give-passphrase": "Give the passphrase (--passphrase-file, or ATLAS_PASSPHRASE in the environment).",
    "give-key": "Give the key file (--key-file).",
    "give-server-key": "Give it with --atlas-key-file.",
    "leave-secret-out": "Leave out the key and unset ATLAS_PASSPHRASE, or encrypt it: atlas-tool encrypt {FILE}",
    "make-key": "Make one with: head -c 32 /dev/urandom > KEY",
    "write-plain": "Only atlas-v3 is encrypted; use --decrypt to write plain text all the same.",
    "restore-plain": "Use --decrypt to restore it as it is, or encrypt it first: atlas-tool encrypt {FILE}",
    "encrypt": "Encrypt it with: atlas-tool encrypt {FILE}",
    "rekey": "Change its passphrase or key with: atlas-tool rekey {FILE}",
    # memories and models that do not belong together
    "force-load": "Use --force to load it all the same.",
    "force-into-file": "Use --force to put this memory in.",
    "force-beside-model": "Use --force to put it beside this model all the same.",
    # running a model
    "no-chat": "Leave the template out: --no-chat.",
}


def worded(remedy: Remedy, path: str | None) -> str:
    """Return the sentence for a remedy; a file without a name is ``FILE``.

    At an address there are no backups, and what changes a file in place must be done to a copy.
    """
    from atlas_kit.storage.urls import is_url

    text = WORDS[remedy.name]
    known = {"FILE": _shell.path(path) if path and path != "-" else "FILE"}
    if path is not None and is_url(path) and "{FILE}" in text:
        if "atlas-tool recover" in text:
            return ""
        if any(f"atlas-tool {name} " in text for name in ("set", "rm", "rename", "encrypt", "rekey")):
            known["FILE"] = "COPY"
    for name, value in remedy.arguments.items():
        quoted = _shell.path if name == "file" else _shell.word
        known[name] = value if name in ("formats", "backup") else quoted(value)
    return text.format(**known)


def advice(what: AtlasError | Finding, path: str | None) -> str:
    """Return what to do about an error or a finding: its hint, then the command; empty where there is neither."""
    return " ".join(filter(None, (what.hint, worded(what.remedy, path) if what.remedy else "")))


def sentence(error: AtlasError) -> str:
    """Return an error as one line: the place, what was found, and what to do."""
    return error.sentence(advice(error, error.path))
