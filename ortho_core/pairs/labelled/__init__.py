"""Labelled image sets in their original formats, read as pairs of image and class name."""
