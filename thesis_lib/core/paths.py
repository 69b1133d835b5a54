"""The only place that knows a folder. THESIS_DATA and THESIS_OUTPUTS move the two folders that grow."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def root() -> Path:
    """Checkout this package lies in, or the current folder when it was installed without one."""
    checkout = PACKAGE.parent
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def notebooks() -> Path:
    return root() / "notebooks"


def data() -> Path:
    return Path(os.environ.get("THESIS_DATA") or root() / "data").expanduser().resolve()


def outputs() -> Path:
    return Path(os.environ.get("THESIS_OUTPUTS") or root() / "outputs").expanduser().resolve()


def demo_data() -> Path:
    """Where the generated demo categories lie (made by `thesis data demo`)."""
    return data() / "demo"


def results() -> Path:
    """Rows measured on this machine."""
    return outputs() / "results"


def published() -> Path:
    """Rows that ship with the project; they stay where they are when THESIS_OUTPUTS moves the rest."""
    return root() / "outputs" / "results" / "published"


def rendered() -> Path:
    """The one executed set that is committed."""
    return outputs() / "rendered"


def devices() -> Path:
    """Rows measured by `thesis measure` on small computers and brought here."""
    return results() / "devices"


def executed(profile: str) -> Path:
    return outputs() / "notebooks" / profile


def checkpoints() -> Path:
    """Unfinished and finished trainings, by the hash of what decides them; may be deleted at any time."""
    return outputs() / "checkpoints"


def features() -> Path:
    """Feature maps that the next evaluation finds again; may be deleted at any time."""
    return outputs() / "features"


def scratch() -> Path:
    """Big files that are needed for a moment; below outputs, because /tmp may be memory. May be deleted at any time."""
    return outputs() / "scratch"


def site() -> Path:
    """The documentation, built from the executed notebooks."""
    return outputs() / "site"


def quick() -> Path:
    """First results: a page, and the pictures of one demo category. May be deleted at any time."""
    return outputs() / "quick"


def guides() -> Path:
    """Sphinx settings, index and the pages that are no notebooks."""
    return root() / "docs"


def reference() -> Path:
    """Tables of the thesis, shipped inside the package."""
    return PACKAGE / "reference"


def states() -> Path:
    """Trained detectors that ship with the project, not with the package."""
    return root() / "pretraining" / "states"


def weights() -> Path:
    """Weights that ship inside the package."""
    return PACKAGE / "weights"
