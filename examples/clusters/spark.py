"""Maps of a folder of images with Spark, as a folder of Parquet files; goes on where it stopped.

python spark.py FOLDER OUT
"""

import io
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession
from pyspark.sql.types import StructType
from torchvision.models import squeezenet1_1

from captum_krypton.data import OcclusionMapper

WINDOWS = {"sliding_window_shapes": (3, 16, 16), "strides": (3, 8, 8)}


def load_model():
    torch.manual_seed(0)
    return squeezenet1_1().eval()


def decode(content):
    image = Image.open(io.BytesIO(content)).convert("RGB").resize((64, 64))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def main(folder, out):
    spark = SparkSession.builder.master("local[2]").getOrCreate()
    mapper = OcclusionMapper(
        load_model, transform=decode, column="content", errors="row", **WINDOWS
    )
    explain = predict_batch_udf(
        mapper.make_predict_fn,
        return_type=StructType.fromDDL(mapper.spark_schema),
        batch_size=4,
    )
    files = spark.read.format("binaryFile").load(folder).select("path", "content")
    if Path(out).exists():
        files = files.join(spark.read.parquet(out).select("path"), "path", "left_anti")
    maps = files.select("path", explain("content").alias("map")).select("path", "map.*")
    maps.write.mode("append").parquet(out)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
