# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Docstrings as the site reads them: our section `Example:` is what its parser calls `Examples:`, with code in it."""

import re
from typing import Any

import griffe


class HouseStyle(griffe.Extension):
    """Renames the section in every docstring before it is parsed, and lets constants without a docstring show."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename the section of one object."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Give a public constant of a module that has no docstring a plain one; the site leaves others out."""
        of_module = attr.parent is not None and attr.parent.is_module
        if of_module and attr.docstring is None and not attr.name.startswith("_"):
            attr.docstring = griffe.Docstring("A constant.", parent=attr)
