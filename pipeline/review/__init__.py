"""Doubtful masks, to people and back.

choosing     which images are worth a look: the worst first, of many kinds
packages     the queue as a folder that Label Studio or CVAT opens as it is
answers      what these tools give back; labelstudio, cvat and coco read it
reading      a file of answers, whatever its format
locating     whose images the answers are
applying     answers -> corrections of the run
"""
