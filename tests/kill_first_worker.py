"""Kills, with SIGKILL, the process that has written the first part of a folder: kill_first_worker.py PARTS."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from maskrcnn.cluster.file_stores import OutputFolder
from maskrcnn.cluster.part_files import read_info

deadline = time.monotonic() + 180
while time.monotonic() < deadline:
    if found := next(Path(sys.argv[1]).glob("part-*"), None):
        info = read_info(OutputFolder(sys.argv[1]), found.name)
        assert info is not None
        os.kill(int(info.computer.rpartition(" ")[2]), signal.SIGKILL)
        sys.exit(0)
    time.sleep(0.01)
sys.exit("no part after three minutes")
