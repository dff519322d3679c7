"""Maps of many images: what data frameworks call, batch by batch.

`OcclusionMapper` serves Ray Data, Spark, Hugging Face datasets, Dask and a plain loop. None of them
is imported here.

May use: top level.
"""

from .mapper import OcclusionMapper
from .rows import RowError

__all__ = ["OcclusionMapper", "RowError"]
