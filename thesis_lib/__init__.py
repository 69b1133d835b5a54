"""Methods and timing protocol of the thesis companion; see README.md and notebooks/00_start_here.ipynb."""
