"""From a raw JSON dataset to a model that answers, on Ascend cards or a laptop."""

__version__ = "0.1.0"
