"""The embedded default: simulated scans and the tiny base pipeline that was trained on them."""
