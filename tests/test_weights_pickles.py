"""A weight file is data: its content is read, and no code in it runs."""

from __future__ import annotations

import argparse
import builtins
import os
import pickle
import subprocess
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskrcnn.weights.pickles import WeightsError, read_pickle, read_torch

DTYPES = ["f2", "f4", "f8", ">f4", "i1", "i2", "i4", "i8", "u1", "?"]


class Runs:
    """Pickles as a call of `function`: a file with it runs the call when read by pickle.load."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def hostile(marker: Path) -> dict[str, object]:
    touch = f"touch {marker}"
    return {
        "os.system": Runs(os.system, touch),
        "eval": Runs(builtins.eval, f"open({str(marker)!r}, 'w')"),
        "exec": Runs(builtins.exec, f"open({str(marker)!r}, 'w')"),
        "__import__": Runs(builtins.__import__, "os"),
        "Popen": Runs(subprocess.Popen, ["touch", str(marker)]),
        "open": Runs(builtins.open, str(marker), "w"),
    }


def wrapped(payload: object) -> list[object]:
    array = np.empty(1, dtype=object)
    array[0] = payload
    return [
        payload,
        {"model": {"w": payload}, "__author__": "x"},
        {"model": {"w": array}},
        OrderedDict(a=[(payload,)]),
    ]


@pytest.mark.parametrize("name", ["os.system", "eval", "exec", "__import__", "Popen", "open"])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_hostile_pickle_is_refused_and_not_run(tmp_path, name, protocol):
    marker = tmp_path / "ran"
    for i, content in enumerate(wrapped(hostile(marker)[name])):
        path = tmp_path / f"{i}.pkl"
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(WeightsError, match=r"refused, it (refers to|contains)") as error:
            read_pickle(path)
        assert str(path) in str(error.value)
        assert not marker.exists()


@pytest.mark.parametrize("name", ["os.system", "eval", "Popen"])
def test_hostile_torch_file_is_refused_and_not_run(tmp_path, name):
    marker = tmp_path / "ran"
    for i, content in enumerate(wrapped(hostile(marker)[name])):
        path = tmp_path / f"{i}.pth"
        torch.save(content, path)
        with pytest.raises(WeightsError, match=r"refused, it refers to \w+"):
            read_torch(path)
        assert not marker.exists()


def test_the_hostile_files_of_these_tests_do_run_when_trusted(tmp_path):
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(hostile(marker)["os.system"]))
    assert marker.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cmaskrcnn.weights.pickles\nread_torch\n.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(N}S'__code__'\nNstb.",  # BUILD on the function itself
        b"cnumpy\nndarray\n(I3\ntR.",
        b"c_codecs\nencode\n(Vx\nVrot13\ntR.",
        b"cbuiltins\nbytes\n(I1000000000\ntR.",
        b"P1\n.",
        b"\x80\x04\x95",
        b"",
        b"not a pickle",
    ],
)
def test_odd_programs_are_refused(tmp_path, program):
    path = tmp_path / "odd.pkl"
    path.write_bytes(program)
    with pytest.raises(WeightsError, match=r"odd\.pkl"):
        read_pickle(path)


def test_a_pickle_cannot_affect_the_next_one(tmp_path):
    bad, good = tmp_path / "bad.pkl", tmp_path / "good.pkl"
    bad.write_bytes(b"c_codecs\nencode\n(N}S'_meaning'\nS'ordered'\nstb.")
    good.write_bytes(pickle.dumps({"a": np.arange(3)}, protocol=2))
    with pytest.raises(WeightsError):
        read_pickle(bad)
    assert read_pickle(good)["a"].tolist() == [0, 1, 2]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    array=st.sampled_from(DTYPES).flatmap(
        lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    ),
    protocol=st.integers(0, 5),
)
def test_arrays_survive_unchanged(tmp_path, array, protocol):
    path = tmp_path / "weights.pkl"
    fortran = np.asfortranarray(array)
    path.write_bytes(
        pickle.dumps(
            {"model": OrderedDict(a=array, f=fortran), "scalar": array.ravel()[:1].sum()},
            protocol=protocol,
        )
    )
    read = read_pickle(path)
    native = array.astype(array.dtype.newbyteorder("="))
    for key in ("a", "f"):
        assert read["model"][key].dtype == torch.from_numpy(native).dtype
        np.testing.assert_array_equal(read["model"][key].numpy(), native)
    np.testing.assert_array_equal(read["scalar"], array.ravel()[:1].sum())


def test_pickles_of_old_numpy_and_of_python_2_are_read(tmp_path):
    path = tmp_path / "old.pkl"
    new = pickle.dumps({"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, protocol=2)
    path.write_bytes(new.replace(b"numpy._core", b"numpy.core"))
    assert read_pickle(path)["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    # Python 2 wrote the array's bytes as a string (opcode T = BINSTRING) where Python 3 writes _codecs.encode(..)
    data = np.arange(2, dtype=np.float32).tobytes()
    path.write_bytes(
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + len(data).to_bytes(4, "little")
        + data
        + b"tb."
    )
    assert read_pickle(path).tolist() == [0, 1]


def test_arrays_of_objects_records_and_strings_are_refused(tmp_path):
    path = tmp_path / "odd.pkl"
    for array in (
        np.array([None, 1]),
        np.zeros(2, dtype=[("a", "f4")]),
        np.array(["a"]),
        np.zeros(2, dtype="M8[s]"),
    ):
        path.write_bytes(pickle.dumps({"w": array}))
        with pytest.raises(WeightsError, match="only numbers are weights"):
            read_pickle(path)


def test_torch_file_with_the_reference_scripts_namespace_is_read(tmp_path):
    path = tmp_path / "model_25.pth"
    args = argparse.Namespace(
        lr=0.02, aspect_ratio_group_factor=3, device="cpu", lr_steps=[16, 22], resume=None
    )
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, milestones=[16, 22]
    )  # its state holds a collections.Counter
    states = {"optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict()}
    torch.save({"model": OrderedDict(w=torch.ones(2)), **states, "args": args, "epoch": 25}, path)
    read = read_torch(path)
    assert read["model"]["w"].tolist() == [1, 1]
    assert read["args"].lr == 0.02


def test_damaged_torch_files_are_named(tmp_path):
    path = tmp_path / "torn.pth"
    torch.save({"w": torch.ones(1000)}, path)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"torn\.pth: .*(damaged|refused|expected weights)"):
            read_torch(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("[]", "JSON or other text"),
        ("<html>", "an HTML page"),
        ("epoch,loss", "text"),
        ('{"annotations": []}', r"an annotation file\.$"),
    ],
)
def test_a_file_that_holds_no_weights_is_named_for_what_it_is(
    content: str, kind: str, tmp_path: Path
):
    (tmp_path / "x.pth").write_text(content)
    with pytest.raises(WeightsError, match=rf"x\.pth: expected weights .*, got {kind}"):
        read_torch(tmp_path / "x.pth")
