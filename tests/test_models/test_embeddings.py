from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
embeddings = pytest.importorskip("segadapt.models.embeddings")
EmbeddingCache, EmbeddingKey = embeddings.EmbeddingCache, embeddings.EmbeddingKey

KEY = EmbeddingKey(
    raster="/data/scène 1.tif|1024|17",
    bands=(3, 2, 1),
    window=(512, 0, 1024),
    stretch=(0.1, 255.0),
    checkpoint_sha256="6dbb",
    precision="fp32",
)
SHAPE = (4, 8, 8)
N_BYTES = 4 * 8 * 8 * 2


def _embedding(seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).half()


def _keys(count: int) -> list[EmbeddingKey]:
    return [replace(KEY, window=(index, 0, 256)) for index in range(count)]


def _files(cache: EmbeddingCache) -> list:
    return sorted(cache.folder.glob("*/*"))


@pytest.fixture
def cache(tmp_path):
    return EmbeddingCache(tmp_path / "ünï cache")


def test_the_folder_follows_segadapt_home(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGADAPT_HOME", str(tmp_path))
    assert EmbeddingCache().folder == tmp_path / "embeddings"
    assert list(tmp_path.iterdir()) == []


def test_memory_and_disk_return_the_same_numbers(cache):
    full = torch.randn(256, 64, 64)
    assert cache.get(KEY) is None
    assert KEY not in cache
    cache.put(KEY, full)
    first = cache.get(KEY)
    assert KEY in cache
    cache.clear_memory()
    assert KEY in cache
    second = cache.get(KEY)
    assert second is not first
    for found in (first, second, EmbeddingCache(cache.folder).get(KEY)):
        assert (found.dtype, found.device.type, found.shape) == (torch.float16, "cpu", (256, 64, 64))
        assert torch.equal(found, full.half())


def test_what_was_put_is_a_copy(cache):
    embedding = _embedding()
    cache.put(KEY, embedding)
    embedding.zero_()
    assert torch.equal(cache.get(KEY), _embedding())


def test_one_file_per_chip_named_by_the_digest(cache):
    cache.put(KEY, _embedding())
    cache.put(KEY, _embedding(1))
    assert _files(cache) == [cache.folder / KEY.digest[:2] / f"{KEY.digest}.safetensors"]
    assert torch.equal(EmbeddingCache(cache.folder).get(KEY), _embedding(1))


@pytest.mark.parametrize(
    "change",
    [
        {"raster": "/data/scène 1.tif|1024|18"},
        {"bands": (1, 2, 3)},
        {"window": (512, 0, 512)},
        {"stretch": (0.1, 254.0)},
        {"checkpoint_sha256": "6dbc"},
        {"precision": "bf16"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_other_key_is_a_miss_even_under_the_same_name(cache, change):
    other = replace(KEY, **change)
    cache.put(KEY, _embedding())
    assert other not in cache
    assert cache.get(other) is None
    path = cache.folder / other.digest[:2] / f"{other.digest}.safetensors"
    path.parent.mkdir(exist_ok=True)
    os.replace(_files(cache)[0], path)
    assert other not in cache
    assert cache.get(other) is None
    assert not path.exists()


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "flipped bit"])
def test_a_damaged_file_is_a_miss_and_goes(cache, damage, caplog):
    cache.put(KEY, _embedding())
    (path,) = _files(cache)
    data = bytearray(path.read_bytes())
    if damage == "flipped bit":
        data[-3] ^= 1
    path.write_bytes({"empty": b"", "truncated": data[:-9], "text": b"x" * 500}.get(damage, data))
    cache.clear_memory()
    with caplog.at_level(logging.INFO):
        assert cache.get(KEY) is None
    assert not path.exists()
    assert caplog.records == []
    cache.put(KEY, _embedding())
    assert torch.equal(EmbeddingCache(cache.folder).get(KEY), _embedding())


def test_memory_drops_the_least_recently_used(tmp_path):
    cache = EmbeddingCache(tmp_path, memory_bytes=3 * N_BYTES, disk_bytes=0)
    a, b, c, d = _keys(4)
    for seed, key in enumerate((a, b, c)):
        cache.put(key, _embedding(seed))
    assert torch.equal(cache.get(a), _embedding(0))
    cache.put(d, _embedding(3))
    assert [key in cache for key in (a, b, c, d)] == [True, False, True, True]
    cache.put(d, _embedding(4))
    assert [key in cache for key in (a, b, c, d)] == [True, False, True, True]
    assert torch.equal(cache.get(d), _embedding(4))
    cache.put(b, torch.zeros(4 * N_BYTES))
    assert b not in cache
    assert list(tmp_path.iterdir()) == []


def _file_bytes(folder) -> int:
    EmbeddingCache(folder).put(KEY, _embedding())
    (path,) = folder.glob("*/*")
    return path.stat().st_size


def test_the_disk_drops_the_least_recently_used(tmp_path):
    size = _file_bytes(tmp_path / "one")
    # 40 files fit; the keys below differ in length by one digit at most, the 41st makes room for two more
    cache = EmbeddingCache(tmp_path / "many", memory_bytes=0, disk_bytes=40 * size)
    keys = _keys(43)
    for index, key in enumerate(keys[:40]):
        cache.put(key, _embedding(index))
    assert len(_files(cache)) == 40
    assert torch.equal(cache.get(keys[0]), _embedding(0))
    cache.put(keys[40], _embedding(40))
    assert [key in cache for key in keys[:6]] == [True, False, False, False, True, True]
    assert keys[40] in cache
    assert len(_files(cache)) == 38
    cache.put(keys[41], _embedding(41))
    cache.put(keys[42], _embedding(42))
    assert len(_files(cache)) == 40
    assert sum(path.stat().st_size for path in _files(cache)) <= 40 * size


def test_what_an_earlier_session_left_counts(tmp_path):
    size = _file_bytes(tmp_path)
    first, *others = _keys(9)
    for key in (first, *others):
        EmbeddingCache(tmp_path).put(key, _embedding())
    cache = EmbeddingCache(tmp_path, disk_bytes=3 * size)
    cache.put(first, _embedding(7))
    assert len(_files(cache)) == 2
    assert first in EmbeddingCache(tmp_path)


def test_more_than_the_limit_is_not_written(tmp_path):
    cache = EmbeddingCache(tmp_path, disk_bytes=N_BYTES)
    cache.put(KEY, _embedding())
    assert _files(cache) == []
    assert torch.equal(cache.get(KEY), _embedding())


def test_the_folder_is_listed_once_until_it_is_full(tmp_path, monkeypatch):
    listed, list_entries = [], embeddings._list_entries
    monkeypatch.setattr(embeddings, "_list_entries", lambda folder: listed.append(folder) or list_entries(folder))
    cache = EmbeddingCache(tmp_path)
    for key in _keys(10):
        cache.put(key, _embedding())
    assert listed == [tmp_path]


def test_an_old_temporary_file_goes_and_a_young_one_stays(cache):
    (cache.folder / "ab").mkdir(parents=True)
    old, young = cache.folder / "ab" / "x.tmp", cache.folder / "ab" / "y.tmp"
    old.write_bytes(b"1")
    young.write_bytes(b"1")
    os.utime(old, (1, 1))
    cache.put(KEY, _embedding())
    assert not old.exists()
    assert young.exists()


def test_a_folder_that_cannot_be_written_leaves_memory_and_one_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    cache = EmbeddingCache(tmp_path / "file")
    for seed, key in enumerate(_keys(3)):
        cache.put(key, _embedding(seed))
        assert torch.equal(cache.get(key), _embedding(seed))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"memory only, because {tmp_path / 'file'} cannot be written" in record.getMessage()
    assert cache.get(replace(KEY, precision="fp16")) is None


def test_a_disk_that_is_full_leaves_no_temporary_file(cache, monkeypatch, caplog):
    def refuse(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embeddings.os, "replace", refuse)
    cache.put(KEY, _embedding())
    assert torch.equal(cache.get(KEY), _embedding())
    assert _files(cache) == []
    assert "No space left on device" in caplog.text


def test_another_process_reads_and_removes(cache):
    script = (
        "import importlib.util as u, sys\n"
        "from ast import literal_eval\n"
        "from pathlib import Path\n"
        "spec = u.spec_from_file_location('segadapt', sys.argv[1] + '/__init__.py',"
        " submodule_search_locations=[sys.argv[1]])\n"
        "sys.modules['segadapt'] = u.module_from_spec(spec)\n"
        "import torch\n"
        "from segadapt.models.embeddings import EmbeddingCache, EmbeddingKey\n"
        "key, cache = EmbeddingKey(*literal_eval(sys.argv[3])), EmbeddingCache(Path(sys.argv[2]))\n"
        "print(float(cache.get(key).float().sum()))\n"
        "cache.put(key, torch.full((2,), 7.0))"
    )
    cache.put(KEY, torch.arange(8.0))
    values = repr((KEY.raster, KEY.bands, KEY.window, KEY.stretch, KEY.checkpoint_sha256, KEY.precision))
    root = str(embeddings.Path(embeddings.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script, root, str(cache.folder), values],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) == 28.0
    cache.clear_memory()
    assert cache.get(KEY).tolist() == [7.0, 7.0]
    cache.clear_memory()
    _files(cache)[0].unlink()
    assert cache.get(KEY) is None
    cache.put(KEY, _embedding())
    assert KEY in EmbeddingCache(cache.folder)


def test_many_threads_on_a_small_cache_get_right_numbers_or_none(tmp_path):
    size = _file_bytes(tmp_path / "one")
    cache = EmbeddingCache(tmp_path / "many", memory_bytes=3 * N_BYTES, disk_bytes=6 * size)
    keys, wrong = _keys(12), []

    def work(offset: int) -> None:
        for step in range(60):
            index = (offset * 5 + step) % len(keys)
            found = cache.get(keys[index])
            if found is None:
                cache.put(keys[index], _embedding(index))
            elif not torch.equal(found, _embedding(index)):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache._memory_used == N_BYTES * len(cache._memory) <= 3 * N_BYTES
    assert sum(path.stat().st_size for path in _files(cache)) == cache._disk_used <= 6 * size


_HAMMER = """
import importlib.util as u, random, sys, time
spec = u.spec_from_file_location('segadapt', sys.argv[1] + '/__init__.py', submodule_search_locations=[sys.argv[1]])
sys.modules['segadapt'] = u.module_from_spec(spec)
import logging
from pathlib import Path
import torch
from segadapt.models.embeddings import EmbeddingCache, EmbeddingKey
logging.basicConfig(level=logging.WARNING)
torch.set_num_threads(1)
seed, limit = int(sys.argv[3]), int(sys.argv[4])
cache = EmbeddingCache(Path(sys.argv[2]), memory_bytes=0, disk_bytes=limit)
chance, most, hits = random.Random(seed), 0, 0
until = time.monotonic() + 1.0
while time.monotonic() < until:
    index = chance.randrange(60)
    key = EmbeddingKey('raster', (1, 2, 3), (index, 0, 256), (0.0, 255.0), 'sha', 'fp32')
    found = cache.get(key)
    if found is None:
        cache.put(key, torch.full((16, 16, 16), float(index)))
    else:
        hits += 1
        assert found.shape == (16, 16, 16) and (found == index).all(), index
    if chance.random() < 0.02:
        for path in Path(sys.argv[2]).glob('*/*.safetensors'):
            if chance.random() < 0.1:
                path.unlink(missing_ok=True)
    usage = cache.usage()
    most = max(most, usage.n_bytes)
print(hits, most)
"""


def test_two_processes_share_one_folder(tmp_path):
    """Each writes, reads, evicts and removes what the other has: right numbers or none, and little over the limit."""
    root = str(embeddings.Path(embeddings.__file__).parents[1])
    limit = 30 * 8400
    done = [
        subprocess.Popen(
            [sys.executable, "-c", _HAMMER, root, str(tmp_path), str(seed), str(limit)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for seed in (1, 2)
    ]  # fmt: skip
    used = []
    while any(process.poll() is None for process in done):
        used.append(sum(_size(path) for path in tmp_path.glob("*/*.safetensors")))
        time.sleep(0.02)
    for process in done:
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        assert errors == ""
        hits, _ = (int(value) for value in out.split())
        assert hits > 20
    # Two processes that look at the folder again after a twentieth of the limit each.
    assert 0 < max(used) <= 1.2 * limit
    assert list(tmp_path.glob("*/*.tmp")) == []


def _size(path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_what_others_write_counts_before_the_own_share_is_full(tmp_path):
    size = _file_bytes(tmp_path / "one")
    first, second = (EmbeddingCache(tmp_path / "many", memory_bytes=0, disk_bytes=40 * size) for _ in range(2))
    first.put(KEY, _embedding())
    second.put(KEY, _embedding())  # both know the folder by now
    for index, key in enumerate(_keys(39)):
        (first, second)[index % 2].put(key, _embedding(index))
    for index in range(40, 60):
        (first, second)[index % 2].put(replace(KEY, window=(0, index, 256)), _embedding(index))
        assert len(_files(first)) <= 40 + 3


def test_usage_follows_what_is_written_and_removed(cache):
    assert (cache.usage().n_files, cache.usage().n_bytes) == (0, 0)
    keys = _keys(3)
    for key in keys:
        cache.put(key, _embedding())
    cache.put(keys[0], _embedding(1))
    assert cache.usage().n_files == 3
    assert cache.usage().n_bytes == sum(path.stat().st_size for path in _files(cache))
    _files(cache)[0].write_bytes(b"")
    cache.clear_memory()
    for key in keys:
        cache.get(key)
    assert EmbeddingCache(cache.folder).usage().n_files == 2


def test_a_file_that_another_process_holds_open_is_no_reason_to_give_up_the_disk(cache, monkeypatch, caplog):
    cache.put(KEY, _embedding())

    def refuse(*_args):
        raise PermissionError(13, "The process cannot access the file")

    with monkeypatch.context() as patch:
        patch.setattr(embeddings.os, "replace", refuse)
        cache.put(KEY, _embedding())
    assert caplog.records == []
    other = replace(KEY, window=(1, 1, 256))
    cache.put(other, _embedding(1))
    assert len(_files(cache)) == 2
