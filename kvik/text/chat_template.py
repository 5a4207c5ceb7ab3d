"""ChatTemplate: a conversation as the text its model was trained on.

Renders the jinja templates that Hugging Face checkpoints carry, with the names those expect (`raise_exception`,
`strftime_now`, `tojson`, `bos_token` and the like). A template is somebody else's program: it runs in the sandbox
beside this file, under limits, and whatever goes wrong in it is a TemplateError. Knows nothing of token ids.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateSyntaxError

from kvik.errors import TemplateError
from kvik.text.growth import MAX_CHARS
from kvik.text.sandbox import BUDGET, Budget, Sandbox, compile_template

MAX_SOURCE_CHARS = 2**20


@dataclass(frozen=True)
class TemplateLimits:
    """How far one render may go."""

    output_chars: int = MAX_CHARS
    steps: int = 5_000_000
    """Loop iterations, calls, filters and operators."""
    seconds: float = 5.0


@dataclass(frozen=True)
class _Compiled:
    template: Any
    literals: frozenset[str]


def _raise_exception(message: Any) -> None:
    raise TemplateError(f"the chat template refuses this conversation: {str(message)[:1000]}")


class ChatTemplate:
    """One or several named templates ("default", "tool_use") and the special tokens they may name.

    Compiled when first used, so that a template that is broken or beyond us does not stand in the way of a model
    that is used without one.
    """

    def __init__(
        self,
        sources: str | Mapping[str, str],
        special_tokens: Mapping[str, Any] | None = None,
        *,
        limits: TemplateLimits | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.sources = {"default": sources} if isinstance(sources, str) else dict(sources)
        self._special_tokens = dict(special_tokens or {})
        self._limits = limits or TemplateLimits()
        self._compiled: dict[str, _Compiled] = {}
        self._environment = Sandbox()
        self._environment.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: now().strftime(form),
        }

    def render(
        self,
        messages: list[Any],
        tools: list[Any] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text of a conversation. `variables` reach the template under their own names (`documents`,
        `enable_thinking`, ..). Raises TemplateError, and nothing else.
        """
        given = {"messages": messages, "tools": tools, "documents": None}
        given |= self._special_tokens | {"add_generation_prompt": add_generation_prompt} | variables
        template = self._compile(self._choose(tools)).template
        try:
            return self._run(template, given)
        except TemplateError:
            raise
        except RecursionError:
            raise TemplateError("the chat template recurses too deeply") from None
        except Exception as error:
            raise TemplateError(f"the chat template failed: {type(error).__name__}: {str(error)[:1000]}") from None

    def literals(self, tools: list[Any] | None = None) -> frozenset[str]:
        """The strings spelled in the template's expressions: what it may look for in a message. Raises
        TemplateError.
        """
        return self._compile(self._choose(tools)).literals

    def _run(self, template: Any, variables: dict[str, Any]) -> str:
        budget = Budget(self._limits.steps, time.monotonic() + self._limits.seconds)
        pieces, chars = [], 0
        for piece in template.generate({**variables, BUDGET: budget}):
            budget.spend()
            pieces.append(piece)
            chars += len(piece)
            if chars > self._limits.output_chars:
                raise TemplateError(
                    f"the chat template wrote more than {self._limits.output_chars} characters, which is the limit"
                )
        return "".join(pieces)

    def _choose(self, tools: list[Any] | None) -> str:
        name = "tool_use" if tools and "tool_use" in self.sources else "default"
        if name not in self.sources:
            known = ", ".join(sorted(self.sources)) or "none"
            raise TemplateError(f"there is no chat template named 'default'; the checkpoint has: {known}")
        return name

    def _compile(self, name: str) -> _Compiled:
        if name not in self._compiled:
            self._compiled[name] = self._compile_source(self.sources[name])
        return self._compiled[name]

    def _compile_source(self, source: str) -> _Compiled:
        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateError(f"the chat template has {len(source)} characters; the limit is {MAX_SOURCE_CHARS}")
        try:
            tree = self._environment.parse(source)
            literals = frozenset(node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str))
            return _Compiled(compile_template(self._environment, self._environment.rewrite(tree)), literals)
        except TemplateSyntaxError as error:
            raise TemplateError(f"the chat template has an error in line {error.lineno}: {error.message}") from None
        except Exception as error:
            raise TemplateError(
                f"the chat template cannot be compiled: {type(error).__name__}: {str(error)[:1000]}"
            ) from None
