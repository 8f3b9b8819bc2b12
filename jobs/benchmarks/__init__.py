"""What `jobs.benchmark` measures, and how it is told.

work        which images, in which shards, labelled into which folder: the same in each measure
stages      each stage alone
ceiling     the model only, in as many processes as the run has workers
whole       one worker, and the whole run on Ray
peers       the same work by a plain detectron2 loop and by Ray Data
report      medians, ratios, the table, the chart
"""
