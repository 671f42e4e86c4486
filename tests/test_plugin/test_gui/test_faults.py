"""What goes wrong while something is under way: files, layers, projects and devices that change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qgis.core import QgsPointXY, QgsProject, QgsRasterLayer
from qgis.PyQt.QtTest import QTest
from segadapt.models.errors import EngineError
from segadapt.models.progress import NullProgress, raise_if_cancelled
from segadapt.plugin.backend import RasterChangedError, SceneBackend, is_device_failure
from segadapt.plugin.exchange import PromptInput, SceneSpec, Task
from segadapt.plugin.rendered_source import layer_source, read_layer_source
from segadapt.plugin.status import Phase
from segadapt.plugin.tasks import Learn, LoadAdapter, ResetLearning, SaveAdapter, SetLearning, SetRectangles
from segadapt.processing.algorithms.raster_source import BlockGrid, read_source
from segadapt.processing.algorithms.settings import read_settings
from segadapt.processing.errors import JobError, RasterError


@dataclass(frozen=True, eq=False)
class Endless(Task):
    """Yields until it is stopped."""

    gate: Event = field(default_factory=Event)
    ended: list[str] = field(default_factory=list)

    def run(self, segmenter: Any, progress: Any) -> Iterator[int]:
        try:
            while True:
                raise_if_cancelled(progress)
                self.gate.wait(0.002)
                yield 1
        finally:
            self.ended.append("ended")


class FakeSegmenter:
    """Answers with a square of 10 m, and remembers what it was told."""

    def __init__(self, scene: Any, options: Any = None) -> None:
        from segadapt.processing.jobs.interactive import InteractiveOptions

        self.scene, self.options = scene, options or InteractiveOptions()
        self.n_learned, self.adapter_name, self.loaded_name = 0, "", ""
        self.learned: list[Any] = []

    def answer(self, request: Any, *, only_if_encoded: bool = False) -> Any:
        from segadapt.processing.jobs.prompt_request import MaskOption, PromptResult
        from segadapt.processing.raster.windows import SquareWindow
        from shapely.geometry import MultiPolygon, Point

        window = SquareWindow(0, 0, 1024)
        embedding = self.scene.embedding(window)
        self.request = request
        square = MultiPolygon([Point(*request.points_map[0]).buffer(5.0, cap_style="square")])
        values = {"stability": 0.9, "area_m2": 100.0, "window": window, "logits": np.zeros((256, 256), np.float32)}
        options = tuple(
            MaskOption(geometry=geometry, score=score, **values)
            for geometry, score in ((square, float(embedding.max())), (MultiPolygon(), 0.1))
        )
        return PromptResult(
            request_id=request.request_id,
            geometry=square,
            score=options[0].score,
            options=options,
            adapter="eo",
            **values,
        )

    def learning(self, result: Any, geometry: Any = None) -> Any:
        yield  # as between two steps
        self.learned.append((result, geometry))
        self.n_learned += 1
        return SimpleNamespace(sentence="report")

    def reset(self) -> None:
        self.n_learned = 0

    def save(self, path: Path) -> None:
        path.write_text(str(self.n_learned))

    def load(self, path: Path) -> None:
        self.n_learned, self.loaded_name = int(path.read_text()), path.stem

    @property
    def knowledge(self) -> tuple[int, str]:
        return self.n_learned, self.loaded_name

    def take_over(self, knowledge: tuple[int, str]) -> None:
        self.n_learned, self.loaded_name = knowledge


class FakeEngine:
    """Embeds a chip as its brightest value; `fail` is raised by the next call, as a device's failure would be."""

    def __init__(self, device: str) -> None:
        self.card = SimpleNamespace(name="fake", input_px=1024)
        self.checkpoint_sha256, self.precision = "0" * 64, "fp32" if device == "cpu" else "bf16"
        self.device, self.device_reason = device, f"{device}, the best one."
        self.fail: Exception | None = None
        self.n_embedded, self.is_closed = 0, False

    def embed(self, chips: Any) -> Any:
        import torch

        if self.fail is not None:
            raise self.fail
        self.n_embedded += len(chips)
        return [torch.full((256, 64, 64), float(chip.max()), dtype=torch.float16) for chip in chips]

    def close(self) -> None:
        self.is_closed = True
        if self.fail is not None:
            raise RuntimeError("CUDA error: the device is lost")


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    """Engines in the order in which they were opened; "auto" is a device called cuda:0."""
    import segadapt.models.engine
    import segadapt.processing.jobs.interactive

    opened: list[FakeEngine] = []

    def open_engine(_model: str, *, device: str, **_more: Any) -> FakeEngine:
        opened.append(FakeEngine("cuda:0" if device == "auto" else device))
        return opened[-1]

    monkeypatch.setattr(segadapt.models.engine, "open_engine", open_engine)
    monkeypatch.setattr(segadapt.processing.jobs.interactive, "InteractiveSegmenter", FakeSegmenter)
    return opened


@pytest.fixture
def raster_file(tmp_path: Path) -> Path:
    path = tmp_path / "scene.tif"
    write_raster(path, 100)
    return path


def write_raster(path: Path, value: int) -> None:
    import rasterio
    from affine import Affine

    part = path.with_name("part.tif")
    with rasterio.open(
        part, "w", driver="GTiff", width=64, height=64, count=3, dtype="uint8", crs="EPSG:32631",
        transform=Affine(0.5, 0, 590_000, 0, -0.5, 5_750_000),
    ) as dataset:  # fmt: skip
        dataset.write(np.full((3, 64, 64), value, np.uint8))
    os.replace(part, path)


VIEW = (590_000.0, 5_749_968.0, 590_032.0, 5_750_000.0)


def prompt(request_id: int = 1, **more: Any) -> PromptInput:
    return PromptInput(request_id, ((590_016.0, 5_749_984.0),), (1,), None, VIEW, **more)


@pytest.fixture
def backend_on(raster_file: Path, engines: Any, qgis_app: Any) -> Iterator[SceneBackend]:
    backend = SceneBackend()
    layer = QgsRasterLayer(str(raster_file), "scene", "gdal")
    spec = SceneSpec(read_source(layer, [], use_layer_stretch=False), "mobile_sam", read_settings())
    backend.spec = spec
    backend.open(spec, NullProgress())
    yield backend
    backend.close()


def test_everything_of_a_prompt_and_of_its_answer_gets_through(backend_on: SceneBackend) -> None:
    import shapely

    outline = shapely.box(590_010, 5_749_980, 590_020, 5_749_990)
    asked = prompt(
        scribbles_map=(((590_001.0, 5_749_990.0), (590_002.0, 5_749_991.0)),), scribble_labels=(0,),
        outline_wkb=bytes(shapely.to_wkb(outline)),
    )  # fmt: skip
    answer = backend_on.answer(asked)
    request = backend_on._segmenter.request
    assert request.scribbles_map == asked.scribbles_map
    assert request.scribble_labels == (0,)
    assert request.outline.equals(outline)
    assert (answer.adapter, len(answer.options)) == ("eo", 2)
    best, empty = answer.options
    assert best.wkb == answer.wkb
    assert (empty.wkb, empty.score) == (b"", 0.1)
    assert best.previous.window == answer.result.window
    assert answer.result.request_id == 1


def test_learning_tasks_reach_the_segmenter(backend_on: SceneBackend, tmp_path: Path) -> None:
    import shapely

    def done(task: Task) -> Any:
        *_, item = backend_on.run_task(task, NullProgress())
        return item if isinstance(item, str) else item.sentence

    segmenter = backend_on._segmenter
    answer = backend_on.answer(prompt())
    outline = shapely.box(0, 0, 1, 1)
    assert done(Learn(answer, bytes(shapely.to_wkb(outline)))) == "report"
    done(Learn(answer))
    assert segmenter.learned[0][0] is answer.result
    assert segmenter.learned[0][1].equals(outline)
    assert segmenter.learned[1][1] is None
    assert "no longer" in done(SetLearning(False))
    assert (segmenter.options.per_click, segmenter.options.per_object) == (False, False)
    done(SetLearning(True))
    assert segmenter.options.per_click
    assert "stay" in done(SetRectangles(False))
    assert not segmenter.options.rectangles
    assert "2 objects" in done(SaveAdapter(tmp_path / "mine.safetensors"))
    assert "2 objects" in done(ResetLearning())
    assert segmenter.n_learned == 0
    assert "mine" in done(LoadAdapter(tmp_path / "mine.safetensors"))
    assert segmenter.n_learned == 2


def test_a_raster_that_changed_on_disk_is_noticed_and_its_old_embeddings_are_not_used(
    backend_on: SceneBackend, raster_file: Path, engines: Any
) -> None:
    assert backend_on.answer(prompt()).score == 100
    assert backend_on.encode(*backend_on.view_windows(VIEW)[:1] or [_window()]) is True
    write_raster(raster_file, 180)
    with pytest.raises(RasterChangedError, match="scene changed on disk"):
        backend_on.answer(prompt())
    with pytest.raises(RasterChangedError):
        backend_on.encode(_window())
    with pytest.raises(RasterChangedError):
        backend_on.run_task(Endless(), NullProgress())
    backend_on.open(backend_on.spec, NullProgress())
    assert backend_on.answer(prompt()).score == 180
    raster_file.unlink()
    with pytest.raises(RasterChangedError):
        backend_on.answer(prompt())


def _window() -> Any:
    from segadapt.processing.raster.windows import SquareWindow

    return SquareWindow(0, 0, 1024)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        EngineError("cuda:0 has not enough memory for mobile_sam; close other programs."),
    ],
    ids=["lost", "full"],
)
def test_a_device_that_fails_is_followed_by_the_cpu_with_all_that_was_learned(
    backend_on: SceneBackend, engines: Any, error: Exception
) -> None:
    (gpu,) = engines
    list(backend_on.run_task(Learn(backend_on.answer(prompt())), NullProgress()))
    gpu.fail = error
    backend_on._segmenter.scene.cache.clear_memory()
    info = backend_on.fall_back(error, NullProgress())
    assert (info.device, info.reason) == ("cpu", "CPU, because cuda:0 failed.")
    assert gpu.is_closed
    answer = backend_on.answer(prompt())
    assert answer.wkb
    assert engines[1].n_embedded == 1  # computed anew: the precision is another one
    assert backend_on._segmenter.n_learned == 1
    # There is nothing to fall back to any more, and what is wrong with the input is no failure of the device.
    assert backend_on.fall_back(error, NullProgress()) is None


def test_what_was_learned_stays_while_the_same_raster_is_opened_again(
    backend_on: SceneBackend, engines: Any, tmp_path: Path
) -> None:
    list(backend_on.run_task(Learn(backend_on.answer(prompt())), NullProgress()))
    assert backend_on.open(backend_on.spec, NullProgress()).n_learned == 1
    backend_on.close_scene()
    assert backend_on.open(backend_on.spec, NullProgress()).n_learned == 1
    (tmp_path / "my_city").write_text("0")
    list(backend_on.run_task(LoadAdapter(tmp_path / "my_city"), NullProgress()))
    info = backend_on.open(backend_on.spec, NullProgress())
    assert (info.n_learned, info.loaded_name) == (0, "my_city")


def test_what_was_learned_on_the_last_rasters_comes_back_with_them(backend_on: SceneBackend, tmp_path: Path) -> None:
    list(backend_on.run_task(Learn(backend_on.answer(prompt())), NullProgress()))

    def visit_others(*, n_learned: int) -> None:
        for number in range(4):
            path = tmp_path / f"other{number}.tif"
            write_raster(path, 50)
            source = read_source(QgsRasterLayer(str(path), "other", "gdal"), [], use_layer_stretch=False)
            assert backend_on.open(replace(backend_on.spec, source=source), NullProgress()).n_learned == 0
            backend_on._segmenter.n_learned = n_learned

    visit_others(n_learned=0)
    assert backend_on.open(backend_on.spec, NullProgress()).n_learned == 1
    visit_others(n_learned=2)
    assert backend_on.open(backend_on.spec, NullProgress()).n_learned == 0  # each takes memory


def test_what_was_learned_on_a_picture_stays_when_it_is_drawn_finer(backend_on: SceneBackend, tmp_path: Path) -> None:
    def n_learned(units_per_px: float) -> int:
        grid = BlockGrid(tmp_path / "rendered" / f"{units_per_px}", f"{units_per_px}", units_per_px, 0, -1, 2, 2)
        source = replace(backend_on.spec.source, path="tiles", bands=(1, 2, 3), blocks=grid)
        demand = SimpleNamespace(wait=lambda *_: None, forget=lambda: None, order=lambda _: None)
        return backend_on.open(replace(backend_on.spec, source=source, demand=demand), NullProgress()).n_learned

    assert n_learned(1.0) == 0
    backend_on._segmenter.n_learned = 3
    assert n_learned(0.25) == 3


def test_what_was_learned_follows_the_raster_and_not_the_name_of_its_layer(
    backend_on: SceneBackend, tmp_path: Path
) -> None:
    def n_learned(tiles: str, name: str) -> int:
        layer = QgsRasterLayer(f"type=xyz&url=http://127.0.0.1:9/{tiles}/{{z}}/{{x}}/{{y}}.png", name, "wms")
        source = read_layer_source(
            layer_source(layer), centre=QgsPointXY(0, 0), units_per_px=1.0, folder=tmp_path / "rendered"
        )
        demand = SimpleNamespace(wait=lambda *_: None, forget=lambda: None, order=lambda _: None)
        return backend_on.open(replace(backend_on.spec, source=source, demand=demand), NullProgress()).n_learned

    assert n_learned("spring", "Imagery") == 0
    backend_on._segmenter.n_learned = 3
    assert n_learned("autumn", "Imagery") == 0
    assert n_learned("spring", "Imagery of spring") == 3


def test_only_failures_of_a_device_count_as_such() -> None:
    assert not is_device_failure(JobError("CUDA is mentioned by a job"))
    assert not is_device_failure(RasterError("out of memory in GDAL"))
    assert not is_device_failure(EngineError("The engine of mobile_sam is closed; open a new one."))
    assert not is_device_failure(RuntimeError("shapes do not fit"))
    assert not is_device_failure(ValueError("CUDA"))
    assert is_device_failure(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_device_failure(RuntimeError("MPS backend out of memory"))


def test_a_click_on_a_raster_that_changed_is_a_sentence_and_the_raster_is_open_again(
    make_gui: Any, raster_file: Path, engines: Any, qgis_new_project: None
) -> None:
    gui = make_gui(SceneBackend())
    layer = QgsRasterLayer(str(raster_file), "changing", "gdal")
    QgsProject.instance().addMapLayer(layer)
    gui.canvas.setLayers([layer])
    gui.canvas.setExtent(layer.extent())
    gui.dock.raster_combo.setLayer(layer)
    gui.wait_for(lambda: gui.controller.scene.is_ready, seconds=60)
    gui.wait_for(lambda: "is encoded" in gui.status)
    write_raster(raster_file, 180)
    gui.click(layer.extent().center())
    gui.wait_for(lambda: gui.notices)
    assert gui.notices == ["changing changed on disk; it is opened again, and the prompts are dropped."]
    assert gui.session.is_empty
    gui.wait_for(lambda: gui.controller.scene.is_ready)
    gui.click(layer.extent().center())
    assert gui.wait_for_answer().score == 180


@pytest.mark.parametrize("how", ["layer removed", "project switched", "source changed", "model changed"])
def test_a_task_ends_with_its_scene_and_nothing_of_it_is_said_afterwards(gui: Any, raster_path: Path, how: str) -> None:
    gui.start()
    worker, items, task = gui.controller.worker, [], Endless()
    worker.worked.connect(lambda *values: items.append(values))
    worker.do(task)
    gui.wait_for(lambda: items)
    if how == "layer removed":
        QgsProject.instance().removeMapLayer(gui.layer.id())
    elif how == "project switched":
        QgsProject.instance().clear()
    elif how == "source changed":
        gui.layer.setDataSource(str(raster_path), "other", "gdal")
    else:
        gui.controller.scene.choose_model("sam_vit_b", title="SAM")
    items.clear()
    gui.wait_for(lambda: task.ended)
    QTest.qWait(50)
    assert [item for item in items if item[0] is task] == []
    assert worker.isRunning()
    is_open = how in ("source changed", "model changed")
    gui.wait_for(lambda: gui.controller.scene.status.phase is (Phase.READY if is_open else Phase.NO_RASTER))


def test_a_device_that_fails_under_a_click_is_a_notice_and_the_status_names_the_cpu(gui: Any, at: Any) -> None:
    from segadapt.plugin.exchange import SceneInfo

    gui.start()
    gui.backend.fallback = SceneInfo("scene", "Fake", "cpu", "CPU, because cuda:0 failed.")
    gui.backend.fail["answer"] = RuntimeError("CUDA error: device lost")
    gui.click(at(300, 400))
    assert gui.wait_for_answer().wkb
    assert gui.notices == ["CUDA error: device lost. SegAdapt goes on on the CPU."]
    assert gui.controller.scene.status.device_line() == "Fake on CPU, because cuda:0 failed."


def test_windows_ahead_are_few_new_and_in_the_direction_of_the_pan(tmp_path: Path, engines: Any, qgis_app: Any) -> None:
    import rasterio
    from affine import Affine

    path = tmp_path / "wide.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=8192, height=8192, count=1, dtype="uint8", crs="EPSG:32631",
        transform=Affine(0.5, 0, 590_000, 0, -0.5, 5_750_000), tiled=True, sparse_ok=True,
    ):  # fmt: skip
        pass
    backend = SceneBackend()
    layer = QgsRasterLayer(str(path), "wide", "gdal")
    backend.open(
        SceneSpec(read_source(layer, [], use_layer_stretch=False), "mobile_sam", read_settings()), NullProgress()
    )
    try:
        view = (591_800.0, 5_748_000.0, 592_200.0, 5_748_300.0)
        seen = backend.view_windows(view)
        ahead = backend.ahead_windows(view, (400.0, 0.0))
        assert 0 < len(ahead) <= 6
        assert not set(ahead) & set(seen)
        right = max(window.col_off for window in seen)
        assert all(window.col_off >= right for window in ahead)
        assert [window.col_off for window in ahead] == sorted(window.col_off for window in ahead)
        for window in ahead:
            backend.encode(window)
        assert not set(backend.ahead_windows(view, (400.0, 0.0))) & set(ahead)
    finally:
        backend.close()
