"""The compiled kernels, loaded once per process."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from pathlib import Path

from rayloom.engine.kernels.build import BuildError, build

_LOGGER = logging.getLogger(__name__)

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float

_SIGNATURES = {
    "write_kv": (_POINTER, _LONG, _POINTER, _LONG, _POINTER, _POINTER, _POINTER, _INT, _INT, _INT, _INT),
    "paged_attention": (
        *(_POINTER, _POINTER, _LONG, _POINTER, _POINTER, _INT, _POINTER, _LONG, _POINTER, _POINTER),
        *(_INT, _INT, _INT, _INT, _FLOAT, _INT, _POINTER, _INT, _INT, _INT),
    ),
    "rms_norm": (_POINTER, _POINTER, _POINTER, _POINTER, _INT, _INT, _FLOAT),
    "rope": (_POINTER, _LONG, _POINTER, _POINTER, _INT, _INT, _INT, _INT),
    "silu_mul": (_POINTER, _POINTER, _INT, _INT),
    "gelu_new_mul": (_POINTER, _POINTER, _INT, _INT),
    "gelu_new": (_POINTER, _LONG),
    "apply_masks": (_POINTER, _LONG, _POINTER, _POINTER, _INT, _INT),
    "linear_int8": (_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _INT, _INT, _INT, _INT),
    "lora_add": (_POINTER, _POINTER, _POINTER, _POINTER),
    "log_softmax": (_POINTER, _POINTER, _INT, _INT),
    "largest_rows": (_POINTER, _POINTER, _POINTER, _INT, _INT, _INT, _INT),
    "copy_blocks": (_POINTER, _INT, _LONG, _POINTER, _POINTER, _INT),
    "linear_fp32": (_POINTER, _POINTER, _POINTER, _POINTER, _INT, _INT, _INT, _INT),
    "linear_fp32_tiles": (_POINTER, _POINTER, _POINTER, _LONG, _POINTER, _INT, _INT, _INT),
    "linear_bf16": (_POINTER, _POINTER, _POINTER, _POINTER, _INT, _INT, _INT, _INT),
}


@functools.cache
def native() -> ctypes.CDLL | None:
    """The library, or None where the torch paths do the work: no compiler, or ``RAYLOOM_KERNELS=off``.

    Its first call on a machine compiles for about 15 seconds. Calls release the GIL.
    """
    if os.environ.get("RAYLOOM_KERNELS", "").lower() in ("off", "0", "no", "false"):
        return None
    try:
        return load(build())
    except (BuildError, OSError) as error:
        _LOGGER.warning("C++ kernels are off, plain torch does their work (slower): %s", error)
        return None


def load(path: Path) -> ctypes.CDLL:
    """Load a library that `build` has made and declare its functions.

    Raises:
        OSError: It cannot be loaded.
    """
    library = ctypes.CDLL(str(path))
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    library.has_float_tiles.argtypes, library.has_float_tiles.restype = (), _INT
    return library
