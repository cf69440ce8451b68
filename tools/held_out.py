"""Which modules of the standard library the sample model was never trained on, nor their tests.

"tune" documents chose the default settings of the memory; "test" documents are what is reported.
"""

HELD_OUT = {
    "tune": ("typing", "difflib", "zipfile", "configparser"),
    "test": ("argparse", "tarfile", "statistics", "optparse"),
}
