"""What a billion images cost, and where the cluster breaks first: `python -m benchmarks.cluster_model`.

Simulates a job from constants in benchmarks/results/cluster.json, in well under a minute.
`--measure` measures these constants on this machine first (five minutes on two quiet cores), among
them the overhead of the engine against `predict`. Both fill the tables of docs/cluster.md. The prices and limits of an object store, and the
speed of the GPU, are assumptions that the tables name.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .timing import machine

RESULTS = Path(__file__).parent / "results" / "cluster.json"
PAGE = Path(__file__).parents[1] / "docs" / "cluster.md"
SIDE = (480, 640)  # of the measured images


# Measuring


def measure(images: int, rows: int) -> dict[str, Any]:
    """The constants of each part, as seconds of processor time per image, and of the engines."""
    import torch

    from maskrcnn.runtime.keep_memory import keep_memory

    keep_memory()  # as the commands and the workers do
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        photos = draw(folder / "photos", images)
        result = {"machine": machine(), "images": images, "pixels": SIDE[0] * SIDE[1]}
        note("planning")
        result |= planning(rows)
        note("parts")
        result["parts"] = {
            "list": listing_seconds(folder / "many", rows // 50),
            **part_seconds(photos),
        }
        note("driver")
        result["driver"] = driver_memory()
        note("engines")
        result["engines"] = engines(folder, photos)
        return result


def note(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def draw(folder: Path, count: int) -> Path:
    """Drawn micrographs as JPEG, about as large as photographs of COCO."""
    import numpy as np
    from PIL import Image

    from maskrcnn.synthetic.micrograph import draw_micrograph

    folder.mkdir()
    for n in range(count):
        # shifted and mirrored, so that no two results are equal, which would compress too well
        pixels = np.roll(draw_micrograph(n % 8, SIDE)[0], 37 * n, axis=1)[:: 1 - 2 * (n // 8 % 2)]
        Image.fromarray(pixels).save(folder / f"{n:05d}.jpg", quality=92)
    return folder


def listing_seconds(folder: Path, count: int) -> float:
    """Per file, in folders of 1,000."""
    from maskrcnn.cluster.row_sources import FolderSource

    for n in range(count):
        path = folder / f"{n // 1000:04d}" / f"{n % 1000:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    start = time.process_time()
    assert sum(1 for _ in FolderSource(str(folder)).rows()) == count
    return (time.process_time() - start) / count


def part_seconds(photos: Path) -> dict[str, float]:
    """Per image: read, decode, resize, network, paste, encode, write, collect; and bytes."""
    import maskrcnn as mr
    from maskrcnn.cluster.collect_parts import _write_results
    from maskrcnn.cluster.file_stores import OutputFolder
    from maskrcnn.cluster.part_files import PartInfo, PartWriter, read_part, stored_object
    from maskrcnn.prediction.image_input import read_input
    from maskrcnn.prediction.predictor import to_instances

    predictor = mr.Predictor(mr.load("nuclei"), device="cpu", min_score=0.5)
    seconds = dict.fromkeys(("read", "decode", "resize", "network", "paste", "encode"), 0.0)

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        value = work()
        seconds[name] += time.process_time() - start
        return value

    paths = sorted(photos.iterdir())
    predictor(paths[0])
    writer = PartWriter(PartInfo(0, "", ""))
    num_bytes = 0
    num_objects = 0
    write = 0.0
    for n, path in enumerate(paths):
        data = timed("read", path.read_bytes)
        num_bytes += len(data)
        pixels, _ = timed("decode", lambda data=data: read_input(data, None, 10**9))
        prepared = timed("resize", lambda p=pixels: predictor.engine.prepare(p))
        batch = predictor.collate([prepared[0]], [prepared[1]])
        detections = timed("network", lambda b=batch: predictor.engine(b))
        scale = (pixels.shape[1] / prepared[0].shape[2], pixels.shape[0] / prepared[0].shape[1])
        instances = to_instances(
            detections, 0, scale, pixels.shape[:2], predictor.config, predictor.min_score
        )
        timed("paste", lambda i=instances: list(i.masks))
        results = timed("encode", instances.to_coco)
        num_objects += len(results)
        start = time.process_time()
        writer.add(
            {
                "key": path.name,
                "image_id": n,
                "file_name": path.name,
                "location": str(path),
                "row_group": None,
                "row": None,
                "file_size": None,
                "modified": None,
                "height": pixels.shape[0],
                "width": pixels.shape[1],
                "several_frames": False,
                "error": None,
                "objects": [stored_object(one) for one in results],
            }
        )
        write += time.process_time() - start
    seconds["encode"] -= seconds["paste"]  # to_coco pastes again
    start = time.process_time()
    content = writer.content()
    write += time.process_time() - start

    with tempfile.TemporaryDirectory() as scratch:
        out = OutputFolder(scratch)
        out.write("part-00000000.parquet", content)
        start = time.process_time()
        _write_results(Path(scratch) / "results.json", read_part(out, "part-00000000.parquet"))
        collect = time.process_time() - start
        json_bytes = (Path(scratch) / "results.json").stat().st_size
    count = len(paths)
    return {
        **{name: value / count for name, value in seconds.items()},
        "write": write / count,
        "collect": collect / count,
        "bytes per image": num_bytes / count,
        "objects per image": num_objects / count,
        "result bytes per object": len(content) / max(num_objects, 1),
        "json bytes per object": json_bytes / max(num_objects, 1),
    }


def planning(rows: int) -> dict[str, Any]:
    """Seconds per row, and the most memory that listing, sorting and cutting hold."""
    from maskrcnn.cluster.external_sort import sorted_texts
    from maskrcnn.cluster.image_rows import ImageRow, Listing, cut_parts

    def made_up(count: int) -> Iterator[str]:
        return (f"{n * 7919 % 9973:04d}/image_{n:09d}.jpg" for n in range(count))

    def plan(count: int) -> tuple[float, float]:
        """Seconds of processor time, and by how many MB the process grew at most."""
        before = resident()
        highest = before
        start = time.process_time()
        images = (ImageRow(name, name, f"/data/{name}") for name in sorted_texts(made_up(count)))
        number = 0
        for part in cut_parts(images, None, Listing()):
            number += len(part.rows)
            highest = max(highest, resident())
        assert number == count
        return time.process_time() - start, (highest - before) / 1e6

    _, few = plan(rows // 4)
    seconds, many = plan(rows)
    return {
        "plan": seconds / rows,
        "plan MB": {f"{rows // 4:,} rows": few, f"{rows:,} rows, in addition": many},
    }


def engines(folder: Path, photos: Path) -> dict[str, Any]:
    """Seconds per image and at the start: `predict_files`, parts in one process, Ray.

    Each runs on a quarter of the images and on all; the difference gives the seconds per image.
    """
    import ray

    import maskrcnn as mr

    model = mr.load("nuclei")
    paths = sorted(photos.iterdir())
    few = folder / "few"
    few.mkdir()
    for path in paths[: len(paths) // 4]:
        (few / path.name).symlink_to(path)
    start_ray()
    number = iter(range(1000))

    def plain(source: Path) -> Any:
        out = folder / f"out{next(number)}"
        predictor = mr.Predictor(model, device="cpu", min_score=0.5)
        mr.predict_files(predictor, [source], out, overlays=False, progress=False)

    def parts(source: Path, **settings: Any) -> Any:
        out = folder / f"out{next(number)}"
        mr.predict_dataset(model, source, out, part_size=8, progress=False, **settings)

    runs: dict[str, Callable[[Path], Any]] = {
        "predict": plain,
        "parts, one process": lambda source: parts(source, device="cpu"),
        "ray, 1 worker": lambda source: parts(source, ray=True, workers=1),
        "ray, 2 workers": lambda source: parts(source, ray=True, workers=2),
    }
    rows: dict[str, Any] = {}
    for name, run in runs.items():
        note(name)
        seconds = {}
        with worker_memory() as memory:
            for source in (few, photos):
                start = time.perf_counter()
                run(source)
                seconds[source] = time.perf_counter() - start
        each = (seconds[photos] - seconds[few]) / (len(paths) - len(paths) // 4)
        rows[name] = {
            "s per image": each,
            "s to start": max(0.0, seconds[photos] - each * len(paths)),
            "worker MB": memory["peak"],
        }
        rows[name]["of predict"] = each / rows["predict"]["s per image"]
    ray.shutdown()
    return rows


@contextmanager
def worker_memory() -> Iterator[dict[str, float]]:
    """The largest resident size of a worker of Ray, else of this process, in MB."""
    memory = {"peak": 0.0}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.3):
            for command in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    is_worker = command.read_bytes().startswith(b"ray::MapWorker")
                    pages = int(command.with_name("statm").read_text().split()[1])
                except OSError:  # it has ended
                    continue
                if is_worker or command.parent.name == str(os.getpid()):
                    key = "peak" if is_worker else "own"
                    memory[key] = max(memory.get(key, 0.0), pages * resource.getpagesize() / 1e6)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        stop.set()
        thread.join()
        memory["peak"] = memory["peak"] or memory.get("own", 0.0)


class PassThrough:
    """A worker that does nothing: what is left is the engine."""

    def __call__(self, batch: Any) -> Any:
        return batch


def start_ray() -> None:
    import logging

    import ray

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    os.environ |= {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_USAGE_STATS_ENABLED": "0"}
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
        logging_level="error",
    )


def driver_memory(counts: tuple[int, int, int] = (50, 500, 3000)) -> dict[str, float]:
    """How much the driver of Ray grows per task, and how many tasks a second it handles.

    The first of the runs, whose numbers of parts are given, warms up.
    """
    import ray

    from maskrcnn.cluster.image_rows import ImageRow
    from maskrcnn.cluster.ray_engine import _parts, parts_of_task
    from maskrcnn.cluster.row_sources import RowSource

    @dataclass
    class MadeUp(RowSource):
        count: int

        def rows(self) -> Iterator[ImageRow]:
            return (ImageRow(f"{n:09d}.jpg", "x", "/data/x") for n in range(self.count))

        def notes(self) -> list[str]:
            return []

    start_ray()
    sizes = []
    seconds = []
    for count in counts:
        start = time.perf_counter()
        dataset = _parts(ray, MadeUp(10 * sum(map(parts_of_task, range(count)))), 10).map_batches(
            PassThrough,
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        assert sum(1 for _ in dataset.iter_rows()) == count + 1
        seconds.append(time.perf_counter() - start)
        sizes.append(resident())
    ray.shutdown()
    more = counts[2] - counts[1]
    return {
        "kB per task": max(0.0, (sizes[2] - sizes[1]) / more) / 1e3,
        "tasks/s": more / max(seconds[2] - seconds[1], 1e-9),
        "MB": sizes[2] / 1e6,
    }


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# Simulating


@dataclass(frozen=True)
class Cluster:
    """A job: what is measured, and assumptions about machines and the store."""

    name: str
    images: int = 1_000_000_000
    gpus: int = 100
    workers_per_gpu: int = 1
    gpu_images_per_s: float = 270.0
    """H200 at batch 16, network and boxes (benchmarks/results/gpu.json)."""
    cpu_s: float = 0.02
    """Decode, resize, paste, encode and write of one image, on one core."""
    bytes_per_image: float = 150e3
    objects_per_image: float = 8.0
    """COCO has 7.3."""
    result_bytes_per_object: float = 250.0
    json_bytes_per_object: float = 500.0
    images_per_object: int = 1
    """1: each image is an object of the store; more: packed into tables."""
    fetch_s: float = 0.05
    """Until an object of the store has arrived."""
    fetch_threads: int = 8
    gets_per_s: float = 5500.0
    """Limit of S3 per prefix."""
    prefixes: int = 1
    list_s: float = 0.1
    """For 1,000 names."""
    plan_s: float = 3e-6
    """For one row, in the listing task."""
    driver_tasks_per_s: float = 100.0
    driver_kb_per_task: float = 8.0
    collect_s: float = 5e-4
    part_size: int = 4096
    retried: float = 0.01
    """Share of parts that are begun twice, as machines are taken away."""
    dollars_per_gpu_hour: float = 3.0
    dollars_per_million_gets: float = 0.4
    dollars_per_thousand_lists: float = 0.005


def simulate(job: Cluster) -> dict[str, Any]:
    """Runs the job part by part: one lister, a queue, workers, the store's limit, one driver.

    Each stage begins a part when it is free and the part is there. The stage that is busy longest
    is where more machines do not help.
    """
    num_parts = -(-job.images // job.part_size)
    num_tasks = tasks_of(num_parts)
    # at most 20,000 steps: several parts are moved together where there are more
    together = max(1, num_parts // 20_000)
    steps = -(-num_parts // together)
    images = job.images / steps

    # While a worker computes one image, its threads fetch the next ones; a GPU is shared.
    per_worker = job.cpu_s + 1 / job.gpu_images_per_s
    per_worker = max(per_worker, job.workers_per_gpu / job.gpu_images_per_s)
    fetches = 1 / job.images_per_object
    per_worker = max(per_worker, fetches * job.fetch_s / job.fetch_threads)
    num_workers = job.gpus * job.workers_per_gpu

    list_each = images * (fetches * job.list_s / 1000 + job.plan_s)
    store_each = images * fetches / (job.gets_per_s * job.prefixes)
    driver_each = num_tasks / steps / job.driver_tasks_per_s
    busy = {"lister": 0.0, "store": 0.0, "workers": 0.0, "driver": 0.0}
    free = dict.fromkeys(("lister", "store", "driver"), 0.0)
    workers = [0.0] * num_workers
    end = 0.0
    repeats = int(1 / job.retried) if job.retried else 0

    for step in range(steps):
        ready = free["lister"] + list_each
        free["lister"] = max(ready, workers[0] - list_each)  # it waits for a free worker
        busy["lister"] += list_each

        started = max(ready, heapq.heappop(workers))
        times = 2 if repeats and step % repeats == repeats - 1 else 1
        worked = times * images * per_worker / together * together
        free["store"] = max(free["store"], started) + times * store_each
        busy["store"] += times * store_each
        done = max(started + worked, free["store"])
        busy["workers"] += (done - started) / num_workers
        heapq.heappush(workers, done)

        free["driver"] = max(free["driver"], done) + driver_each
        busy["driver"] += driver_each
        end = max(end, free["driver"])

    gets = job.images * fetches * (1 + job.retried)
    used = min(1.0, job.images * (1 + job.retried) / job.gpu_images_per_s / job.gpus / end)
    slowest = max(busy, key=lambda stage: busy[stage])
    if slowest == "workers":
        slowest = "GPUs" if used > 0.9 else "CPU part of the workers"
    gpu_hours = job.gpus * end / 3600
    return {
        "job": job.name,
        "days": end / 86400,
        "GPU hours": gpu_hours,
        "GPU used": used,
        "slowest": slowest,
        "lister h": busy["lister"] / 3600,
        "driver h": busy["driver"] / 3600,
        "driver GB": 0.9 + num_tasks * job.driver_kb_per_task / 1e6,
        "files": num_parts,
        "tasks": num_tasks,
        "read TB": job.images * job.bytes_per_image / 1e12,
        "parts TB": job.images * job.objects_per_image * job.result_bytes_per_object / 1e12,
        "results.json TB": job.images * job.objects_per_image * job.json_bytes_per_object / 1e12,
        "collect h": job.images * job.collect_s / 3600,
        "GPU $": gpu_hours * job.dollars_per_gpu_hour,
        "store $": gets / 1e6 * job.dollars_per_million_gets
        + job.images * fetches / 1000 * job.dollars_per_thousand_lists / 1000,
    }


def tasks_of(num_parts: int) -> int:
    """How many tasks of Ray a number of parts makes."""
    from maskrcnn.cluster.ray_engine import parts_of_task

    task = 0
    while num_parts > 0 and parts_of_task(task) < parts_of_task(10**6):
        num_parts -= parts_of_task(task)
        task += 1
    return task + max(0, -(-num_parts // parts_of_task(10**6)))


def scenarios(measured: dict[str, Any], images: int, gpus: int) -> list[Cluster]:
    """The job as it comes, and then one change after another."""
    parts = measured["parts"]
    objects = 8.0
    own = max(parts["objects per image"], 1.0)
    cpu = parts["decode"] + parts["resize"]
    cpu += (parts["paste"] + parts["encode"] + parts["write"]) * objects / own
    plain = Cluster(
        "one worker per GPU, small files",
        images=images,
        gpus=gpus,
        cpu_s=cpu,
        objects_per_image=objects,
        result_bytes_per_object=parts["result bytes per object"],
        json_bytes_per_object=parts["json bytes per object"],
        plan_s=measured["plan"],
        driver_tasks_per_s=measured["driver"]["tasks/s"],
        driver_kb_per_task=measured["driver"]["kB per task"],
        collect_s=parts["collect"] * objects / own,
    )
    per_gpu = max(1, round(1 + cpu * plain.gpu_images_per_s))
    several = replace(
        plain, name=f"{per_gpu} workers per GPU, small files", workers_per_gpu=per_gpu
    )
    spread = replace(several, name="the same, 16 prefixes", prefixes=16)
    listed = replace(spread, name="the same, from a list of names", list_s=0.0)
    packed = replace(several, name="tables of 500 images instead of files", images_per_object=500)
    lone = replace(packed, name="the same, one worker per GPU", workers_per_gpu=1)
    small = replace(packed, name="as before that, parts of 32 images", part_size=32)
    return [plain, several, spread, listed, packed, lone, small]


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as a table."""
    names = list(rows[0])
    lines = [names, ["---", *["---:"] * (len(names) - 1)]]
    lines += [[cell(row.get(name, "")) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def turned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same table with one column for each row."""
    titles = [row["job"] for row in rows]
    return [
        {"": name, **dict(zip(titles, [row[name] for row in rows], strict=True))}
        for name in list(rows[0])[1:]
    ]


def tables(measured: dict[str, Any]) -> dict[str, str]:
    """The tables of docs/cluster.md, by the name of their place."""
    where = measured["machine"]
    load = f"load {where['load'][0]:.1f} before" if where["load"][0] > 1 else "quiet"
    about = f"{where['cpu']}, {where['cores']} cores, {load}; model `nuclei`, 640 x 480 JPEG."
    parts = measured["parts"]
    each = {name: value for name, value in parts.items() if " per " not in name}
    each["plan"] = measured["plan"]
    ms = [{"part": name, "ms per image": 1000 * value} for name, value in each.items()]
    memory = [{"names": name, "MB more": value} for name, value in measured["plan MB"].items()]
    engines = "Not measured on a quiet machine yet."
    if "engines" in measured:
        rows = [{"engine": name, **row} for name, row in measured["engines"].items()]
        engines = f"{about}\n\n{markdown(rows)}"
    jobs = [simulate(job) for job in scenarios(measured, 1_000_000_000, 100)]
    return {
        "parts": f"{about}\n\n{markdown(ms)}",
        "memory": markdown(memory),
        "engines": engines,
        "simulation": markdown(turned(jobs)),
    }


def filled(text: str, measured: dict[str, Any]) -> str:
    """The page with its tables made anew."""
    for name, table in tables(measured).items():
        start, end = f"<!-- cluster: {name} -->\n", "\n<!-- end -->"
        before, _, rest = text.partition(start)
        assert rest, name
        text = f"{before}{start}{table}{end}{rest.partition(end)[2]}"
    return text


def cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure the constants first")
    parser.add_argument("--measured-images", type=int, default=96, help="for --measure")
    parser.add_argument("--rows", type=int, default=1_000_000, help="made-up rows for --measure")
    parser.add_argument("--images", type=int, default=1_000_000_000)
    parser.add_argument("--gpus", type=int, default=100)
    given = parser.parse_args()
    if given.measure:
        start = time.time()
        measured = measure(given.measured_images, given.rows)
        measured["command"] = "python -m benchmarks.cluster_model --measure"
        measured["taken s"] = round(time.time() - start)
        RESULTS.write_text(json.dumps(measured, indent=1) + "\n")
        note("stored")
    measured = json.loads(RESULTS.read_text())
    if (given.images, given.gpus) == (1_000_000_000, 100):
        PAGE.write_text(filled(PAGE.read_text(), measured))
        for name, table in tables(measured).items():
            print(f"{name}\n{table}\n")
    else:
        jobs = scenarios(measured, given.images, given.gpus)
        print(markdown(turned([simulate(job) for job in jobs])))


if __name__ == "__main__":
    main()
