from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from segadapt.models.checkpoints import load_state_dict
from segadapt.models.errors import CheckpointError

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file


def test_tensors_come_back_from_both_formats(tmp_path):
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}
    torch.save(state, tmp_path / "w.pt")
    save_file(state, tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        loaded = load_state_dict(tmp_path / name)
        assert sorted(loaded) == ["a.weight", "b"]
        assert all(torch.equal(loaded[key], state[key]) for key in state)


class _Malicious:
    """Makes a file where an unpickler runs it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("is_zip", [True, False], ids=["torch.save", "bare pickle"])
def test_a_malicious_file_runs_nothing(tmp_path, is_zip):
    trace, path = tmp_path / "trace", tmp_path / "evil.pt"
    evil = {"weight": torch.zeros(1), "payload": _Malicious(trace)}
    torch.save(evil, path) if is_zip else path.write_bytes(pickle.dumps(evil))
    with pytest.raises(CheckpointError, match=r"evil\.pt is damaged or holds more than weights") as caught:
        load_state_dict(path)
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    pickle.loads(pickle.dumps(evil))  # the proof that the file is dangerous
    assert trace.exists()


@pytest.mark.parametrize("content", [b"", b"no weights", {"epoch": 3}, [1]], ids=["empty", "text", "number", "list"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_without_tensors_is_refused(tmp_path, content, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"is damaged or holds more|holds no tensors by name"):
        load_state_dict(path)


def test_a_truncated_file_and_a_missing_one_are_refused(tmp_path):
    torch.save({"w": torch.rand(1000)}, tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:-200])
    for name in ("w.pt", "absent.pt"):
        with pytest.raises(CheckpointError, match=f"{name} .*; get it again from its publisher"):
            load_state_dict(tmp_path / name)
