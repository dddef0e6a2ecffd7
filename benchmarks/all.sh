#!/usr/bin/env bash
# Every row of the first table of RESULTS.md, one after the other, beside its peers; about half an hour on two cores.
#     pip install sentence-transformers==6.2.0 faiss-cpu==1.15.1
#     benchmarks/all.sh > results.txt
# A CPU with AMX runs all of it again without, which stands for the other CPUs. On a GPU, run benchmarks/gpu.py.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}

rows() {
    "$PYTHON" benchmarks/encode_throughput.py --rounds 1
    "$PYTHON" benchmarks/judging.py --rounds 1
    "$PYTHON" benchmarks/listwise.py
    "$PYTHON" benchmarks/retrieval.py
    "$PYTHON" benchmarks/train_step.py --rounds 1 --rows 16
}

rows
if "$PYTHON" -c "from unime.devices_unime import has_amx; raise SystemExit(not has_amx())"; then
    export ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16
    rows
fi
