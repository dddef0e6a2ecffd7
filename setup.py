"""The repository root is the package `unime` and, at the same time, a Hugging Face model repository."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPackage(build_py):
    """Leaves this script, which lies in the package's folder, out of the package."""

    def find_package_modules(self, package, package_dir):
        return [found for found in super().find_package_modules(package, package_dir) if found[1] != "setup"]


ROOMS = (
    "checkpoints",
    "commands",
    "commands.parsers",
    "data",
    "eval",
    "examples",
    "files",
    "jobs",
    "miniature",
    "mining",
    "reproduction",
    "serving",
    "trainers",
)
EXTRAS = {
    "train": ["trl>=1.16", "deepspeed>=0.19", "bitsandbytes>=0.50"],
    "miniature": ["scikit-learn>=1.5", "matplotlib>=3.9"],
    "eval": ["bm25s>=0.2", "evaluate>=0.4.6", "scikit-learn>=1.5", "matplotlib>=3.9"],
    "mteb": ["mteb>=2.26"],
    "video": ["av>=12"],
    "pdf": ["pypdfium2>=5"],
    "demo": ["gradio>=6"],
    "ray": ["ray>=2.40"],
    "remote": ["universal-pathlib>=0.3", "s3fs>=2025.3"],
    "serve": ["prometheus-client>=0.20", "pydantic>=2.10", "starlette>=0.40", "uvicorn>=0.30"],
    "mining": ["faiss-cpu>=1.9", "matplotlib>=3.9"],
    "test": [
        "av>=12",
        "bitsandbytes>=0.50",
        "faiss-cpu>=1.9",
        "gradio>=6",
        "ipykernel>=6",
        "lancedb>=0.30",
        "langchain-core>=1",
        "langchain-openai>=1",
        "llama-index-embeddings-huggingface>=0.6",
        "llama-index-embeddings-openai>=0.5",
        "mteb>=2.26",
        "nbclient>=0.10",
        "openai>=2",
        "playwright>=1.50",
        "prometheus-client>=0.20",
        "pydantic>=2.10",
        "pypdfium2>=5",
        "sentence-transformers>=6.2",
        "starlette>=0.40",
        "uvicorn>=0.30",
        "pytest>=8",
        "pytest-xdist>=3.6",
        "ray>=2.40",
        "universal-pathlib>=0.3",
        "s3fs>=2025.3",
        "moto[server]>=5",
        "hypothesis>=6",
        "ruff>=0.14",
    ],
}

setup(
    name="unime",
    version="0.1.0",
    description="Universal multimodal embedders and rerankers made from multimodal LLMs",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"unime": ".", **{f"unime.{room}": room.replace(".", "/") for room in ROOMS}},
    packages=["unime", *(f"unime.{room}" for room in ROOMS)],
    entry_points={"console_scripts": ["unime = unime.cli:main"]},
    cmdclass={"build_py": BuildPackage},
    package_data={
        "unime": ["recipes/*/*.yaml", "accelerate_configs/*.yaml"],
        "unime.checkpoints": ["chat_template.jinja"],
        "unime.eval": ["published.yaml", "retrieval_metrics/*.py"],
    },
    install_requires=[
        "torch>=2.4",
        "transformers>=5.20",
        "accelerate>=1.10",
        "datasets>=4.0",
        "huggingface-hub>=1.0",
        "peft>=0.18",
        "pillow>=10",
        "numpy>=1.26",
        "pyyaml>=6",
        "requests>=2.31",
        "safetensors>=0.4.3",
    ],
    extras_require={**EXTRAS, "all": sorted({requirement for extra in EXTRAS.values() for requirement in extra})},
)
