"""The papers' claims, re-enacted on the miniature world without a GPU: the command `unime reproduce`."""

from importlib.util import find_spec

from ..jobs.notices import be_quiet
from ..reproduction.pages import write_pages
from ..reproduction.running import merge, reproduce
from ..reproduction.settings import FULL, QUICK
from .errors import one_line_errors
from .parsers.reproduce import read

NEEDED = {  # modules that are imported on the way, and what `pip install` calls them
    "faiss": "faiss-cpu",
    "sentence_transformers": "sentence-transformers",
    "sklearn": "scikit-learn",
    "trl": "trl",
}


def main(arguments=None):
    """The command `unime reproduce`."""
    execute(read(arguments))


def execute(options):
    """Measures claims, or puts together what is measured, and writes the page.

    Args:
        options: what [`~unime.commands.parsers.reproduce.read`] returns.
    """
    be_quiet()
    with one_line_errors("unime reproduce"):
        if options.merge:
            summary = merge(options.out, options.merge)
        else:
            check_packages()
            settings = QUICK if options.quick else FULL
            summary = reproduce(options.out, options.claims, options.seeds, settings)

        # the pages are made of the summary alone
        page = options.page or options.out / "reproduction.md"
        for path in (summary, *write_pages(summary, page)):
            print(path)


def check_packages():
    """Says which packages are missing before hours of training, not after them.

    Raises:
        SystemExit: at least one is.
    """
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        packages = " ".join(missing)
        raise SystemExit(f"unime reproduce: the claims need what is not installed; `pip install {packages}`.")


if __name__ == "__main__":
    main()
