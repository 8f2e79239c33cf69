"""Prompts from what tasks of lmms-eval hand over: a text with visuals, or the messages of a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcop_llava.tools.lmms.visuals import Clipping, gather, read_visual
from vitcop_llava.tools.model.answer import Medium, placeholders
from vitcop_llava.tools.model.templates import render_chat

PLACE = "<image>"
"""What stands for a picture in the texts of tasks, whatever the model's own placeholder is."""

VICUNA = "vicuna"
_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. "
)
"""The sentence that LLaVA-1.5 was trained with, and that its checkpoints' own template leaves out."""

Part = str | Medium
"""A piece of text, or something that is looked at."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation: who speaks (``user``, ``assistant`` or ``system``), and what, in order."""

    role: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a model is asked: the text with one placeholder for each of the media."""

    text: str
    media: tuple[Medium, ...]


def turn_of(context: str, visuals: Iterable[Any] | None, clipping: Clipping) -> Turn:
    """Return a question with its visuals, which come first unless the text says where they stand.

    Raises:
        TypeError, ValueError: a visual is none, or cannot be read.
    """
    media = gather([read_visual(visual, clipping) for visual in visuals or ()], clipping)
    return Turn("user", (*media, context))


def turns_of(messages: Sequence[Mapping[str, Any]], clipping: Clipping) -> list[Turn]:
    """Return the messages of lmms-eval's protocol: ``role``, and ``content`` of ``{"type": ..., "text" or "url": ...}``
    each.

    Raises:
        TypeError, ValueError: a message is none, holds sound, or a visual cannot be read.
    """
    found = []
    for message in messages:
        content = message["content"]
        content = [{"type": "text", "text": content}] if isinstance(content, str) else content
        parts = [_part(item, clipping) for item in content]
        media = [part for part in parts if not isinstance(part, str)]
        if len(gathered := gather(media, clipping)) < len(media):
            parts = [*gathered, *(part for part in parts if isinstance(part, str))]
        found.append(Turn(message["role"], tuple(parts)))
    return found


def _part(item: Mapping[str, Any], clipping: Clipping) -> Part:
    kind = item["type"]
    if kind == "text":
        return str(item["text"])
    if kind not in ("image", "video"):
        raise ValueError(f"content must be of text, images and videos, got {kind!r}")
    times = {name: item[key] for name, key in (("start", "start_time"), ("end", "end_time")) if item.get(key)}
    return read_visual(item["url"], clipping, is_video=kind == "video", **times)


def render(processor: Any, turns: Sequence[Turn], template: str | None = None) -> Prompt:
    """Return the prompt that turns come to, with the beginning of an answer.

    Args:
        processor: of the model.
        turns: in order.
        template: None for the checkpoint's chat template, or LLaVA-1.5's plain form where it has none; ``vicuna`` for
            that form after the sentence that LLaVA-1.5 was trained with; or a file with a template.

    Raises:
        ValueError: the texts hold a placeholder too many, or the template has no place for something.
        OSError: the template's file cannot be read.
    """
    placed = [Turn(turn.role, _placed(turn.parts, processor)) for turn in turns]
    given = template if template in (None, VICUNA) else Path(template).read_text(encoding="utf-8")
    if given is None:
        own = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template
        given = own if isinstance(own, str) or not own else own.get("default")
    if given and given != VICUNA:
        chat = [{"role": turn.role, "content": [_content(part) for part in turn.parts]} for turn in placed]
        text = render_chat(processor, chat, given)
    else:
        text = _plain(processor, placed, _SYSTEM if given == VICUNA else "")
    media = tuple(part for turn in turns for part in turn.parts if not isinstance(part, str))
    for kind, token in placeholders(processor).items():
        needed, found = sum(_kind(part) == kind for part in media), text.count(token)
        if found != needed:
            raise ValueError(f"prompt must have a place for each of {needed} {kind}s, got {found} in {text!r:.200}")
    return Prompt(text, media)


def _placed(parts: tuple[Part, ...], processor: Any) -> tuple[Part, ...]:
    """Return parts with pictures where the texts say that they stand, if they say it of all."""
    texts = [part for part in parts if isinstance(part, str)]
    pictures = [part for part in parts if _kind(part) == "image"]
    if not pictures or sum(text.count(PLACE) for text in texts) != len(pictures):
        return parts
    own = placeholders(processor)["image"]
    others = [part for part in parts if _kind(part) == "video"]
    if own == PLACE:  # and the template needs not know: some put all pictures first
        return (*others, *texts)
    found, left = list[Part](others), iter(pictures)
    for text in texts:
        first, *rest = text.split(PLACE)
        found += [first] * bool(first)
        for piece in rest:
            found += [next(left), *[piece] * bool(piece)]
    return tuple(found)


def _kind(part: Part) -> str:
    if isinstance(part, str):
        return "text"
    return "video" if hasattr(part, "frames") else "image"


def _content(part: Part) -> dict[str, str]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": _kind(part)}


def _plain(processor: Any, turns: Sequence[Turn], system: str) -> str:
    """Return LLaVA-1.5's own form, which chat templates came after."""
    own, ending, found = placeholders(processor), processor.tokenizer.eos_token or "", system
    for turn in turns:
        body = "".join(part if isinstance(part, str) else f"{own[_kind(part)]}\n" for part in turn.parts)
        if turn.role == "system":
            found += f"{body} "
        else:
            found += f"USER: {body} " if turn.role == "user" else f"ASSISTANT: {body}{ending}"
    return f"{found}ASSISTANT:"
