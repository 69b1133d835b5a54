"""One way to open a network in ONNX Runtime, for the engines and for a device: bytes of a model in, a session out."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:       # neither a device without it nor an eager network should pay for the import
    import onnxruntime


def session(model: bytes, threads: int) -> "onnxruntime.InferenceSession":
    """On the processor, with so many threads, quiet but for errors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3                      # errors only
    # Its threads wait busily for the next layer; after the last one they would take the cores from the search.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
