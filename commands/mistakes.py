"""The command `unime eval errors`."""

from ..eval.catalogue import read as read_benchmark
from ..eval.mistakes import write_mistakes
from ..eval.rerank import saved_result
from ..eval.runner import read_result
from .errors import one_line_errors
from .inputs import moved_source
from .parsers.mistakes import read


def execute(options):
    """Does what the options of `unime eval errors` say."""
    with one_line_errors("unime eval errors"):
        path = saved_result(options.results)
        result = read_result(path)

        # the data is read as it was for the model, unless it has moved
        tasks, _ = read_benchmark(result["benchmark"], moved_source(result["source"], options))

        if options.task:
            tasks = [task for task in tasks if task.name == options.task]
            if not tasks:
                names = ", ".join(result["tasks"])
                raise ValueError(f"there is no data set {options.task!r} in {path}; there are {names}.")
        counts = write_mistakes(path, tasks, options.out, options.count)

    for name, (mistakes, doubted) in counts.items():
        print(f"{name}: {mistakes} mistakes, in {doubted} of which the right answer itself looks wrong")
    print(options.out)


def main(arguments=None):
    """The command `unime eval errors`."""
    execute(read(arguments))


if __name__ == "__main__":
    main()
