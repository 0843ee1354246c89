"""Sends an image to `maskrcnn serve` and prints its objects: python serve_client.py photo.jpg [URL]"""

import json
import sys
from pathlib import Path
from urllib.request import Request, urlopen


def predict(
    image: Path, server: str = "http://127.0.0.1:8000", options: str = "masks=none"
) -> dict:
    """The response to one image: a COCO file with names."""
    headers = {"Content-Type": "application/octet-stream"}
    request = Request(f"{server.rstrip('/')}/predict?{options}", image.read_bytes(), headers)
    with urlopen(request, timeout=60) as response:
        return json.load(response)


if __name__ == "__main__":
    for found in predict(Path(sys.argv[1]), *sys.argv[2:])["annotations"]:
        print(found["category_name"], found["score"], found["bbox"], found["area"])
