"""GeoJSON, written small."""

import json
from pathlib import Path


def ring(left: float, top: float, right: float, bottom: float) -> list:
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def feature(coordinates: object, kind: str = "Polygon", **properties: object) -> dict:
    return {"type": "Feature", "properties": properties, "geometry": {"type": kind, "coordinates": coordinates}}


def write_geojson(folder: Path, content: object) -> Path:
    path = folder / "p.geojson"
    path.write_text(json.dumps(content))
    return path
