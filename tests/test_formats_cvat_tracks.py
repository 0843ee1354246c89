"""Tracks of "CVAT for video" are the objects of their frames, or an error says which frames have no image."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import maskrcnn as mr
from maskrcnn.annotations.problems import DataError

TASK = (
    "<start_frame>0</start_frame><stop_frame>{stop}</stop_frame><frame_filter>{step}</frame_filter>"
    "<original_size><width>100</width><height>80</height></original_size>"
)


def box(frame: int | str, x: float = 10, outside: int = 0, keyframe: int = 1, **more: str) -> str:
    extra = "".join(f' {name}="{value}"' for name, value in more.items())
    return (
        f'<box frame="{frame}" keyframe="{keyframe}" outside="{outside}" occluded="0" '
        f'xtl="{x}" ytl="10" xbr="{x + 20}" ybr="30"{extra}/>'
    )


def polygon(frame: int) -> str:
    points = "10,10;40,10;40,30;10,30"
    return f'<polygon frame="{frame}" keyframe="1" outside="0" points="{points}"/>'


def video(
    folder: Path,
    *tracks: str,
    frames: list[int],
    stop: int = 3,
    step: str = "",
    name: str = "images/frame_{:06d}.PNG",
    between: str = "",
) -> Path:
    """The file of a task whose tracks are given by their shapes, and the images of some frames."""
    for frame in frames:
        path = folder / name.format(frame)
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (100, 80)).save(path, format="PNG")
    listed = "".join(
        f'<track id="{number}" label="car" source="manual">{shapes}</track>'
        for number, shapes in enumerate(tracks)
    )
    labels = "<labels><label><name>car</name></label></labels>"
    meta = f"<meta><task>{TASK.format(stop=stop, step=step)}{labels}</task></meta>"
    (folder / "annotations.xml").write_text(f"<annotations>{meta}{between}{listed}</annotations>")
    return folder / "annotations.xml"


def boxes(path: Path) -> dict[str, list[tuple[float, ...]]]:
    data = mr.load_dataset(path)
    return {r.file_name: [a.box or () for a in r.annotations] for r in data}


def told(path: Path) -> str:
    data = mr.load_dataset(path)
    return f"{data.describe_warnings()}\n{data.describe_notes()}"


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        mr.load_dataset(path)
    return str(caught.value)


def test_tracks_are_objects_of_the_frames_in_which_they_are_not_outside(tmp_path: Path):
    first = box(0) + box(1, 12, keyframe=0) + box(2, 14, outside=1)
    second = polygon(2) + polygon(3)
    path = video(tmp_path, first, second, frames=[0, 1, 2, 3])
    data = mr.load_dataset(path)
    assert [r.file_name for r in data] == [f"frame_{n:06d}.PNG" for n in range(4)]
    assert [[a.box for a in r.annotations] for r in data] == [
        [(10, 10, 30, 30)],
        [(12, 10, 32, 30)],
        [None],
        [None],
    ]
    assert [a.mask_area for a in data[3].annotations] == [600]
    text = told(path)
    assert "tracks (2): each frame is an image, such as frame 0 as frame_000000.PNG" in text
    assert "interpolated between keyframes (1): read as they are, such as track 0, frame 1" in text


def test_skeleton_tracks_are_keypoints_without_those_that_are_outside(tmp_path: Path):
    part = '<points label="{}" keyframe="1" outside="{}" occluded="{}" points="20,20"/>'
    points = part.format("nose", 0, 1) + part.format("tail", 1, 0)
    skeleton = f'<skeleton frame="0" keyframe="1">{points}</skeleton>'
    (found,) = mr.load_dataset(video(tmp_path, skeleton, frames=[0], stop=0))[0].annotations
    assert found.keypoints is not None
    assert found.keypoints[:, 2].tolist() == [1]


def test_boxes_between_two_keyframes_are_interpolated_and_counted(tmp_path: Path):
    path = video(tmp_path, box(0) + box(3, 40), frames=[0, 1, 2, 3])
    assert [x for ((x, *_),) in boxes(path).values()] == [10, 20, 30, 40]
    assert "boxes that are missing between two frames (2): interpolated" in told(path)


def test_a_gap_between_polygons_is_an_error_that_names_the_frames(tmp_path: Path):
    path = video(tmp_path, polygon(0) + polygon(3), frames=[0, 1, 2, 3])
    assert "track 0: no polygon in 2 frames from 1 to 2" in refusal(path)
    turned = box(0) + box(3, rotation="30")
    path = video(tmp_path, turned, frames=[])
    assert "track 0: no box in 2 frames from 1 to 2" in refusal(path)


def test_frames_without_an_image_are_counted_and_frames_without_objects_are_kept(tmp_path: Path):
    path = video(tmp_path, box(0) + box(1) + box(2, outside=1), frames=[1, 2, 3])
    assert boxes(path) == {
        "frame_000001.PNG": [(10, 10, 30, 30)],
        "frame_000002.PNG": [],
        "frame_000003.PNG": [],
    }
    assert "1, such as 0; frames with one: 3" in told(path)


@pytest.mark.parametrize("name", ["{:05d}.png", "images/clip-{:04d}.jpg"])
def test_files_that_count_from_1_are_one_later_than_their_frame(name: str, tmp_path: Path):
    path = video(tmp_path, box(0) + box(1, outside=1), frames=[1, 2, 3, 4], name=name)
    objects = boxes(path)
    assert next(iter(objects)) == Path(name.format(1)).name
    assert [len(found) for found in objects.values()] == [1, 0, 0, 0]
    assert f"such as frame 0 as {Path(name.format(1)).name}" in told(path)


def test_a_step_of_the_task_leaves_no_gap(tmp_path: Path):
    shapes = polygon(0) + polygon(5) + polygon(10)
    path = video(tmp_path, shapes, frames=[0, 5, 7, 10], stop=10, step="step=5")
    assert [len(found) for found in boxes(path).values()] == [1, 1, 1]


def test_tracks_beside_images_belong_to_the_image_of_that_id(tmp_path: Path):
    for name in "ab":
        Image.new("L", (100, 80)).save(tmp_path / f"{name}.png")
    own = '<polygon label="car" points="10,10;40,10;40,30;10,30"/>'
    images = "".join(
        f'<image id="{n}" name="{name}.png" width="100" height="80">{own}</image>'
        for n, name in enumerate("ab")
    )
    path = video(tmp_path, box(1), frames=[], between=images)
    assert [len(found) for found in boxes(path).values()] == [1, 2]


def test_a_track_that_ends_early_is_noted(tmp_path: Path):
    text = told(video(tmp_path, box(0), box(3), frames=[0, 1, 2, 3]))
    assert "tracks that end before the last frame (1)" in text
    assert "such as track 0, frame 0" in text


@pytest.mark.parametrize(
    ("frames", "name", "reason"),
    [
        ([], "", r"1 track with 2 shapes, but no image is named by its frame"),
        ([0, 1], "photo{:d}x.png", "no image is named by its frame"),
        ([2, 10], "{:d}.png", "different lengths"),
    ],
)
def test_frames_that_no_image_is_certain_for_are_an_error(frames, name, reason, tmp_path: Path):
    path = video(tmp_path, box(0) + box(1), frames=frames, name=name)
    message = refusal(path)
    assert reason in message
    assert '"CVAT for images 1.1"' in message


def test_two_images_of_one_frame_and_tracks_of_several_tasks_are_errors(tmp_path: Path):
    path = video(tmp_path, box(0), frames=[0])
    Image.new("L", (100, 80)).save(tmp_path / "images/other_000000.png")
    assert "frame_000000.PNG and other_000000.png have the same number" in refusal(path)
    text = path.read_text()
    track = '<track id="9" label="car" task_id="5"></track></annotations>'
    path.write_text(text.replace("</annotations>", track))
    assert "2 tracks of 2 tasks" in refusal(path)


@pytest.mark.parametrize("frame", ["", "-1", "x", "1.5", "9" * 40])
def test_a_shape_without_a_frame_is_a_problem_of_its_track(frame: str, tmp_path: Path):
    path = video(tmp_path, box(0) + box(frame), frames=[0])
    assert f"track 0: frame is {frame!r:.40}" in refusal(path)
