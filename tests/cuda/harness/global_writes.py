"""Finds places where several blocks might add to one number in global memory, in the text of a CUDA source.

Blocks run in any order: a number that two of them add to comes out wrong without atomics, and with them in other bits
every time. Running them one after the other does not show that. The rule, for every pointer that may lead to global
memory, that is any that can be written through and is not made from ``shared_memory``: where a function both reads and
writes through it, every such write says why no other block writes there, by ``// own: ...`` in its line or above it. A
pointer in a struct is looked at over the whole file. Atomics are for whole numbers only.

The text is read by patterns, not by a compiler: a reference to an element that a function is handed goes unseen.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_OWN = re.compile(r"/[/*] own: \w")
_QUALIFIED = re.compile(r"\b__(?:device|global)__\b")
_STRUCT = re.compile(r"\bstruct\s+(?:alignas\(.*\)\s*)?\w+\s*\{")
_TYPE = r"(?:const\s+|unsigned\s+|signed\s+)*\w+(?:\s*<[^<>;()]*>)?"
_PARAMETER = re.compile(rf"({_TYPE})\s*\*\s*(?:__restrict__\s+)?(\w+)\s*(?=,|$)")
_FIELDS = re.compile(rf"^\s*({_TYPE})\s*(\*[\s\w,*]*)$")
_LOCAL = re.compile(
    rf"(?:(?<![\w.>])(?!return\b)({_TYPE})\s*\*|\b(auto)\b\s*\*?)\s*(?:__restrict__\s+)?(\w+)\s*=\s*([^;]+);"
)
_REFERENCE = re.compile(rf"(?<![\w.>&])({_TYPE})\s*&\s*\w+\s*=\s*([^;]+);")
_CAST = r"\s*reinterpret_cast\s*<[^()]*>\s*\("
_MEMBERS = re.compile(r"\s*(?:\.|->)\s*\w+|\s*\[")
_WRITES = re.compile(r"\s*=(?!=)")
_CHANGES = re.compile(r"\s*(?:(?:[-+*/%&|^]|<<|>>)=|\+\+|--)")
_ATOMIC = re.compile(r"\batomic[A-Z]\w*\s*\(")
_WHOLE_NUMBERS = {"int", "unsigned", "unsigned int", "long long", "unsigned long long", "Index"}
_CLOSED_BY = {"(": ")", "[": "]", "{": "}"}


class Function(NamedTuple):
    """A function of the source: the text of its parameters, its body and where that begins, its struct's fields."""

    parameters: str
    body: str
    start: int
    fields: set[str]


class Pointer(NamedTuple):
    """What may lead to global memory: a pattern for it in a body, its name, the type that it points to."""

    pattern: str
    name: str
    type: str


def complaints(text):
    """What is wrong with a source, as "line 12: ..."; nothing if all is well."""
    code = _COMMENT.sub(lambda comment: re.sub(r"\S", " ", comment[0]), text).replace("\\\n", " \n")
    structs = [(match.end(), _enclosed(code, match.end() - 1)) for match in _STRUCT.finditer(code)]
    fields, shared = _fields(structs)
    found, of_fields = [], {pointer: [] for pointer in fields}
    for function in _functions(code, structs):
        pointers = _pointers(function, shared)
        for pointer in pointers:
            found += _accumulations(pointer, _accesses(function, pointer.pattern))
        for pointer, accesses in of_fields.items():
            inside = pointer.name in function.fields
            accesses += _accesses(
                function, rf"(?:{pointer.pattern}|(?<!\.)\b{pointer.name})" if inside else pointer.pattern
            )
        found += _references(function, [*pointers, *fields]) + _atomics(function, [*pointers, *fields])
    for pointer, accesses in of_fields.items():
        found += _accumulations(pointer, accesses)
    lines, told = text.split("\n"), []
    for at, message in sorted(found):
        line = code.count("\n", 0, at)
        above = lines[line - 1].strip() if line else ""
        if not _OWN.search(lines[line]) and not (above.startswith("//") and _OWN.search(above)):
            told.append(f"line {line + 1}: {message}")
    return list(dict.fromkeys(told))


def _enclosed(code, at):
    """What stands between the bracket at `at` and its partner."""
    opening, depth = code[at], 0
    for end in range(at, len(code)):
        depth += (code[end] == opening) - (code[end] == _CLOSED_BY[opening])
        if depth == 0:
            return code[at + 1 : end]
    return code[at + 1 :]


def _functions(code, structs):
    for qualifier in _QUALIFIED.finditer(code):
        parameters, at = None, qualifier.end()
        while at < len(code) and code[at] not in "{;":
            if code[at] == "(":
                group = _enclosed(code, at)
                if parameters is None and not re.search(r"\b__\w+__\s*$", code[:at]):
                    parameters = group
                at += len(group) + 1
            at += 1
        if parameters is not None and code[at : at + 1] == "{":
            own = [_declared(body) for start, body in structs if start <= at < start + len(body)]
            names = {name for fields in own for _, name in fields}
            yield Function(re.sub(r"\s+", " ", parameters), _enclosed(code, at), at + 1, names)


def _declared(body):
    """(type, name) of the pointers among the fields of a struct."""
    while (flat := re.sub(r"\{[^{}]*\}", ";", body)) != body:
        body = flat
    for match in filter(None, map(_FIELDS.match, body.split(";"))):
        for name in re.findall(r"\*\s*(\w+)", match[2]):
            yield match[1], name


def _fields(structs):
    """(the structs' pointers that may lead to global memory, patterns of those that lead to shared memory)."""
    declared, shared = {}, {"shared_memory"}
    for _, body in structs:
        for kind, name in _declared(body):
            sources = re.findall(rf"(?<![\w.*])\b{name}\s*=\s*([^;=]+);", body)
            if sources and all(_leads_to(source, shared) for source in sources):
                shared |= {name, rf"\w+\s*(?:\.|->)\s*{name}"}
            elif "const" not in kind:
                declared[name] = Pointer(rf"\w+\s*(?:\.|->)\s*{name}\b", name, kind)
    return list(declared.values()), shared


def _leads_to(source, patterns):
    """Whether an expression begins with one of the patterns, casts left out."""
    return re.match(rf"(?:{_CAST})?\s*&?\s*(?:{'|'.join(patterns)})\b(?!\s*\.)", source) is not None


def _pointers(function, shared):
    """The pointers of a function's own that may lead to global memory."""
    found = {name: kind for kind, name in _PARAMETER.findall(function.parameters)}
    shared = shared - set(found)
    for kind, _auto, name, source in _LOCAL.findall(function.body):
        leads = next((found[x] for x in found if _leads_to(source, {x})), None)
        if _leads_to(source, shared):
            shared = shared | {name}
        elif kind or leads:
            found[name] = kind or leads
    return [Pointer(rf"(?<![\w.>])\b{name}\b", name, kind) for name, kind in found.items() if "const" not in kind]


class Access(NamedTuple):
    """A place that reads, writes or does both through a pointer."""

    at: int
    reads: bool
    writes: bool


def _accesses(function, pattern):
    """Where a function reads and writes through what the pattern stands for."""
    body, found = function.body, []
    for match in re.finditer(pattern, body):
        before, end = body[: match.start()].rstrip(), match.end()
        call = re.search(r"\b(load|store)\s*(?:<[^()]*>)?\s*\($", before)
        if call:
            found.append(Access(function.start + match.start(), call[1] == "load", call[1] == "store"))
            continue
        cast = re.search(rf"{_CAST}$", before)
        before = before[: cast.start()].rstrip() if cast else before
        grouped = before.endswith("(") and re.search(r"\*\s*\($", before)
        if cast or grouped:
            opening = body.rindex("(", 0, match.start())
            end = opening + len(_enclosed(body, opening)) + 2
        before = before[:-1].rstrip() if grouped else before
        dereferenced = re.search(r"(?:^|[=(,;{}?:!&|<>+\-*/]|\breturn)\s*\*$", before) is not None
        indexed = re.match(r"\s*(?:\[|->)", body[end:]) is not None
        if not dereferenced and not indexed:
            continue
        while member := _MEMBERS.match(body, end):
            end = member.end() + (len(_enclosed(body, member.end() - 1)) + 1 if member[0].endswith("[") else 0)
        while body[end : end + 1] == ")" and dereferenced and re.search(r"\(\s*\*$", before):
            end, before = end + 1, before[:-1]
        changes = _CHANGES.match(body, end) or re.search(r"(?:\+\+|--)\s*\*?$", before)
        found.append(
            Access(
                function.start + match.start(),
                changes or not _WRITES.match(body, end),
                changes or _WRITES.match(body, end),
            )
        )
    return found


def _accumulations(pointer, accesses):
    """(place, message) of the writes through a pointer that is read through as well."""
    if not any(access.reads for access in accesses):
        return []
    return [
        (access.at, f"{pointer.name} is read and written: say by // own: why no other block writes there")
        for access in accesses
        if access.writes
    ]


def _references(function, pointers):
    """(place, message) of local references to what a pointer leads to: what is done to them would go unseen."""
    return [
        (function.start + match.start(), f"a reference to an element of {pointer.name}: write through the pointer")
        for match in _REFERENCE.finditer(function.body)
        for pointer in pointers
        if "const" not in match[1] and re.search(rf"{pointer.pattern}\s*\[|\*\s*{pointer.pattern}", match[2])
    ]


def _atomics(function, pointers):
    """(place, message) of atomics on anything but a pointer to whole numbers."""
    found = []
    for match in _ATOMIC.finditer(function.body):
        target = _enclosed(function.body, match.end() - 1).split(",")[0].strip().lstrip("&(")
        types = {pointer.type.strip() for pointer in pointers if re.match(pointer.pattern, target)}
        if not types or not types <= _WHOLE_NUMBERS:
            found.append(
                (function.start + match.start(), f"an atomic on {target}, expected a pointer to whole numbers")
            )
    return found
