"""Public and clinical sources, each known by the way its files lie: ``import --layout NAME``."""
