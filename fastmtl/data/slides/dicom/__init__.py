"""DICOM whole-slide images: the instances of one series are the levels of a slide."""
