"""Imported first where tests fork from: the hub's client reads its setting once, when it is imported."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
