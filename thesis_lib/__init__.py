"""Methods and timing protocol of the thesis companion; see README.md and notebooks/00_start_here.ipynb.

The rooms, in the order in which data flows through them; nothing imports upwards:

    core        files, result rows, the timing protocol, pictures as arrays: what even a Raspberry Pi needs
    data        folder -> pictures
    networks    pictures -> feature maps
    patches     feature maps -> patch vectors -> memory bank -> distances -> score
    training    networks and pictures -> trained networks
    methods     PatchCore, SPADE, PaDiM, SimpleNet, Uninformed Students, EfficientAD
    evaluation  detector and pictures -> rows: AUROC, stage times, the thesis' values
    device      detector -> a folder for a small computer, and what runs it there
    batch       notebooks -> executed pages
    report      rows -> tables, figures, panels, pages, site
    commands    the command line
"""

import os

# After every parallel piece of work the threads of torch and of FAISS (GNU OpenMP) turn idly for some 10 ms, on the
# cores that each other and ONNX Runtime then want: a picture took half as long again. Read when torch is imported, so
# it must be set before. Measured with benchmarks/bench_picture.py; a value of the user's wins.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
