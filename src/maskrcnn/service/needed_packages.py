"""What the service needs: the packages of the extra `serve`."""

from __future__ import annotations

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")
