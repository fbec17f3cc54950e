# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What the one training loop is made of beside the equations: its scale, its adapters and its guard."""
