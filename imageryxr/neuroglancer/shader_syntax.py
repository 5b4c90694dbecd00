"""Parse the shader of an image layer: a subset of GLSL without loops.

A shader is untrusted text, so its length and its nesting are limited.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

from imageryxr.neuroglancer.shader_functions import UnsupportedShaderError

TYPES = {"float", "int", "uint", "bool", "vec2", "vec3", "vec4", "void"}
MAX_CODE = 20_000
"""Largest number of characters of a shader that is evaluated."""
_MAX_DEPTH = 40
_TOKEN = re.compile(
    r"\s*(?:((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)[fFuU]?|([A-Za-z_]\w*)|(\"[^\"\n]*\")|"
    r"(\+\+|--|<<|>>|&&|\|\||[-+*/<>=!]=|[-+*/%<>=!?:;,.(){}\[\]]))"
)
_QUALIFIERS = {"const", "highp", "mediump", "lowp", "in"}
_LEVELS = (("||",), ("&&",), ("==", "!="), ("<", ">", "<=", ">="), ("+", "-"), ("*", "/", "%"))

Node = tuple[Any, ...]


@dataclass
class ShaderFunction:
    """A function that a shader defines."""

    returns: str
    parameters: list[tuple[str, str]]
    body: Node


@dataclass
class ParsedShader:
    """The functions and global constants of a shader."""

    functions: dict[str, ShaderFunction] = field(default_factory=dict)
    constants: list[Node] = field(default_factory=list)


def parse_shader(code: str) -> ParsedShader:
    """Return the functions of a shader without comments and control directives.

    Raises `UnsupportedShaderError` if it has a statement that is not supported.
    """
    return _Parser(_tokens(code)).program()


def _tokens(code: str) -> list[tuple[str, str]]:
    out, position, text = [], 0, code.rstrip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise UnsupportedShaderError(text[position : position + 20])
        kind = ("number", "name", "text", "sign")[(found.lastindex or 1) - 1]
        out.append((kind, found[found.lastindex or 1]))
        position = found.end()
    return out


class _Parser:
    """Recursive-descent parser of the supported statements and expressions."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens = [*tokens, ("end", ""), ("end", "")]
        self.at = 0
        self.depth = 0

    def peek(self, *texts: str) -> bool:
        kind, text = self.tokens[self.at]
        return kind in ("sign", "name") and text in texts

    def take(self, *texts: str) -> bool:
        found = self.peek(*texts)
        self.at += found
        return found

    def need(self, text: str) -> None:
        if not self.take(text):
            self.fail()

    def name(self) -> str:
        kind, text = self.tokens[self.at]
        if kind != "name":
            self.fail()
        self.at += 1
        return text

    def fail(self) -> NoReturn:
        raise UnsupportedShaderError(self.tokens[self.at][1])

    def program(self) -> ParsedShader:
        found = ParsedShader()
        while self.tokens[self.at][0] != "end":
            if self.take("precision"):
                while not self.take(";"):
                    self.name()
                continue
            start, kind, name = self.at, self.type(), self.name()
            if self.take("("):
                found.functions[name] = ShaderFunction(kind, self.parameters(), self.block())
            else:
                self.at = start
                found.constants.append(self.declaration())
        return found

    def type(self) -> str:
        while self.take(*_QUALIFIERS):
            pass
        name = self.name()
        if name not in TYPES:
            self.fail()
        return name

    def parameters(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        if self.take("void"):
            self.need(")")
            return found
        while not self.take(")"):
            found.append((self.type(), self.name()))
            if not self.peek(")"):
                self.need(",")
        return found

    def block(self) -> Node:
        self.need("{")
        body = []
        while not self.take("}"):
            body.append(self.statement())
        return ("block", body)

    def statement(self) -> Node:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            self.fail()
        found = self.any_statement()
        self.depth -= 1
        return found

    def any_statement(self) -> Node:
        if self.peek("{"):
            return self.block()
        if self.take(";"):
            return ("block", [])
        if self.take("if"):
            self.need("(")
            condition = self.expression()
            self.need(")")
            then = self.statement()
            return ("if", condition, then, self.statement() if self.take("else") else ("block", []))
        if self.take("return", "discard"):
            word = self.tokens[self.at - 1][1]
            value = None if self.peek(";") else self.expression()
            self.need(";")
            return (word, value)
        if self.peek(*_QUALIFIERS, *TYPES) and self.tokens[self.at + 1][1] != "(":
            return self.declaration()
        return self.assignment()

    def declaration(self) -> Node:
        kind, parts = self.type(), []
        while True:
            name = self.name()
            parts.append(("set", name, ("convert", kind, self.expression() if self.take("=") else ("literal", 0))))
            if not self.take(","):
                break
        self.need(";")
        return ("declare", parts)

    def assignment(self) -> Node:
        kind, name = self.tokens[self.at]
        following = self.tokens[self.at + 1][1]
        if kind == "name" and following in ("=", "+=", "-=", "*=", "/="):
            self.at += 2
            value = self.expression()
            value = value if following == "=" else ("binary", following[0], ("name", name), value)
            node: Node = ("set", name, value)
        else:
            node = ("evaluate", self.expression())
        self.need(";")
        return node

    def expression(self) -> Node:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            self.fail()
        found = self.binary(0)
        if self.take("?"):
            then = self.expression()
            self.need(":")
            found = ("choose", found, then, self.expression())
        self.depth -= 1
        return found

    def binary(self, level: int) -> Node:
        if level == len(_LEVELS):
            return self.unary()
        left = self.binary(level + 1)
        while self.take(*_LEVELS[level]):
            left = ("binary", self.tokens[self.at - 1][1], left, self.binary(level + 1))
        return left

    def unary(self) -> Node:
        signs = []
        while self.take("-", "+", "!"):
            signs.append(self.tokens[self.at - 1][1])
        found = self.postfix()
        for sign in reversed(signs):
            found = ("unary", sign, found)
        return found

    def postfix(self) -> Node:
        kind, text = self.tokens[self.at]
        self.at += 1
        if kind == "number":
            is_float = re.search("[.eE]", text) or len(text) > 19
            found: Node = ("literal", float(text) if is_float else int(text))
        elif kind == "text":
            found = ("literal", text[1:-1])
        elif text == "(":
            found = self.expression()
            self.need(")")
        elif kind == "name":
            found = ("call", text, self.arguments()) if self.take("(") else ("name", text)
        else:
            self.at -= 1
            self.fail()
        while self.take("."):
            found = ("part", found, self.name())
        return found

    def arguments(self) -> list[Node]:
        found: list[Node] = []
        if self.take("void"):
            self.need(")")
            return found
        while not self.take(")"):
            found.append(self.expression())
            if not self.peek(")"):
                self.need(",")
        return found
