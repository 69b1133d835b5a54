"""Methods and timing protocol of the thesis companion; see README.md and notebooks/00_start_here.ipynb."""

import os

# After every parallel piece of work the threads of torch and of FAISS (GNU OpenMP) turn idly for some 10 ms, on the
# cores that each other and ONNX Runtime then want: a picture took half as long again. Read when torch is imported, so
# it must be set before. Measured with benchmarks/bench_picture.py; a value of the user's wins.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
