"""What mining costs: floating point operations, bytes and hours of each step, for 662 k pairs and for 100 M.

    python benchmarks/scale.py

Everything is arithmetic on the sizes below; change them to ask about another corpus, model or machine. The rate of the
GPU is an assumption (a share of its peak), that of this CPU was measured (benchmarks/RESULTS.md).
"""

from dataclasses import dataclass


@dataclass
class Model:
    """Parameters of the language model without embeddings, and of the vision tower; width of its embeddings."""

    name: str
    language: float
    vision: float
    width: int

    def run(self, text: float, image: float) -> float:
        """Operations over so many text and image tokens; a token of an image is four patches of the tower."""
        return 2 * self.language * (text + image) + 2 * self.vision * 4 * image


@dataclass
class Corpus:
    """Pairs, distinct candidates, and the share of queries and candidates that have an image."""

    name: str
    pairs: float
    candidates: float
    query_images: float = 0.7
    candidate_images: float = 0.4
    text: float = 50  # tokens of an item's text
    image: float = 350  # tokens of an image: 600 x 450 pixels
    instruction: float = 90  # tokens of the judge's instruction and frame
    top_k: int = 50


@dataclass
class Machine:
    """Operations a second for the model and for float32 products of matrices."""

    name: str
    model: float
    matrix: float


SMALL = Model("Qwen2-VL-2B", 1.3e9, 0.665e9, 1536)
LARGE = Model("Qwen2-VL-7B", 6.5e9, 0.675e9, 3584)
CORPORA = (Corpus("662 k", 662e3, 450e3), Corpus("100 M", 100e6, 70e6))
GPU = Machine("GPU", 0.4 * 989e12, 0.6 * 67e12)  # 40 % of an H100's bf16 peak, 60 % of its float32 peak
CPU = Machine("CPU", 1.0e12, 0.36e12)  # two AMX cores: two thirds of a bare bf16 product; retrieval as measured


def steps(corpus: Corpus, embedder: Model, judge: Model) -> dict[str, tuple[float, float, str]]:
    """Operations, bytes left on disk, and kind of arithmetic of each step."""
    # every distinct item is embedded once
    items = corpus.pairs + corpus.candidates
    images = corpus.pairs * corpus.query_images + corpus.candidates * corpus.candidate_images
    embedding = embedder.run(items * corpus.text, images * corpus.image)

    # every query with every candidate
    products = 2 * corpus.pairs * corpus.candidates * embedder.width

    # the judge reads instruction and query once, and then the positive and each retrieved candidate
    prefix = judge.run(corpus.instruction + corpus.text, corpus.query_images * corpus.image)
    suffix = judge.run(corpus.text, corpus.candidate_images * corpus.image)
    judged = corpus.pairs * (corpus.top_k + 1)

    return {
        "embed": (embedding, items * embedder.width * 4, "model"),
        "retrieve, exact": (products, corpus.pairs * corpus.top_k * 12, "matrix"),
        "judge, shared prefix": (corpus.pairs * prefix + judged * suffix, judged * 4, "model"),
        "judge, pair by pair": (judged * (prefix + suffix), judged * 4, "model"),
        "select": (0, corpus.pairs * 2_000, "model"),
    }


def main():
    """Prints a table for each pair of models and each corpus."""
    for embedder, judge in ((SMALL, SMALL), (LARGE, LARGE)):
        for corpus in CORPORA:
            print(f"\n{corpus.name} pairs, {corpus.candidates / 1e6:g} M candidates, embedder and judge {judge.name}")
            print("\n| step | FLOP | GB on disk | GPU-hours | hours on this CPU |\n|---|---|---|---|---|")
            for name, (operations, size, kind) in steps(corpus, embedder, judge).items():
                gpu_hours = operations / getattr(GPU, kind) / 3600
                cpu_hours = operations / getattr(CPU, kind) / 3600
                print(f"| {name} | {operations:.1e} | {size / 1e9:,.1f} | {gpu_hours:,.2f} | {cpu_hours:,.0f} |")


if __name__ == "__main__":
    main()
