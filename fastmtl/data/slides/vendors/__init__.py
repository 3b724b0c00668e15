"""Vendors whose TIFFs need more than their tags to be read: what their metadata say of levels and places."""

from __future__ import annotations

from .hamamatsu import arrange_hamamatsu
from .leica import arrange_leica
from .philips import arrange_philips
from .ventana import arrange_ventana

ARRANGE = {
    "hamamatsu": arrange_hamamatsu,
    "leica": arrange_leica,
    "philips": arrange_philips,
    "ventana": arrange_ventana,
}
"""Vendor -> what its file holds; NotHereError for the kinds that only OpenSlide reads."""
