"""A run as a page for people: one HTML file with its data beside it, which opens without a server.

    <out>/index.html            the page; written last
    <out>/files/<hash>.jpg      the images, scaled
    <out>/files/<hash>.js       tables (what is filtered and sorted by) and masks, as scripts, since a page that was
                                opened from a disk may load nothing else

Every file is named by its content, so a new gallery in the place of an old one shares with it what is equal and mixes
with nothing: until `index.html` is replaced the old page stands, and afterwards what it alone had is removed.
"""

from pipeline.gallery.making import LIMIT, LONGEST, MOST, Written, gallery

__all__ = ["LIMIT", "LONGEST", "MOST", "Written", "gallery"]
