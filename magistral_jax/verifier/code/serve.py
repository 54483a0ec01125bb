"""Inside the sandbox, in the program's process: runs the program, then does what the tester asks.

Runs as `python serve.py` beside plain.py, program.py and prompt.py. The program can
take over this process altogether; all that it gains is to answer for itself. What is expected of
it is in another sandbox, with the tester, to which nothing but plain data goes.
"""

import builtins
import os
import sys
import types

import plain

_objects = {}
_numbers = {}


def main():
    link = plain.Link(3, 4)
    # The program's own output and questions go nowhere.
    for fd, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY)):
        os.dup2(os.open(os.devnull, flags), fd)
    try:
        module = _load()
    except BaseException as failure:
        link.send(["failed", _told(failure)])
        return
    link.send(["loaded"])
    while True:
        try:
            number, *request = link.receive()
        except EOFError:
            return
        link.send([number, *_answer(module, request)])


def _load():
    """The module that the program makes, after the prompt or as the prompt's continuation."""
    with open("program.py", encoding="utf-8") as file:
        program = file.read()
    with open("prompt.py", encoding="utf-8") as file:
        prompt = file.read()
    if not prompt:
        return _run(program)
    try:
        module = _run(prompt)
        exec(compile(program, "solution.py", "exec"), module.__dict__)
        return module
    except SyntaxError:
        # A bare body: no program by itself, but the rest of the prompt's function.
        return _run(prompt + program)


def _run(source):
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    exec(compile(source, "solution.py", "exec"), module.__dict__)
    return module


def _answer(module, request):
    """What to send for a request: ["value", value, changes] or ["raised", type, message]."""
    try:
        operation, *given = plain.decode(request[0], _objects.__getitem__)
        before = [_encoded(value) for value in given] if operation == "call" else []
        value = plain.encode(_OPERATIONS[operation](module, *given), _number)
        changes = []
        if operation == "call":
            after = [_encoded(value) for value in given]
            changes = [[i, new] for i, new in enumerate(after) if new != before[i]]
        return ["value", value, changes]
    except StopIteration:
        return ["stopped"]
    except BaseException as failure:
        return ["raised", *_told(failure)]


def _told(failure):
    """The exception's nearest built-in type, and its message."""
    names = [kind.__name__ for kind in type(failure).__mro__]
    name = next(name for name in names if hasattr(builtins, name))
    try:
        return [name, str(failure)[:500]]
    except BaseException:
        return [name, ""]


def _encoded(value):
    return plain.encode(value, _number)


def _number(value):
    if id(value) not in _numbers:
        _numbers[id(value)] = len(_objects)
        _objects[len(_objects)] = value
    return _numbers[id(value)]


def _name(module, name):
    try:
        return module.__dict__[name]
    except KeyError:
        raise NameError(f"name {name!r} is not defined") from None


def _set_item(module, target, key, value):
    target[key] = value


def _delete_item(module, target, key):
    del target[key]


_OPERATIONS = {
    "name": _name,
    "call": lambda module, target, arguments, named: target(*arguments, **named),
    "get": lambda module, target, name: getattr(target, name),
    "set": lambda module, target, name, value: setattr(target, name, value),
    "delete": lambda module, target, name: delattr(target, name),
    "item": lambda module, target, key: target[key],
    "set item": _set_item,
    "delete item": _delete_item,
    "length": lambda module, target: len(target),
    "iterate": lambda module, target: iter(target),
    "next": lambda module, target: next(target),
    "text": lambda module, target: str(target),
    "shown": lambda module, target: repr(target),
    "is instance": lambda module, target, value: isinstance(value, target),
}


if __name__ == "__main__":
    main()
