"""The papers' claims, re-enacted on the miniature world without a GPU: the command `unime reproduce`."""

from ..jobs.notices import be_quiet
from ..reproduction.pages import write_pages
from ..reproduction.running import merge, reproduce
from ..reproduction.settings import FULL, QUICK
from .errors import one_line_errors
from .parsers.reproduce import read


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
            settings = QUICK if options.quick else FULL
            summary = reproduce(options.out, options.claims, options.seeds, settings)

        # the pages are made of the summary alone
        page = options.page or options.out / "reproduction.md"
        for path in (summary, *write_pages(summary, page)):
            print(path)


if __name__ == "__main__":
    main()
