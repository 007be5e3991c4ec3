"""Images in: sources, splits and the one array they become."""

from petriscope.data.imageset import Dataset, ImageSet
from petriscope.data.load import load_dataset

__all__ = ["Dataset", "ImageSet", "load_dataset"]
