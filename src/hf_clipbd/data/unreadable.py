# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What goes wrong when a picture is opened: every error that broken bytes or a missing file lead to."""

import re
import struct
import zlib

import PIL.Image


UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    PIL.Image.DecompressionBombError,
)
"""What Pillow and 🤗 Datasets raise at a picture that cannot be decoded or a file that is not there."""

_EXPECTED = "Expected an image that can be decoded"
_ADDRESS = re.compile(r" object at 0x[0-9a-fA-F]+")


def reason(error: BaseException) -> str:
    """Return what was wrong with a picture in one line, the same in every process: without addresses in memory.

    Example:
        >>> reason(OSError("cannot identify image file <_io.BytesIO object at 0x7f00>"))
        'Expected an image that can be decoded, but got OSError: cannot identify image file <_io.BytesIO>'
    """
    said = _ADDRESS.sub("", " ".join(str(error).split())).encode("utf-8", "backslashreplace").decode()
    return said if said.startswith("Expected ") else f"{_EXPECTED}, but got {type(error).__name__}: {said}"
