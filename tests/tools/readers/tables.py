"""`python tables.py FOLDER OUT`: what polars makes of the tables, after DuckDB has counted the same."""

import sys

import duckdb
import polars
from lines import instance, write
from pycocotools import mask as mask_api


def images(folder):
    rows = polars.scan_parquet(f"{folder}/images/*.parquet").filter(polars.col("status") != "quarantined")
    instances = polars.scan_parquet(f"{folder}/instances/*.parquet")
    by_class = instances.group_by("category").len().sort("category").collect().rows()
    counted = duckdb.sql(
        f"select category, count(*) from '{folder}/instances/*.parquet' join '{folder}/images/*.parquet' "
        "using (image_id) group by category order by category"
    ).fetchall()
    assert counted == by_class
    found = {key: [] for key in rows.select("image_id").collect().to_series()}
    for one in instances.collect().iter_rows(named=True):
        mask = mask_api.decode({"size": [one["height"], one["width"]], "counts": one["counts"]})
        more = {name: one[name] for name in sys.argv[2:-1]}
        found[one["image_id"]].append(instance(one["category"], mask, one["score"], **more))
    for row in rows.collect().iter_rows(named=True):
        yield row["key"], found[row["image_id"]]


write(images(sys.argv[1]))
