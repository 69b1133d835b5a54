"""Training of the bundled backbone on pictures made by formula; see thesis_lib/weights/README.md."""
