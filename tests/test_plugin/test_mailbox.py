"""The newest wins, urgent kinds first."""

from __future__ import annotations

from threading import Thread

from segadapt.plugin.mailbox import Kind, Mailbox, Message


def test_newest_of_a_kind_wins() -> None:
    mailbox = Mailbox()
    for name in ("old", "newer", "newest"):
        mailbox.put(Kind.PROMPT, name)
    mailbox.put(Kind.HOVER, "hover")
    assert mailbox.take() == Message(Kind.PROMPT, "newest")
    assert mailbox.take() == Message(Kind.HOVER, "hover")
    assert not mailbox.is_waiting(*Kind)


def test_clicks_go_between_chips() -> None:
    mailbox = Mailbox()
    mailbox.put_chips(["a", "b"])
    assert mailbox.take() == Message(Kind.CHIP, "a")
    mailbox.put(Kind.PROMPT, "click")
    assert mailbox.take() == Message(Kind.PROMPT, "click")
    assert mailbox.take() == Message(Kind.CHIP, "b")


def test_what_the_next_click_needs_is_encoded_first() -> None:
    mailbox = Mailbox()
    mailbox.put_chips(["a", "b"])
    mailbox.put_chip("closer")
    assert mailbox.take() == Message(Kind.CHIP, "closer")
    assert mailbox.take() == Message(Kind.CHIP, "a")
    mailbox.put(Kind.VIEW, "view")
    mailbox.put_chip("closer in the view before")
    assert mailbox.take() == Message(Kind.VIEW, "view")
    assert mailbox.clear_chips() == 0


def test_a_new_view_makes_the_chips_of_the_old_one_void() -> None:
    mailbox = Mailbox()
    mailbox.put_chips(["old"])
    mailbox.put(Kind.VIEW, "view")
    assert mailbox.clear_chips() == 0
    mailbox.put_chips(["also old: planned before the newer view was taken"])
    assert mailbox.take() == Message(Kind.VIEW, "view")
    mailbox.put_chips(["new"])
    assert mailbox.take() == Message(Kind.CHIP, "new")


def test_opening_a_scene_makes_everything_else_void() -> None:
    mailbox = Mailbox()
    mailbox.put_chips(["chip"])
    mailbox.put(Kind.PROMPT, "click")
    mailbox.put(Kind.OPEN, "scene")
    mailbox.put(Kind.PROMPT, "click on the new scene")
    assert mailbox.take() == Message(Kind.OPEN, "scene")
    assert mailbox.take() == Message(Kind.PROMPT, "click on the new scene")
    assert mailbox.clear_chips() == 0


def test_take_waits_for_work() -> None:
    mailbox, taken = Mailbox(), []
    thread = Thread(target=lambda: taken.append(mailbox.take()))
    thread.start()
    mailbox.put(Kind.STOP)
    thread.join(5)
    assert taken == [Message(Kind.STOP, None)]


def test_tasks_queue_between_clicks_and_the_view_until_they_are_finished() -> None:
    mailbox = Mailbox()
    mailbox.put(Kind.VIEW, "view")
    mailbox.put_task("first")
    mailbox.put_task("second")
    mailbox.put(Kind.HOVER, "hover")
    assert mailbox.take() == Message(Kind.HOVER, "hover")
    assert mailbox.take() == mailbox.take() == Message(Kind.TASK, "first")
    mailbox.put_task("urgent", is_urgent=True)
    assert mailbox.take() == Message(Kind.TASK, "urgent")
    assert mailbox.finish("urgent")
    assert mailbox.take() == Message(Kind.TASK, "first")
    assert mailbox.finish("first")
    assert not mailbox.finish("first")
    assert mailbox.take() == Message(Kind.TASK, "second")
    mailbox.put(Kind.OPEN, "scene")
    assert mailbox.take() == Message(Kind.OPEN, "scene")
    assert not mailbox.finish("second")


def test_an_idle_task_waits_for_all_else() -> None:
    mailbox = Mailbox()
    mailbox.put_task("idle", is_idle=True)
    assert mailbox.take() == Message(Kind.TASK, "idle")
    mailbox.put(Kind.VIEW, "view")
    assert mailbox.take() == Message(Kind.VIEW, "view")
    mailbox.put_chips(["a"])
    mailbox.put_task("first")
    assert mailbox.take() == Message(Kind.TASK, "first")
    assert mailbox.finish("first")
    assert mailbox.take() == Message(Kind.CHIP, "a")
    assert mailbox.take() == Message(Kind.TASK, "idle")
    mailbox.put(Kind.OPEN, "scene")
    assert mailbox.take() == Message(Kind.OPEN, "scene")
    assert not mailbox.finish("idle")


def test_chips_that_are_put_off_come_back_when_resumed_and_go_with_their_view() -> None:
    mailbox = Mailbox()
    mailbox.put_chips(["a", "b"])
    mailbox.put_off(mailbox.take().content)
    assert mailbox.take() == Message(Kind.CHIP, "b")
    mailbox.resume_chips()
    assert mailbox.take() == Message(Kind.CHIP, "a")
    mailbox.put_off("a")
    mailbox.put(Kind.VIEW, "view")
    mailbox.resume_chips()
    mailbox.put_off("planned for the old view")
    assert mailbox.take() == Message(Kind.VIEW, "view")
    assert mailbox.clear_chips() == 0
