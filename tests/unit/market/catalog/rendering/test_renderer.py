"""Texts are rendered by few processes, which end with the renderer."""

import gc
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from market.catalog.rendering.renderer import PROCESSES, TemplateRefused, TemplateRenderer

ECHO = "{% if word == 'no' %}{{ raise_exception(word) }}{% endif %}{{ word * times }}"


def processes() -> list[psutil.Process]:
    """Those that render, of this one."""
    return [
        child
        for child in psutil.Process().children()
        if child.is_running() and any("rendering/process.py" in part for part in child.cmdline())
    ]


@pytest.fixture(autouse=True)
def none_before() -> None:
    """No renderer of another test is left."""
    gc.collect()
    assert processes() == []


def test_each_gets_its_own_text_from_few_processes() -> None:
    renderer = TemplateRenderer(ECHO)

    def outcome(number: int) -> str:
        word = "no" if number % 5 == 0 else f"{number} é\n"
        try:
            return renderer.render({"word": word, "times": 1000})
        except TemplateRefused as refused:
            return str(refused)

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(outcome, range(200)))
    assert outcomes == [
        "no" if number % 5 == 0 else f"{number} é\n" * 1000 for number in range(200)
    ]
    assert 1 <= len(processes()) <= PROCESSES


def test_a_process_that_died_is_replaced() -> None:
    renderer = TemplateRenderer(ECHO)
    for _ in range(3):
        assert renderer.render({"word": "a", "times": 2}) == "aa"
        [process] = processes()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def test_no_text_gets_what_another_left_unread() -> None:
    """Variables that are no JSON are an error of ours, and end the process."""
    renderer = TemplateRenderer(ECHO)
    assert renderer.render({"word": "a", "times": 1}) == "a"
    with pytest.raises(TypeError):
        renderer.render({"word": object(), "times": 1})
    assert renderer.render({"word": "b", "times": 1}) == "b"


def test_processes_end_with_the_renderer() -> None:
    renderer = TemplateRenderer(ECHO)
    renderer.render({"word": "a", "times": 1})
    assert len(processes()) == 1
    del renderer
    gc.collect()
    assert processes() == []


def test_a_check_leaves_no_process() -> None:
    renderer = TemplateRenderer(ECHO)
    renderer.check()
    gc.collect()
    assert processes() == []
    with pytest.raises(TemplateRefused):
        TemplateRenderer("{% if %}").check()


def test_texts_keep_every_character() -> None:
    renderer = TemplateRenderer("{{ word }}")
    odd = "".join(map(chr, [*range(256), 0x2028, 0xD800, 0xFFFF, 0x10FFFF])) + "\r\n"
    assert renderer.render({"word": odd}) == odd
