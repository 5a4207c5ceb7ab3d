"""A jinja environment in which a hostile template can waste neither time nor memory nor reach Python.

Jinja's own sandbox keeps a template away from Python's internals, but not from looping for ever or doubling a string
until memory is gone. Here every loop iteration, call, filter and operator passes a *gate*: it spends a step of the
render's budget and looks at the clock. What may happen between two gates is bounded because every value is: anything
that can grow (repetition, joining, replacing, padding, nesting) is measured before it is made. So the deadline holds
even for nested loops that print nothing, and the step budget makes the verdict the same on a slow machine.

Knows nothing of chats, tokens or where templates come from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, nodes, pass_context
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from kvik.errors import TemplateError
from kvik.text import growth
from kvik.text.growth import MAX_INT_BITS, check_chars, check_members, measure, text_of

# Filter and variable names with a space cannot be spelled in a template, so it can neither call nor shadow them.
BUDGET, ITERATE, CONCAT, LITERAL, CHARGE = " budget", " iterate", " concat", " literal", " charge"
# Jinja hands these to every call in a loop or block, on top of what the template wrote.
_INNER = ("_loop_vars", "_block_vars")

# fmt: off
_SAFE_FILTERS = (
    "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby",
    "int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse",
    "safe", "select", "selectattr", "sort", "title", "trim", "truncate", "unique", "upper", "urlencode", "wordcount",
)
_STR_METHODS = frozenset((
    "capitalize", "casefold", "center", "count", "endswith", "find", "format", "format_map", "index", "isalnum",
    "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace",
    "istitle", "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix",
    "replace", "rfind", "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith",
    "strip", "swapcase", "title", "upper", "zfill",
))
# fmt: on


@dataclass
class Budget:
    """What one render may still spend."""

    steps: int
    deadline: float
    """On the clock of time.monotonic."""

    def spend(self, steps: int = 1) -> None:
        """Pass a gate. Raises TemplateError when the steps or the time are used up."""
        self.steps -= steps
        if self.steps < 0:
            raise TemplateError("the chat template ran past its limit of steps; does it loop for ever?")
        if time.monotonic() > self.deadline:
            raise TemplateError("the chat template ran past its time limit")

    def charge(self, value: Any) -> Any:
        """Pass a gate with a new value: a long one costs more, so that all of them together are bounded too."""
        size = 0
        if isinstance(value, str):
            check_chars(len(value))
            size = len(value) // 256
        elif isinstance(value, (list, tuple)):
            check_members(len(value))
            size = len(value) // 16
        self.spend(1 + size)
        return value


def _budget(context: Context) -> Budget:
    budget: Budget = context.parent[BUDGET]
    return budget


def _join(budget: Budget, separator: str, values: Iterable[Any]) -> str:
    pieces, chars = [], 0
    for value in values:
        budget.spend()
        pieces.append(text_of(value))
        chars += len(pieces[-1]) + len(separator)
        check_chars(chars)
    joined: str = budget.charge(separator.join(pieces))
    return joined


@pass_context
def _join_filter(context: Context, values: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        values = FILTERS["map"](context, values, attribute=attribute)
    return _join(_budget(context), text_of(d), values)


@pass_context
def _concat(context: Context, values: list[Any]) -> str:
    return _join(_budget(context), "", values)


@pass_context
def _literal(context: Context, value: Any) -> Any:
    _budget(context).spend(1 + measure(value) // 16)
    return value


@pass_context
def _charge(context: Context, value: Any) -> Any:
    return _budget(context).charge(value)


@pass_context
def _iterate(context: Context, values: Iterable[Any]) -> Iterator[Any]:
    budget = _budget(context)
    for value in values:
        budget.spend()
        yield value


def _gated(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that spends a step and whose result, if a string, is measured; not folded at compile time."""
    wants = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    @pass_context
    def gated(context: Context, *args: Any, **kwargs: Any) -> Any:
        lead = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        result = function(lead[wants], *args, **kwargs) if wants else function(*args, **kwargs)
        return _budget(context).charge(result)

    return gated


def _filters() -> dict[str, Callable[..., Any]]:
    ours = {
        "indent": growth.indent,
        "join": _join_filter,
        "string": text_of,
        "sum": growth.sum_numbers,
        "tojson": growth.tojson,
    }
    ours["replace"] = lambda text, old, new, count=-1: growth.replace(text_of(text), text_of(old), text_of(new), count)
    named = {name: _gated(function) for name, function in ({k: FILTERS[k] for k in _SAFE_FILTERS} | ours).items()}
    return named | {ITERATE: _iterate, CONCAT: _concat, LITERAL: _literal, CHARGE: _charge}


class _Gates(NodeTransformer):
    """Puts gates where jinja offers no hook: around what a loop iterates over, `~`, slices, set blocks,
    and list and dict literals.
    """

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 - jinja's naming
        self.generic_visit(node)
        node.iter = self._through(ITERATE, node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return self._through(CONCAT, nodes.List(node.nodes, lineno=node.lineno, environment=node.environment))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return self._through(CHARGE, node) if isinstance(node.arg, nodes.Slice) else node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.AssignBlock:  # noqa: N802
        self.generic_visit(node)
        # Over no node, a set block's filter stands for the text of the block.
        node.filter = self._through(CHARGE, node.filter, node)
        return node

    def _visit_literal(self, node: Any) -> nodes.Expr:
        self.generic_visit(node)
        stored = getattr(node, "ctx", "load") != "load"
        return node if stored else self._through(LITERAL, node)

    visit_List = visit_Tuple = visit_Dict = _visit_literal  # noqa: N815

    @staticmethod
    def _through(name: str, node: nodes.Node | None, place: nodes.Node | None = None) -> nodes.Filter:
        at: Any = place or node
        return nodes.Filter(node, name, [], [], None, None, lineno=at.lineno, environment=at.environment)


class _Generation(Extension):
    """`{% generation %}` marks an assistant's own words for training; here it only groups."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


class _Namespace(Namespace):
    """Printed without its members, which may contain it."""

    def __repr__(self) -> str:
        return "<namespace>"


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment: whitespace as Hugging Face sets it, loop controls, gates everywhere."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        extensions = [_Generation, "jinja2.ext.loopcontrols"]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=self._print)
        self.filters = _filters()
        self.binop_table |= {"*": growth.repeat, "+": growth.add, "**": growth.power, "%": growth.modulo}
        del self.globals["lipsum"]
        self.globals |= {"namespace": _Namespace, "dict": lambda *args, **kwargs: dict(*args, **kwargs)}
        self.concat = self._concat_output  # type: ignore[method-assign]

    def rewrite(self, tree: nodes.Template) -> nodes.Template:
        """Put the gates into a parsed template."""
        gated: nodes.Template = _Gates().visit(tree)
        return gated

    @staticmethod
    def _print(value: Any) -> Any:
        return value if isinstance(value, (str, Undefined)) else text_of(value)

    @staticmethod
    def _concat_output(pieces: Iterable[str]) -> str:
        kept = list(pieces)
        check_chars(sum(map(len, kept)))
        return "".join(kept)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Of strings only methods whose result is bounded, of numbers nothing."""
        if isinstance(obj, str):
            return attr in _STR_METHODS
        return not isinstance(obj, (int, float)) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` with widths and lengths checked."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        form, inner = value.__self__, wrapped

        def checked(*args: Any, **kwargs: Any) -> str:
            growth.check_format(form, form.count("{"), [*args, *kwargs.values()])
            return inner(*args, **kwargs)

        return checked

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator, through the gate; numbers so large that arithmetic on them is slow are refused."""
        result = _budget(context).charge(super().call_binop(context, operator, left, right))
        if isinstance(result, int) and result.bit_length() > MAX_INT_BITS:
            raise TemplateError(f"the chat template computes a number of more than {MAX_INT_BITS} bits")
        return result

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call, through the gate before it (recursion) and after it (its result)."""
        budget = _budget(context)
        budget.spend()
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and name == "join" and len(args) == 1:
            return _join(budget, owner, args[0])
        if isinstance(owner, str) and name == "replace":
            named = {key: value for key, value in kwargs.items() if key not in _INNER}
            return budget.charge(growth.replace(owner, *args, **named))
        if isinstance(owner, str) and name in ("center", "ljust", "rjust", "zfill") and args:
            check_chars(args[0])
        result = super().call(context, obj, *args, **kwargs)
        if obj is self.globals["dict"]:
            measure(result)
        return budget.charge(result)


def compile_template(environment: Environment, tree: nodes.Template) -> Any:
    """A template from its (gated) tree."""
    code = environment.compile(tree)
    return environment.template_class.from_code(environment, code, environment.make_globals(None))
