"""Where transformers' own test suite of processors is, and the module that it imports and the source lacks."""

import importlib.util
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import transformers

FOLDER = Path(os.environ.get("UNIME_CONFORMANCE", Path(__file__).resolve().parents[2] / ".conformance"))
NAME = f"transformers-{transformers.__version__}"
SUITE = FOLDER / NAME / "tests" / "test_processing_common.py"


def fetch():
    """Downloads the source distribution of the installed transformers, and unpacks the suite."""
    if SUITE.exists():
        return
    FOLDER.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
    command += ["--dest", str(FOLDER), f"transformers=={transformers.__version__}"]
    subprocess.run(command, check=True)
    with tarfile.open(FOLDER / f"{NAME}.tar.gz") as archive:
        archive.extract(f"{NAME}/tests/{SUITE.name}", FOLDER, filter="data")


def why_not() -> str:
    """Why the suite cannot be run; empty where it can."""
    if not SUITE.exists():
        return "transformers' own suite is not here; `make conformance` fetches it"
    if importlib.util.find_spec("parameterized") is None:
        return "transformers' own suite needs the package parameterized; `make conformance` installs it"
    return ""


def load(picture: Path):
    """The suite's mixin.

    Args:
        picture (`Path`): stands for every file that the suite would fetch from the Hub.
    """
    files = ModuleType("fetch_hub_objects_for_ci")  # a module of transformers' repository alone
    files.url_to_local_path = lambda url: str(picture)
    sys.modules[files.__name__] = files

    spec = importlib.util.spec_from_file_location("transformers_test_processing_common", SUITE)
    suite = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(suite)
    return suite.ProcessorTesterMixin


if __name__ == "__main__":
    fetch()
