"""One object in the making, without Qt."""

from __future__ import annotations

import pytest
from segadapt.plugin.exchange import Answer
from segadapt.plugin.session import Session

VIEW = (0.0, 0.0, 100.0, 100.0)


def answer_to(request_id: int) -> Answer:
    return Answer(request_id, b"wkb", 0.9, 0.9, 1.0, "m", previous=f"logits {request_id}")


@pytest.fixture
def session() -> Session:
    return Session()


def ask_and_answer(session: Session) -> int:
    prompt = session.request(VIEW)
    assert prompt is not None
    assert session.take(answer_to(prompt.request_id))
    return prompt.request_id


def test_request_holds_the_prompts_and_the_view(session: Session) -> None:
    session.add_point((1.0, 2.0), is_foreground=True)
    session.add_point((3.0, 4.0), is_foreground=False)
    session.set_box((0.0, 0.0, 9.0, 9.0))
    prompt = session.request(VIEW)
    assert prompt is not None
    assert prompt.points_map == ((1.0, 2.0), (3.0, 4.0))
    assert prompt.labels == (1, 0)
    assert prompt.box_map == (0.0, 0.0, 9.0, 9.0)
    assert prompt.view_map == VIEW


def test_nothing_is_asked_without_prompts_nor_twice_for_the_same(session: Session) -> None:
    assert session.request(VIEW) is None
    session.add_point((1.0, 2.0), is_foreground=True)
    ask_and_answer(session)
    assert session.request(VIEW) is None


def test_second_click_feeds_the_first_answer_back(session: Session) -> None:
    session.add_point((1.0, 2.0), is_foreground=True)
    first = ask_and_answer(session)
    session.add_point((3.0, 4.0), is_foreground=True)
    prompt = session.request(VIEW)
    assert prompt is not None
    assert prompt.previous == f"logits {first}"


def test_a_new_box_starts_fresh(session: Session) -> None:
    session.add_point((1.0, 2.0), is_foreground=True)
    ask_and_answer(session)
    session.set_box((0.0, 0.0, 9.0, 9.0))
    prompt = session.request(VIEW)
    assert prompt is not None
    assert prompt.previous is None


def test_an_older_answer_is_refused_when_a_newer_question_was_asked(session: Session) -> None:
    session.add_point((1.0, 2.0), is_foreground=True)
    first = session.request(VIEW)
    session.add_point((3.0, 4.0), is_foreground=True)
    second = session.request(VIEW)
    assert first is not None
    assert second is not None
    assert not session.take(answer_to(first.request_id))
    assert session.is_waiting
    assert session.take(answer_to(second.request_id))
    assert session.answer is not None
    assert session.answer.request_id == second.request_id


def test_an_answer_after_drop_is_refused_and_ids_do_not_repeat(session: Session) -> None:
    session.add_point((1.0, 2.0), is_foreground=True)
    first = session.request(VIEW)
    session.drop()
    session.add_point((5.0, 5.0), is_foreground=True)
    second = session.request(VIEW)
    assert first is not None
    assert second is not None
    assert first.request_id != second.request_id
    assert not session.take(answer_to(first.request_id))


def test_undo_brings_the_earlier_answer_back_at_once(session: Session) -> None:
    session.add_point((1.0, 2.0), is_foreground=True)
    first = ask_and_answer(session)
    session.add_point((3.0, 4.0), is_foreground=False)
    second = ask_and_answer(session)
    session.undo()
    assert session.answer is not None
    assert session.answer.request_id == first
    assert session.step.labels == (1,)
    session.redo()
    assert session.answer is not None
    assert session.answer.request_id == second
    assert session.step.labels == (1, 0)


def test_undo_and_redo_stop_at_the_ends(session: Session) -> None:
    session.undo()
    session.redo()
    assert session.is_empty
    assert not session.can_undo
    assert not session.can_redo
    session.add_point((1.0, 2.0), is_foreground=True)
    session.undo()
    assert session.is_empty
    assert session.can_redo


def test_a_new_click_after_undo_ends_redo(session: Session) -> None:
    session.add_point((1.0, 2.0), is_foreground=True)
    session.undo()
    session.add_point((7.0, 8.0), is_foreground=True)
    assert not session.can_redo
    assert session.step.points_map == ((7.0, 8.0),)


def test_an_answer_to_an_undone_prompt_is_not_shown(session: Session) -> None:
    session.add_point((1.0, 2.0), is_foreground=True)
    first = ask_and_answer(session)
    session.add_point((3.0, 4.0), is_foreground=True)
    late = session.request(VIEW)
    session.undo()
    assert late is not None
    assert not session.take(answer_to(late.request_id))
    assert session.shown_answer is not None
    assert session.shown_answer.request_id == first


def test_old_mask_stays_shown_until_the_new_one_is_there(session: Session) -> None:
    session.add_point((1.0, 2.0), is_foreground=True)
    first = ask_and_answer(session)
    session.add_point((3.0, 4.0), is_foreground=True)
    assert session.answer is None
    assert session.shown_answer is not None
    assert session.shown_answer.request_id == first


def test_a_refused_prompt_is_taken_back(session: Session) -> None:
    session.add_point((1.0, 2.0), is_foreground=True)
    first = ask_and_answer(session)
    session.add_point((3.0, 4.0), is_foreground=True)
    failed = session.request(VIEW)
    assert failed is not None
    assert session.refuse(failed.request_id)
    assert session.step.points_map == ((1.0, 2.0),)
    assert session.answer is not None
    assert session.answer.request_id == first
    assert not session.can_redo
    assert not session.refuse(failed.request_id)
