"""One object in the making, without Qt."""

from __future__ import annotations

import pytest
from segadapt.plugin.exchange import Answer, MaskOptionAnswer
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


def offer_three(session: Session) -> int:
    """Answer the present prompts with three masks."""
    prompt = session.request(VIEW)
    assert prompt is not None
    options = tuple(
        MaskOptionAnswer(f"wkb {number}".encode(), 0.9 - number / 10, 0.8, float(number), f"logits {number}")
        for number in range(3)
    )
    first = options[0]
    answer = Answer(prompt.request_id, first.wkb, first.score, 0.8, 0.0, "m", previous=first.previous, options=options)
    assert session.take(answer)
    return prompt.request_id


def test_scribbles_and_outline_are_asked_about(session: Session) -> None:
    session.add_scribble([(1.0, 2.0), (3.0, 4.0)], is_foreground=True)
    session.add_scribble([(5.0, 6.0), (7.0, 8.0)], is_foreground=False)
    session.set_outline(b"polygon", source=("layer", 7))
    prompt = session.request(VIEW)
    assert prompt is not None
    assert prompt.scribbles_map == (((1.0, 2.0), (3.0, 4.0)), ((5.0, 6.0), (7.0, 8.0)))
    assert prompt.scribble_labels == (1, 0)
    assert prompt.outline_wkb == b"polygon"
    assert session.step.source == ("layer", 7)
    assert session.step.n_prompts == 3


def test_several_points_at_once_are_one_step(session: Session) -> None:
    session.add_points([(1.0, 2.0), (3.0, 4.0)], labels=[1, 1])
    assert session.step.n_prompts == 2
    session.undo()
    assert session.is_empty


def test_an_outline_starts_fresh_and_a_point_after_it_does_not(session: Session) -> None:
    session.add_point((1.0, 2.0), is_foreground=True)
    ask_and_answer(session)
    session.set_outline(b"polygon")
    fresh = session.request(VIEW)
    assert fresh is not None
    assert fresh.previous is None
    assert session.take(answer_to(fresh.request_id))
    session.add_point((3.0, 4.0), is_foreground=False)
    refined = session.request(VIEW)
    assert refined is not None
    assert refined.previous == f"logits {fresh.request_id}"


def test_the_chosen_mask_is_the_answer_and_is_fed_back(session: Session) -> None:
    session.add_point((1.0, 2.0), is_foreground=True)
    offer_three(session)
    assert session.choose_next()
    assert session.answer is not None
    assert (session.answer.wkb, session.answer.score, session.answer.area_m2) == (b"wkb 1", 0.8, 1.0)
    assert session.shown_answer is not None
    assert session.shown_answer.wkb == b"wkb 1"
    assert session.choose_next(-2)
    assert session.step.chosen == 2
    assert session.choose_next()
    assert session.step.chosen == 0  # round and round
    session.choose_next(2)
    session.add_point((3.0, 4.0), is_foreground=False)
    assert session.shown_answer is not None
    assert session.shown_answer.wkb == b"wkb 2"  # until the next answer is there
    prompt = session.request(VIEW)
    assert prompt is not None
    assert prompt.previous == "logits 2"


def test_there_is_nothing_to_choose_among_one_or_no_mask(session: Session) -> None:
    assert not session.choose_next()
    session.add_point((1.0, 2.0), is_foreground=True)
    assert not session.choose_next()
    ask_and_answer(session)
    assert not session.choose_next()
    assert session.step.n_options == 1


def test_undo_and_redo_keep_the_choice_and_name_the_prompt(session: Session) -> None:
    session.add_point((1.0, 2.0), is_foreground=True)
    offer_three(session)
    session.choose_next()
    session.set_box((0.0, 0.0, 9.0, 9.0))
    session.add_scribble([(1.0, 2.0), (3.0, 4.0)], is_foreground=True)
    session.set_outline(b"polygon")
    named = []
    while session.can_undo:
        named.append(session.newest_prompt)
        session.undo()
        assert session.next_prompt == named[-1]
    assert named == ["outline", "scribble", "box", "click"]
    assert session.newest_prompt == ""
    session.redo()
    assert session.step.chosen == 1


def test_an_object_that_was_put_aside_is_taken_up_as_it_was(session: Session) -> None:
    session.add_point((1.0, 2.0), is_foreground=True)
    answered = ask_and_answer(session)
    session.add_point((3.0, 4.0), is_foreground=True)
    session.undo()
    aside = session.begun
    session.drop()
    session.add_point((5.0, 6.0), is_foreground=True)
    late = session.request(VIEW)
    session.take_up(aside)
    assert session.step.points_map == ((1.0, 2.0),)
    assert session.answer is not None
    assert session.answer.request_id == answered
    assert late is not None
    assert not session.take(answer_to(late.request_id))
    session.redo()
    assert session.step.points_map == ((1.0, 2.0), (3.0, 4.0))
