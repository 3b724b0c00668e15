"""OME-Zarr 0.4 and 0.5: a slide is a folder whose chunks the zarr library reads."""
